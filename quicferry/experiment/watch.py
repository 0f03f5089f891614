"""Ends a run as soon as something that it stands on has ended or stands still: agent, client, cable, capture.

What waits in a run waits for an answer, for as long as a move may take. From an agent that was killed none
will come; the run is to end, and to say who it was. A thread looks at all processes some times a second. When
one has ended that nobody has told to, or was stopped (SIGSTOP) and does not go on, it sends this process a
signal whose handler raises in the main thread, whatever that waits for (PEP 475: a handler that raises ends
the system call).

Of what fails when a process has died, that it has died is the cause: whoever hears first of its silence
raises before the thread has looked. So an error within waits for another look, and is told after the cause.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

from quicferry.errors import FerryError
from quicferry.experiment.context import RunContext
from quicferry.process import STILL_S

LOOK_S = 0.2
CAUSE_S = STILL_S + 2 * LOOK_S  # after an error: who stands still is known by then
SIGNAL = signal.SIGUSR1


class Watch:
    """A context manager around what waits; only within it anything is raised, and only once.

    Outside of the main thread, where no signal is handled, it does nothing.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._over = threading.Event()
        self._found = threading.Event()
        self._raises = True  # what was found; not once the block has ended
        self._why: FerryError | None = None
        self._thread: threading.Thread | None = None
        self._before: signal._HANDLER = None

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(SIGNAL, self._raise)
            self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._raises = False
        if self._thread is None:
            return
        if isinstance(error, FerryError):
            self._found.wait(CAUSE_S)
        self._over.set()
        self._thread.join()
        signal.signal(SIGNAL, self._before)
        if isinstance(error, FerryError) and self._why is not None and error is not self._why:
            raise type(self._why)(f"{self._why}; {error}", hint=self._why.hint) from error

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            why = self._context.ended()
            if why is None:
                continue
            self._why = why
            self._context.is_broken = True
            self._found.set()
            if self._raises and not self._over.is_set():
                signal.pthread_kill(threading.main_thread().ident or 0, SIGNAL)
            return

    def _raise(self, _number: int, _frame: FrameType | None) -> None:
        if self._why is not None and self._raises:
            raise self._why
