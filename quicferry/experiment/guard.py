"""Looks after the few processes of a run that conduct it, from outside of its private root.

All others are looked after from within (``watch``), by the process that plays the run. When that one was
stopped (SIGSTOP), or one of the two that hold its namespaces, nobody inside comes to an end any more.
"""

from __future__ import annotations

import signal
import threading
from contextlib import suppress
from pathlib import Path

from quicferry.emulation.sandbox.private_root import PrivateRoot

LOOK_S = 0.2
SIGNAL_BASE = 128  # an exit code beyond it: ended by that signal
#: What ``unshare`` of util-linux 2.38 says when its child was killed by a signal, and at no other time. Later
#: ones end by the same signal.
INIT_KILLED = "unshare: sigprocmask unblock failed"


class Guard:
    """Ends a private root, from a thread, when a process that conducts the run was stopped for good.

    A context manager around what waits for that private root.
    """

    def __init__(self, root: PrivateRoot) -> None:
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="guard", daemon=True)
        self._has_ended_it = False

    def __enter__(self) -> Guard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            if self._root.stands_still():
                self._has_ended_it = True
                # the outermost process takes all of them with it, those that stand still, too
                self._root.process.kill()
                return

    def describe_end(self, status: int, log: Path) -> str:
        """Why a run has not written its own end, by the exit code of what played it and what it said."""
        if self._has_ended_it:
            return "the process that conducts the run stands still (SIGSTOP), and was ended with the run"
        number = -status if status < 0 else status - SIGNAL_BASE
        if number in signal.valid_signals():
            return f"the process that conducts the run was killed by {signal.Signals(number).name}"
        with suppress(OSError):
            if INIT_KILLED in log.read_text(errors="replace"):
                return "the process that conducts the run was killed with its private root (SIGKILL)"
        return f"the run ended early with status {status}"
