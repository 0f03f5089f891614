"""Pages as changes of pages that the destination has in memory: a record's data in the kind ``patch``.

A page that a server has changed since its twin was read differs in five words of 512 in the median (reference
counts, links of the garbage collector). A patch carries these words and where they are, some 50 bytes a page,
and neither end ever touches the rest: nothing is packed, unpacked, written or checked but what has changed.
``page_delta`` is for pages that CRIU reads from files, which need the whole page.

The data is three counts (4 bytes each, big-endian): pages that are alike, their unlike words, whole pages.
Then, in the byte order of x86: the row of each page that is alike (4 bytes) and how many of its words differ
(2 bytes), where in its page each of these words is (2 bytes), the exclusive or of each (8 bytes); the numbers
of the whole pages (8 bytes each), and their contents.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from quicferry.errors import MigrationError
from quicferry.migration.criu.page_delta import KnownPages
from quicferry.migration.order import CHUNK_BYTES

PAGE_BYTES = 4096
PAGE_WORDS = PAGE_BYTES // 8
COUNTS = struct.Struct(">III")
#: Compared at once: two such pieces stay in a core's cache.
PIECE_PAGES = 32
#: A page with more unlike words than this is smaller as a whole: a word of a patch takes 10 bytes.
MOST_UNLIKE_WORDS = PAGE_WORDS * 3 // 4
PATCH_PAGES = CHUNK_BYTES // (PAGE_BYTES + 16) - 1  # in one record, if none of them is alike

Words = NDArray[np.uint64]  # a row of PAGE_WORDS for each page


class Patch:
    """A decoded patch. Raises ``MigrationError`` for data that cannot be one."""

    def __init__(self, data: bytes | bytearray) -> None:
        if len(data) < COUNTS.size:
            raise MigrationError("the checkpoint is damaged: a patch is cut off")
        alike, unlike_words, whole = COUNTS.unpack_from(data)
        parts = ("<u4", alike), ("<u2", alike), ("<u2", unlike_words), ("<u8", unlike_words), ("<i8", whole)
        size = COUNTS.size + sum(np.dtype(kind).itemsize * count for kind, count in parts)
        if len(data) != size + whole * PAGE_BYTES:
            raise MigrationError("the checkpoint is damaged: a patch is cut off")
        found = []
        offset = COUNTS.size
        for kind, count in parts:
            found.append(np.frombuffer(data, kind, count, offset))
            offset += found[-1].nbytes
        self.rows, self._counts, self._positions, self._values, self.pages = found
        self.data = np.frombuffer(data, np.uint8, offset=offset).reshape(-1, PAGE_BYTES)
        if int(self._counts.sum()) != unlike_words or (self._positions >= PAGE_WORDS).any():
            raise MigrationError("the checkpoint is damaged: a patch does not say where its words are")

    def apply(self, base: Words) -> None:
        """Change the rows of ``base`` that are alike. Raises ``MigrationError`` when it has no such row."""
        self._check_rows(len(base))
        self._change(base, self.rows.astype(np.int64))

    def restored(self, base: KnownPages) -> NDArray[np.uint8]:
        """Copies of the rows of ``base`` that are alike, changed. Raises ``MigrationError`` as ``apply``."""
        self._check_rows(len(base))
        rows = self.rows.astype(np.int64)
        pages = base[rows]
        self._change(pages.view(np.uint64), np.arange(len(rows)))
        return pages

    def _check_rows(self, count: int) -> None:
        if len(self.rows) and int(self.rows.max()) >= count:
            raise MigrationError("the checkpoint is damaged: a patch of a page that is not in the base image")

    def _change(self, base: Words, rows: NDArray[np.int64]) -> None:
        """Change words of these rows."""
        flat = np.repeat(rows * PAGE_WORDS, self._counts) + self._positions
        base.reshape(-1)[flat] ^= self._values


def patches(
    pages: NDArray[np.int64],
    data: NDArray[np.uint8],
    rows: NDArray[np.int64],
    base: NDArray[np.uint8],
    chosen: NDArray[np.intp] | None = None,
) -> Iterator[bytes]:
    """The data of records that make ``data`` of ``base``. ``rows``: of each page in ``base``, -1: none.

    ``chosen``: which of the pages, by their place in ``pages``, in this order; None: all.
    """
    count = len(pages) if chosen is None else len(chosen)
    for start in range(0, count, PATCH_PAGES):
        # some at a time: a copy of all of them would be memory that is touched for the first time
        part = slice(start, start + PATCH_PAGES) if chosen is None else chosen[start : start + PATCH_PAGES]
        yield _patch(pages[part], data[part].view(np.uint64), rows[part], base.view(np.uint64))


def _patch(pages: NDArray[np.int64], now: Words, rows: NDArray[np.int64], base: Words) -> bytes:
    """The data of one record."""
    whole = rows < 0
    counts: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int64]] = []
    values: list[Words] = []
    for start in range(0, len(pages), PIECE_PAGES):
        here = np.flatnonzero(~whole[start : start + PIECE_PAGES]) + start
        difference = now[here]
        difference ^= base[rows[here]]
        unlike = (difference != 0).sum(axis=1)
        if (far := unlike > MOST_UNLIKE_WORDS).any():
            whole[here[far]] = True
            difference, unlike = difference[~far], unlike[~far]
        flat = np.flatnonzero(difference)
        counts.append(unlike)
        positions.append(flat % PAGE_WORDS)
        values.append(difference.reshape(-1)[flat])
    places = np.concatenate(positions)
    return b"".join(
        (
            COUNTS.pack(int((~whole).sum()), len(places), int(whole.sum())),
            rows[~whole].astype("<u4").tobytes(),
            np.concatenate(counts).astype("<u2").tobytes(),
            places.astype("<u2").tobytes(),
            np.concatenate(values).astype("<u8").tobytes(),
            pages[whole].astype("<i8").tobytes(),
            now[whole].tobytes(),
        )
    )
