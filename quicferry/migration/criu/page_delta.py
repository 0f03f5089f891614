"""Pages as differences from pages that the destination has: a record's data in the kind ``delta``.

A page that is much like one of the base image differs from it in a few reference counts and pointers. Its
exclusive or with that page is nearly all zeros, which pack to a fiftieth. (QEMU sends changed pages so, with
an encoding of its own: XBZRLE, docs/devel/migration.)

The data is the number of pages (4 bytes, big-endian), then for each the row of its page in the base image
(8 bytes, little-endian; -1: none, the page crosses as it is), then the pages.
"""

from __future__ import annotations

import struct
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from quicferry.errors import MigrationError
from quicferry.migration.order import CHUNK_BYTES

PAGE_BYTES = 4096
COUNT = struct.Struct(">I")
ROW_BYTES = 8
DELTA_PAGES = CHUNK_BYTES // (PAGE_BYTES + ROW_BYTES) - 1  # in one record
#: A page that differs in more words of 64 bits packs better as it is.
MOST_UNLIKE_WORDS = PAGE_BYTES // 8 // 2
MOST_BYTES = CHUNK_BYTES  # of a record's data


class KnownPages(Protocol):
    """The pages that the destination has: an array with a row for each, or what gives such rows."""

    def __len__(self) -> int:
        """How many rows there are."""

    def __getitem__(self, rows: NDArray[np.int64], /) -> NDArray[np.uint8]:
        """The pages in these rows."""


def delta(rows: NDArray[np.int64], pages: NDArray[np.uint8], base: NDArray[np.uint8]) -> bytes:
    """The data of a record for these pages; ``rows``: of ``base``, which has one row for each page."""
    rows = rows.copy()
    differences = pages.copy()
    known = np.flatnonzero(rows >= 0)
    against = pages[known] ^ base[rows[known]]
    alike = (against.view(np.uint64) != 0).sum(axis=1) <= MOST_UNLIKE_WORDS
    differences[known[alike]] = against[alike]
    rows[known[~alike]] = -1
    return COUNT.pack(len(rows)) + rows.astype("<i8").tobytes() + differences.tobytes()


def restored(data: bytes | bytearray, base: KnownPages) -> bytes:
    """The pages of a record. Raises ``MigrationError`` for data that cannot be one's."""
    count = COUNT.unpack_from(data)[0] if len(data) >= COUNT.size else -1
    if len(data) != COUNT.size + count * (ROW_BYTES + PAGE_BYTES):
        raise MigrationError("the checkpoint is damaged: differences of pages that are cut off")
    rows = np.frombuffer(data, "<i8", count, COUNT.size)
    pages = (
        np.frombuffer(data, np.uint8, offset=COUNT.size + count * ROW_BYTES).reshape(-1, PAGE_BYTES).copy()
    )
    known = rows >= 0
    if known.any() and rows.max() >= len(base):
        raise MigrationError(
            "the checkpoint is damaged: differences from pages that are not in the base image"
        )
    pages[known] ^= base[rows[known]]
    return pages.tobytes()
