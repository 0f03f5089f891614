"""Pages that rounds of pre-copy have left at the destination, read from their incremental images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quicferry.errors import MigrationError
from quicferry.migration.memory.batches import batches_of, small_first
from quicferry.migration.memory.pagemap import PAGE_BYTES, Pages, decode

#: Put in place by one call: 1 MiB, a tenth of a millisecond.
PLACED_PAGES = 256

Content = NDArray[np.uint8]  # of whole pages, one after another


class LocalPages:
    """The memory of a process as rounds left it here: incremental images, of which the newest counts.

    The images are mapped until ``close``.
    """

    def __init__(self, rounds: Sequence[Path], pid: int, pages: Pages) -> None:
        """``rounds``: the image directories, the oldest first; ``pages``: the pages wanted of them."""
        self.pages = pages
        self._images: list[tuple[Pages, NDArray[np.uint8]]] = []
        for directory in reversed(rounds):
            pagemap = decode((directory / f"pagemap-{pid}.img").read_bytes())
            if len(pagemap.present):
                shape = (len(pagemap.present), PAGE_BYTES)
                file = directory / f"pages-{pagemap.pages_id}.img"
                self._images.append((pagemap.present, np.memmap(file, np.uint8, "r", shape=shape)))

    def page(self, number: int) -> Content:
        """The content of one page. Raises ``MigrationError`` if no round has it."""
        for pages, data in self._images:
            row = int(np.searchsorted(pages, number))
            if row < len(pages) and pages[row] == number:
                content: Content = data[row]
                return content
        raise MigrationError(f"no round has page {number:#x}")

    def runs(self) -> list[tuple[int, Content]]:
        """All wanted pages as (first, contents of neighbours), in the order in which they may be needed.

        What came last goes first, as it was written last; of the oldest image, short stretches go before
        long ones. Contents are those of the files, nothing is copied. Raises ``MigrationError`` if no round
        has a page.
        """
        found: list[tuple[int, Content]] = []
        left = self.pages
        for number, (pages, data) in enumerate(self._images, 1):
            here = np.intersect1d(left, pages, assume_unique=True)
            left = np.setdiff1d(left, here, assume_unique=True)
            oldest = number == len(self._images)
            for first, count in small_first(here, PLACED_PAGES) if oldest else batches_of(here, PLACED_PAGES):
                row = int(np.searchsorted(pages, first))
                found.append((first, data[row : row + count].reshape(-1)))
        if len(left):
            raise MigrationError(f"no round has {len(left)} pages from {left[0]:#x} on")
        return found

    def close(self) -> None:
        """Let go of the images: each is a descriptor, and one that was removed keeps its room until then."""
        self._images.clear()
