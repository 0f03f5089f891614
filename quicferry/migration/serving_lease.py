"""The fence where the server is: its process itself knows until when it may serve, and obeys.

Theory of operation. Between its resume and the commit of the move a server has the right to serve for a
time only (``order.Lease``). Who gave it that time may be killed, stopped or cut off: the time runs out by
itself, and the source goes on only afterwards. Three things keep it, each for what the one before it
cannot do:

- ``may_send`` is asked before every datagram;
- a timer of the event loop holds the server back, so that it also reads nothing any more;
- where ``by_kernel`` is set, a timer of the kernel (``ITIMER_REAL``) ends a process that was stopped or
  stuck and did not hold itself back. SIGALRM has its default action: a process that was stopped between
  ``may_send`` and its system call dies before it runs the next instruction.

A server that is held back keeps its state. ``keep`` says that the move was committed: it serves for good,
again if need be, and no later death of an agent takes that right away.

All of it is CLOCK_MONOTONIC, which nobody sets and which is one for all hosts of a run.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

from quicferry.errors import MigrationError
from quicferry.migration.order import Lease
from quicferry.units import NS_PER_MS, NS_PER_S, now_ns

#: a process that has not held itself back so long after its lease is ended by the kernel
KILL_AFTER_NS = 300 * NS_PER_MS
#: the kernel's timer is relative: it counts only when it was set within this time after the clock was read
ARMED_WITHIN_NS = 20 * NS_PER_MS


class ServingLease:
    """The right of one server process to serve. Without ``begin`` it is for good."""

    def __init__(self, hold_back: Callable[[], None], go_on_again: Callable[[], None]) -> None:
        self._hold_back = hold_back
        self._go_on_again = go_on_again
        self.epoch = 0  # of the latest lease
        self.held = False
        #: whether the kernel ends this process when it does not hold itself back; for a process of its own
        self.by_kernel = False
        self._until_ns: int | None = None  # None: for good
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, epoch: int, lease: Lease | None) -> None:
        """Begin to serve within the lease; None: for good. Raises ``MigrationError`` when it is too late."""
        if lease is None:
            self._settle(epoch)
            return
        late_ns = now_ns() - lease.begin_before_ns
        if late_ns >= 0:
            raise MigrationError(
                f"the lease of epoch {epoch} ended {late_ns / NS_PER_MS:.1f} ms ago",
                hint="the source serves again; give the move longer deadlines",
            )
        self._stop_timers()
        self.epoch, self.held, self._until_ns = epoch, False, lease.serve_until_ns
        self._arm_kernel(lease.serve_until_ns + KILL_AFTER_NS)
        loop = asyncio.get_running_loop()
        left_s = max(0.0, (lease.serve_until_ns - now_ns()) / NS_PER_S)
        self._timer = loop.call_later(left_s, self._over)

    def may_send(self) -> bool:
        """Whether something may be sent at this moment."""
        if self._until_ns is None or (not self.held and now_ns() < self._until_ns):
            return True
        self._over()
        return False

    def keep(self, epoch: int) -> None:
        """The move of this epoch was committed: the right is for good. May be said again.

        Raises ``MigrationError`` for an epoch that this process has not begun.
        """
        if epoch > self.epoch:
            raise MigrationError(f"the server has not begun epoch {epoch}, its latest is {self.epoch}")
        if epoch < self.epoch:
            return
        was_held = self.held
        self._settle(epoch)
        if was_held:
            self._go_on_again()

    def forget(self) -> None:
        """What had begun has failed: the process serves nothing, and no lease runs."""
        self._settle(self.epoch)

    def check_kept(self) -> None:
        """Raise ``MigrationError`` while the latest move to here is not committed."""
        if self._until_ns is not None:
            raise MigrationError(f"the move of epoch {self.epoch} to here is not committed yet")

    def described(self) -> dict[str, Any]:
        """For the answer to ``Status``: epoch, kept (it is for good), held (it is over, nothing is sent)."""
        return {"epoch": self.epoch, "kept": self._until_ns is None, "held": self.held}

    def _settle(self, epoch: int) -> None:
        self._stop_timers()
        self.epoch, self.held, self._until_ns = epoch, False, None

    def _over(self) -> None:
        """Hold the server back, unless the loop's timer was early by its own clock."""
        if self._until_ns is None or self.held:
            return
        if now_ns() < self._until_ns:
            self._timer = asyncio.get_running_loop().call_later(0.001, self._over)
            return
        self.held = True
        self._hold_back()
        self._stop_timers()

    def _arm_kernel(self, at_ns: int) -> None:
        if not self.by_kernel:
            return
        while True:
            read_ns = now_ns()
            # 0 would disarm it
            signal.setitimer(signal.ITIMER_REAL, max(at_ns - read_ns, 1_000) / NS_PER_S)
            # a process that was stopped between the two lines has a timer that is late by that time
            if now_ns() - read_ns < ARMED_WITHIN_NS:
                return

    def _stop_timers(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.by_kernel:
            signal.setitimer(signal.ITIMER_REAL, 0)
