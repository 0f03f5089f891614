"""The base image at the destination of a move: in memory, changed by what crosses, put in place from there.

It lies in no file: nobody else can change it between the moment at which its digest was checked and the one
at which it is put in place. So it needs no second check, and what has changed is never written, read back and
summed again. Only what CRIU reads itself, private pages of mapped files, is written to where the first round
would be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quicferry.errors import MigrationError
from quicferry.migration.criu.page_patch import PAGE_WORDS, Patch
from quicferry.migration.memory.base_image import BaseImage
from quicferry.migration.memory.pagemap import NO_PAGES, PAGE_BYTES, Pages
from quicferry.migration.memory.process_memory import Snapshot

#: Pages that are not in the base image or unlike it, and are kept in memory all the same. More of them are
#: files, as rounds of pre-copy are.
MOST_NEW_PAGES = 2048


class PatchedBase:
    """A base image that the patches of a move change. Made before the downtime: memory is claimed here."""

    def __init__(self, base: BaseImage) -> None:
        self.sha256 = base.sha256
        self.original = base.snapshot  # what differences are from, never changed
        self._of_files = base.of_files
        self._data = base.snapshot.data.copy()
        self._new_pages: list[Pages] = [NO_PAGES]
        self._new_data = np.ones((MOST_NEW_PAGES, PAGE_BYTES), np.uint8)  # not zeros: those are claimed late
        self._news = 0

    def apply(self, data: bytes | bytearray) -> None:
        """Take in the data of one patch. Raises ``MigrationError`` for what cannot be one."""
        patch = Patch(data)
        patch.apply(self._data.view(np.uint64).reshape(-1, PAGE_WORDS))
        end = self._news + len(patch.pages)
        if end > MOST_NEW_PAGES + len(self.original.pages):
            raise MigrationError(f"the checkpoint has {end} new pages in its patches")
        if end > len(self._new_data):  # pages of the base image are unlike it
            more = np.empty((MOST_NEW_PAGES, PAGE_BYTES), np.uint8)
            self._new_data = np.concatenate((self._new_data, more))
        self._new_data[self._news : end] = patch.data
        self._new_pages.append(patch.pages)
        self._news = end

    def parts(self) -> tuple[Snapshot, Snapshot]:
        """The new pages, and those of the base image; one that is in both is to be taken from the first."""
        pages = np.concatenate(self._new_pages)
        data: NDArray[np.uint8] = self._new_data[: self._news]
        if (np.diff(pages) <= 0).any():
            order = np.argsort(pages)
            pages, data = pages[order], data[order]
        return Snapshot(pages, data), Snapshot(self.original.pages, self._data)

    def of_files(self) -> Snapshot:
        """The pages of the base image that CRIU reads itself, as far as that was known beforehand."""
        return self.of(self._of_files)

    def of(self, pages: Pages) -> Snapshot:
        """Some pages of the base image."""
        rows = np.searchsorted(self.original.pages, pages)
        return Snapshot(pages, self.original.data[rows])

    def merged(self) -> Snapshot:
        """All pages in one, for a kernel to which they cannot be given after the restore."""
        new, base = self.parts()
        kept = ~np.isin(base.pages, new.pages)
        pages = np.concatenate((base.pages[kept], new.pages))
        order = np.argsort(pages)
        return Snapshot(pages[order], np.concatenate((base.data[kept], new.data))[order])
