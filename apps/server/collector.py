"""Garbage collection is put off while a server moves.

A full collection looks at every object of every connection: with 500 of them for some tens of milliseconds,
in the middle of a notice or of a downtime.
"""

from __future__ import annotations

import asyncio
import gc

LONGEST_S = 30.0  # a move that nobody ends
AFTERWARDS_S = 1.0  # until the clients of a server that has moved have found it


class Collector:
    """Puts Python's cyclic garbage collection off and lets it go on. Within a running event loop."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    def put_off(self) -> None:
        """Collect nothing until ``go_on``, or for LONGEST_S."""
        gc.disable()
        self._arm(LONGEST_S)

    def go_on(self) -> None:
        """Collect again AFTERWARDS_S from now, if it was put off."""
        if self._timer is not None:
            self._arm(AFTERWARDS_S)

    def _arm(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self._enable)

    def _enable(self) -> None:
        self._timer = None
        gc.enable()
