"""Ends a run as soon as something that it stands on has ended by itself: agent, client, orchestrator, cable.

What waits in a run waits for an answer, for as long as a move may take. From an agent that was killed none
will come; the run is to end, and to say who it was. A thread looks at all processes some times a second. When
one has ended that nobody has told to, it sends this process a signal whose handler raises in the main
thread, whatever that waits for (PEP 475: a handler that raises ends the system call).
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

from quicferry.errors import FerryError
from quicferry.experiment.context import RunContext

LOOK_S = 0.2
SIGNAL = signal.SIGUSR1


class Watch:
    """A context manager around what waits; only within it anything is raised, and only once.

    Outside of the main thread, where no signal is handled, it does nothing.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._over = threading.Event()
        self._why: FerryError | None = None
        self._thread: threading.Thread | None = None
        self._before: signal._HANDLER = None

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(SIGNAL, self._raise)
            self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            signal.signal(SIGNAL, self._before)

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            why = self._context.ended()
            if why is None:
                continue
            self._why = why
            self._context.is_broken = True
            if not self._over.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
            return

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        if self._why is not None and not self._over.is_set():
            raise self._why
