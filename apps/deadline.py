"""A timer of the loop for a deadline that moves with almost every packet, nearly always to later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from quicferry.units import now_s


class Deadline:
    """Calls ``due(now)`` when the deadline has come; ``now`` is never before it.

    Upstream's endpoint cancels and makes a timer whenever the deadline changes, which is with each packet.
    Here the loop is asked only when the deadline moves to an earlier time: a timer that comes too early
    looks when it is to come again.
    """

    def __init__(self, due: Callable[[float], None]) -> None:
        self._due = due
        self._at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, at: float | None) -> None:
        """The deadline, on the clock of the loop; None: there is none."""
        self._at = at
        if at is None:
            self.cancel()
        elif self._timer is None or at < self._timer.when():
            self._arm(at)

    def cancel(self) -> None:
        """There is no deadline until the next ``set``."""
        self._at = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(at, self._look, at)

    def _look(self, armed_for: float) -> None:
        self._timer = None
        if self._at is None:
            return
        now = max(now_s(), armed_for)  # the loop may call a hair early
        if now < self._at:
            self._arm(self._at)
            return
        self._at = None
        self._due(now)
