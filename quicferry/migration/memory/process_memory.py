"""The private memory of a process, read from outside while it runs or stands, and compared.

Needs no help of the process and no dirty tracking by the kernel: what was read last time is kept
and compared page by page. Reading a running process may catch a page half-written; such a page has
changed by the next reading, and the last reading is of a process that stands.

Files: proc_pid_maps(5), proc_pid_pagemap(5), proc_pid_mem(5).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quicferry.errors import MigrationError
from quicferry.migration.memory.page_runs import without
from quicferry.migration.memory.pagemap import NO_PAGES, PAGE_BYTES, Pages, joined, numbers, runs_of

PRESENT = 1 << 63
SWAPPED = 1 << 62
FILE_OR_SHARED = 1 << 61
PAGEMAP_ENTRY_BYTES = 8
#: Compared at once: two such pieces stay in a core's cache.
CHUNK_PAGES = 64
BULK_PAGES = 512  # where they lie scattered
#: Areas that the kernel provides, and the addresses from which on nothing belongs to the process.
KERNEL_AREAS = ("[vdso]", "[vvar", "[vsyscall]", "[uprobes]")

Data = NDArray[np.uint8]  # one row of PAGE_BYTES for each page


class Snapshot(NamedTuple):
    """Pages and their contents, row by row."""

    pages: Pages
    data: Data

    @classmethod
    def empty(cls) -> Snapshot:
        """A snapshot of no pages."""
        return cls(NO_PAGES, np.empty((0, PAGE_BYTES), np.uint8))


class Listed(NamedTuple):
    """All anonymous pages of a process, and those that may have been written since the last list."""

    pages: Pages
    touched: Pages


class Reading(NamedTuple):
    """What a reading found: all pages that are there, and those that differ from the last reading."""

    pages: Pages
    changed: Snapshot


def private_areas(maps: str, *, of_files: bool = True, readable: bool = True) -> list[tuple[int, int]]:
    """The private areas of a ``maps`` file, as runs of pages (first, count).

    Without ``of_files`` only those that no file is mapped to: what CRIU can restore lazily. ``readable``:
    only those that the process itself can read.
    """
    areas = []
    for line in maps.splitlines():
        words = line.split(maxsplit=5)
        start, end = (int(word, 16) for word in words[0].split("-"))
        name = words[5] if len(words) > 5 else ""
        wanted = words[1][3] == "p" and not name.startswith(KERNEL_AREAS)
        wanted &= words[1][0] == "r" or not readable
        if wanted and (of_files or words[4] == "0"):
            areas.append((start // PAGE_BYTES, (end - start) // PAGE_BYTES))
    return areas


def within(pages: Pages, areas: list[tuple[int, int]]) -> Pages:
    """The pages that lie in the areas, which are sorted and do not overlap."""
    return pages[are_within(pages, areas)]


def are_within(pages: Pages, areas: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Of each page whether it lies in one of the areas, which are sorted and do not overlap."""
    if not areas:
        return np.zeros(len(pages), bool)
    bounds = np.array([bound for first, count in areas for bound in (first, first + count)])
    inside: NDArray[np.bool_] = np.searchsorted(bounds, pages, side="right") % 2 == 1
    return inside


class ProcessMemory:
    """The memory of one process, by its directory in a ``/proc``. A context manager.

    Raises ``MigrationError`` when the process is gone.
    """

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        try:
            self._memory = os.open(proc / "mem", os.O_RDONLY)
            try:
                self._pagemap = os.open(proc / "pagemap", os.O_RDONLY)
            except OSError:
                os.close(self._memory)
                raise
        except OSError as error:
            raise MigrationError(f"the memory of the server cannot be read: {error}") from error

    def close(self) -> None:
        """Close ``mem`` and ``pagemap`` of the process."""
        os.close(self._memory)
        os.close(self._pagemap)

    def __enter__(self) -> ProcessMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def anonymous_pages(self) -> Pages:
        """All private pages that are in no file: what CRIU dumps of private areas."""
        runs = []
        for first, count in private_areas((self._proc / "maps").read_text()):
            raw = os.pread(self._pagemap, count * PAGEMAP_ENTRY_BYTES, first * PAGEMAP_ENTRY_BYTES)
            words = np.frombuffer(raw, np.uint64)
            there = (words & np.uint64(PRESENT | SWAPPED)) != 0
            there &= (words & np.uint64(FILE_OR_SHARED)) == 0
            runs += [(first + start, length) for start, length in runs_of(np.flatnonzero(there))]
        return numbers(runs)

    def without_files(self, pages: Pages) -> Pages:
        """The pages that lie in areas to which no file is mapped."""
        return within(pages, private_areas((self._proc / "maps").read_text(), of_files=False))

    def read(self, pages: Pages) -> Snapshot:
        """The contents of these pages, without those that are gone by now."""
        data = np.empty((len(pages), PAGE_BYTES), np.uint8)
        kept = self._read_scattered(pages, data)
        return Snapshot(pages, data) if kept.all() else Snapshot(pages[kept], data[kept])

    def _read_into(self, rows: Data, first: int) -> int:
        """Read whole pages from ``first`` on into ``rows``; returns how many could be read."""
        try:
            return os.preadv(self._memory, [rows.data], first * PAGE_BYTES) // PAGE_BYTES
        except OSError:  # unmapped since the list was made
            return 0

    def differing(self, known: Snapshot, listed: Listed | None = None, room: Data | None = None) -> Reading:
        """Read the anonymous pages and compare them with the contents known from the last reading.

        ``listed``: the pages there are and those among them that can differ at all, if the kernel has told
        (see ``write_tracking``); only these are read then, into ``room`` if that is given and large enough.
        """
        if listed is not None:
            new = without(listed.pages, known.pages)
            candidates = joined(listed.touched, new)
            if room is not None and len(candidates) <= len(room):
                return self._into_room(listed.pages, candidates, known, room)
            return self._of_listed(listed.pages, candidates, known)
        pages = self.anonymous_pages()
        rows = rows_of(pages, known.pages)
        scratch = np.empty((CHUNK_PAGES, PAGE_BYTES), np.uint8)
        there = np.ones(len(pages), bool)
        changed_pages: list[Pages] = []
        changed_data: list[Data] = []
        row = 0
        for first, count in runs_of(pages):
            for start in range(row, row + count, CHUNK_PAGES):
                size = min(CHUNK_PAGES, row + count - start)
                got = self._read_into(scratch[:size], first + start - row)
                there[start + got : start + size] = False
                differ = _differing(scratch[:got], rows[start : start + got], known.data)
                if len(differ):
                    changed_pages.append(pages[start + differ])
                    changed_data.append(scratch[differ])
            row += count
        if not changed_pages:
            changed = Snapshot.empty()
        else:
            changed = Snapshot(np.concatenate(changed_pages), np.concatenate(changed_data))
        return Reading(pages[there], changed)

    def _into_room(self, pages: Pages, candidates: Pages, known: Snapshot, room: Data) -> Reading:
        """As ``_of_listed``, without a byte of new memory; the reading lasts until the room is used again."""
        data = room[: len(candidates)]
        there = self._read_scattered(candidates, data)
        rows = rows_of(candidates, known.pages)
        differs = np.zeros(len(candidates), bool)
        kept = 0
        for start in range(0, len(candidates), CHUNK_PAGES):
            piece = slice(start, start + CHUNK_PAGES)
            differ = start + _differing(data[piece], rows[piece], known.data)
            differ = differ[there[differ]]
            differs[differ] = True
            if kept != start or len(differ) < CHUNK_PAGES:
                data[kept : kept + len(differ)] = data[differ]
            kept += len(differ)
        gone = candidates[~there]
        changed = Snapshot(candidates[differs], data[:kept])
        return Reading(without(pages, gone) if len(gone) else pages, changed)

    def _read_scattered(self, pages: Pages, data: Data) -> NDArray[np.bool_]:
        """Read pages into rows of ``data``; returns which of them could be read."""
        there = np.ones(len(pages), bool)
        row = 0
        for first, count in runs_of(pages):
            got = self._read_into(data[row : row + count], first)
            there[row + got : row + count] = False
            row += count
        return there

    def _of_listed(self, pages: Pages, candidates: Pages, known: Snapshot) -> Reading:
        """The same for the few pages that the kernel has told, which lie scattered: many runs at once."""
        gone: list[Pages] = [NO_PAGES]
        changed: list[Snapshot] = [Snapshot.empty()]
        for start in range(0, len(candidates), BULK_PAGES):
            wanted = candidates[start : start + BULK_PAGES]
            now = self.read(wanted)
            gone.append(np.setdiff1d(wanted, now.pages, assume_unique=True))
            differ = _differing(now.data, rows_of(now.pages, known.pages), known.data)
            changed.append(Snapshot(now.pages[differ], now.data[differ]))
        found = Snapshot(
            np.concatenate([part.pages for part in changed]), np.concatenate([part.data for part in changed])
        )
        return Reading(without(pages, np.concatenate(gone)), found)


def rows_of(pages: Pages, known: Pages) -> Pages:
    """Where each of some pages is in a sorted list of pages; -1 for one that is not there."""
    if not len(known):
        return np.full(len(pages), -1, np.int64)
    rows = np.searchsorted(known, pages)
    rows[rows == len(known)] = -1
    rows[known[rows] != pages] = -1
    return rows


def _differing(now: Data, rows: Pages, known: Data) -> NDArray[np.intp]:
    """The indices of rows that differ from their row in ``known``; -1 stands for an unknown page."""
    if not len(now):
        return np.empty(0, np.intp)
    if rows[0] >= 0 and rows[-1] - rows[0] == len(rows) - 1 and (rows >= 0).all():
        # neighbours then and now: no copy is needed, and most of the time nothing has changed
        unlike = _words(now) != _words(known[rows[0] : rows[0] + len(rows)])
        return np.flatnonzero(unlike.any(axis=1)) if unlike.any() else np.empty(0, np.intp)
    differ = rows < 0
    known_rows = np.flatnonzero(~differ)
    differ[known_rows] = (_words(now[known_rows]) != _words(known[rows[known_rows]])).any(axis=1)
    return np.flatnonzero(differ)


def _words(data: Data) -> NDArray[np.uint64]:
    """The same contents as 64-bit words, which compare faster."""
    return data.view(np.uint64)


def merged(known: Snapshot, reading: Reading) -> Snapshot:
    """The snapshot after a reading: the pages that are there, changed ones with their new contents.

    ``known`` must not be used any more.
    """
    pages, changed = reading
    if np.array_equal(pages, known.pages):
        # in place: as a rule no page came or went, and all of the memory need not be copied again
        known.data[np.searchsorted(pages, changed.pages)] = changed.data
        return known
    data = np.empty((len(pages), PAGE_BYTES), np.uint8)
    new_rows = np.searchsorted(pages, changed.pages)
    data[new_rows] = changed.data
    old = np.ones(len(pages), bool)
    old[new_rows] = False
    old_rows = np.flatnonzero(old)
    data[old_rows] = known.data[np.searchsorted(known.pages, pages[old_rows])]
    return Snapshot(pages, data)


def unchanged(reading: Reading) -> Pages:
    """The pages of a reading whose contents have not changed."""
    return without(reading.pages, reading.changed.pages)
