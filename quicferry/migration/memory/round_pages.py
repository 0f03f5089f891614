"""Pages that rounds of pre-copy have left at the destination, read from their incremental images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quicferry.errors import MigrationError
from quicferry.migration.criu.page_patch import Patch
from quicferry.migration.memory.batches import batches_of, small_first
from quicferry.migration.memory.page_runs import both, bounds_of, pages_of
from quicferry.migration.memory.pagemap import PAGE_BYTES, Pages, decode, joined, runs_of
from quicferry.migration.memory.process_memory import Snapshot, are_within, rows_of

#: Put in place by one call: 1 MiB, a tenth of a millisecond.
PLACED_PAGES = 256

NOTHING = Snapshot.empty()

Content = NDArray[np.uint8]  # of whole pages, one after another


class _Image(NamedTuple):
    """Pages, their contents, and whether they are in memory of this agent and in no file."""

    pages: Pages
    data: NDArray[np.uint8]
    held: bool


def read_image(path: Path) -> bytes:
    """What a small image file holds. Raises ``MigrationError``."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise MigrationError(f"{path.name} was received and cannot be read: {error.strerror}") from error


def snapshot_of(pages: Pages, content: memoryview) -> Snapshot:
    """The pages of a round and their contents, of which nothing is copied. Raises ``MigrationError``."""
    if len(content) != len(pages) * PAGE_BYTES:
        raise MigrationError(f"a round of {len(pages)} pages has {len(content)} bytes of them")
    return Snapshot(pages, np.frombuffer(content, np.uint8).reshape(-1, PAGE_BYTES))


def newest_of(rounds: Sequence[Snapshot], pages: Pages) -> Snapshot:
    """A copy of these pages, each of its newest round. Raises ``MigrationError`` if no round has one.

    ``rounds``: the oldest first.
    """
    data = np.empty((len(pages), PAGE_BYTES), np.uint8)
    found = np.zeros(len(pages), bool)
    for each in rounds:
        rows = rows_of(pages, each.pages)
        here = rows >= 0
        if here.all():
            np.take(each.data, rows, axis=0, out=data, mode="clip")  # without a copy between
        elif here.any():
            data[here] = each.data[rows[here]]
        found |= here
    if not found.all():
        raise MigrationError(f"no round has {int((~found).sum())} pages from {pages[~found][0]:#x} on")
    return Snapshot(pages, data)


class NewestPages:
    """The pages that the last round lists, by their place in that list, as the newest round has them.

    What differences from them refer to: the source has them in the same order (``page_delta.KnownPages``).
    """

    def __init__(self, rounds: Sequence[Snapshot], pages: Pages) -> None:
        self.pages = pages
        self._rounds = list(rounds)

    def __len__(self) -> int:
        return len(self.pages)

    def __getitem__(self, rows: Pages) -> Content:
        return newest_of(self._rounds, self.pages[rows]).data

    def patched(self, data: bytes | bytearray) -> memoryview:
        """The pages that a patch makes of these and the new ones in it, sorted. Raises ``MigrationError``."""
        patch = Patch(data)
        content = patch.restored(self)
        if len(patch.pages):
            pages = np.concatenate((self.pages[patch.rows], patch.pages))
            content = np.concatenate((content, patch.data))[np.argsort(pages)]
        return content.reshape(-1).data


class LocalPages:
    """The memory of a process as rounds left it here: incremental images, of which the newest counts.

    The images are mapped until ``close``.
    """

    def __init__(
        self,
        rounds: Sequence[Path | Snapshot],
        pid: int,
        pages: Pages,
        newest: Snapshot = NOTHING,
        oldest: Snapshot = NOTHING,
    ) -> None:
        """``rounds``: the oldest first, each an image directory, or its pages in memory that outlives this
        agent; ``pages``: the pages wanted of them.

        ``newest`` and ``oldest``: what is newer or older than all of these, and in no file.
        """
        self.pages = pages
        self._images = [_Image(*newest, held=True)]
        for directory in reversed(rounds):
            if isinstance(directory, Snapshot):
                self._images.append(_Image(*directory, held=False))
                continue
            pagemap = decode((directory / f"pagemap-{pid}.img").read_bytes())
            if len(pagemap.present):
                shape = (len(pagemap.present), PAGE_BYTES)
                file = directory / f"pages-{pagemap.pages_id}.img"
                self._images.append(
                    _Image(pagemap.present, np.memmap(file, np.uint8, "r", shape=shape), held=False)
                )
        self._images.append(_Image(*oldest, held=True))

    @property
    def held(self) -> Pages:
        """Those of ``pages`` that an image in memory has: a successor of this agent may not find them."""
        held = [image.pages for image in self._images if image.held]
        return pages_of(both(bounds_of(self.pages), bounds_of(joined(*held))))

    def page(self, number: int) -> Content:
        """The content of one page. Raises ``MigrationError`` if no round has it."""
        for pages, data, _ in self._images:
            row = int(np.searchsorted(pages, number))
            if row < len(pages) and pages[row] == number:
                content: Content = data[row]
                return content
        raise MigrationError(f"no round has page {number:#x}")

    def runs(self) -> list[tuple[int, Content]]:
        """All wanted pages as (first, contents of neighbours), in the order in which they may be needed.

        What is in memory goes first (``held``). Of the rounds, what came last does, as it was written last;
        of the oldest round, short stretches go before long ones. Contents are those of the files, nothing is
        copied. Raises ``MigrationError`` if no round has a page.
        """
        from_memory: list[tuple[int, Content]] = []
        from_files: list[tuple[int, Content]] = []
        left = self.pages
        oldest_file = max((number for number, image in enumerate(self._images) if not image.held), default=-1)
        for number, (pages, data, held) in enumerate(self._images):
            there = are_within(left, runs_of(pages))
            here, left = left[there], left[~there]
            cut = small_first if number == oldest_file else batches_of
            found = from_memory if held else from_files
            runs = cut(here, PLACED_PAGES)
            rows = np.searchsorted(pages, [first for first, _ in runs]).tolist()
            found += [
                (first, data[row : row + count].reshape(-1))
                for (first, count), row in zip(runs, rows, strict=True)
            ]
        if len(left):
            raise MigrationError(f"no round has {len(left)} pages from {left[0]:#x} on")
        return from_memory + from_files

    def close(self) -> None:
        """Let go of the images: each is a descriptor, and one that was removed keeps its room until then."""
        self._images.clear()
