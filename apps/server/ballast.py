"""Memory that a server holds besides its own, and rewrites at a rate: the axes memory_mib and dirty_mib_s."""

from __future__ import annotations

import asyncio
import os

from quicferry.units import BYTES_PER_MIB

PAGE_BYTES = 4096
STEP_S = 0.01  # short enough that a step of 100 MiB/s holds up the server for a millisecond only


class Ballast:
    """Memory full of random bytes, which do not shrink when they are compressed. ``size_mib`` in MiB."""

    def __init__(self, size_mib: int) -> None:
        self._memory = [bytearray(os.urandom(BYTES_PER_MIB)) for _ in range(size_mib)]
        self._next = 0  # page to be rewritten

    @property
    def _pages(self) -> int:
        return len(self._memory) * BYTES_PER_MIB // PAGE_BYTES

    def touch(self, count: int) -> None:
        """Give the next ``count`` pages new random contents; after the last page comes the first."""
        for _ in range(min(count, self._pages)):
            block, offset = divmod(self._next * PAGE_BYTES, BYTES_PER_MIB)
            self._memory[block][offset : offset + PAGE_BYTES] = os.urandom(PAGE_BYTES)
            self._next = (self._next + 1) % self._pages

    async def rewrite(self, rate_mib_s: float) -> None:
        """Touch pages at this rate until cancelled. Missed steps, such as in a freeze, are left out."""
        if not rate_mib_s or not self._memory:
            return
        due = 0.0
        while True:
            await asyncio.sleep(STEP_S)
            due += rate_mib_s * STEP_S * BYTES_PER_MIB / PAGE_BYTES
            self.touch(int(due))
            due -= int(due)
