"""Waiting for what must happen, for as long as a busy machine may need."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Self

TICK_S = 0.01


def eventually(is_so: Callable[[], object], within_s: float = 60.0) -> bool:
    """Whether it has become so by then."""
    deadline = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class OwnTime:
    """A clock for upper bounds, which hardly runs while others have the processor: a machine may be busy.

    A thread sleeps for 10 ms again and again. What it is late counts up to another 10 ms, and so the clock is
    never ahead of the wall clock, and is behind it by as much as this process was kept from running.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="own time", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            begun = time.monotonic()
            if self._over.wait(TICK_S):
                return
            self.seconds += min(time.monotonic() - begun, 2 * TICK_S)
