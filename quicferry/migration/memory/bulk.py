"""Which memory of a process is bulk data, as far as one can see: it may come last when the process moves.

A process works with many small stretches of memory, and with objects that point at each other. A long stretch
of pages that hold no objects is data which it keeps: buffers, caches, the memory that a run adds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quicferry.migration.memory.pagemap import Pages, runs_of
from quicferry.migration.memory.process_memory import CHUNK_PAGES, Snapshot, rows_of

#: A stretch of so many pages, 1 MiB, is long.
LONG_PAGES = 256
#: A page with so many words of 512 that could be pointers or small numbers holds objects. In random bytes
#: there is none, of a page that a Python server works with two thirds are.
OBJECT_WORDS = 32
MARGIN_PAGES = 4  # beside pages with objects are used as they are


def bulk_of(changed: Snapshot, known: Pages) -> Pages:
    """The pages of a reading that are new and bulk data as far as one can see: what may come last.

    They lie in a long stretch of new pages, and neither they nor their next neighbours hold objects. A heap
    grows around bulk data and into its gaps: those pages would be waited for one by one.
    """
    new = np.flatnonzero(rows_of(changed.pages, known) < 0)
    pages = changed.pages[new]
    bulk = np.zeros(len(new), bool)
    start = 0
    for _, count in runs_of(pages):
        if count >= LONG_PAGES:
            row = int(new[start])  # neighbours, in the reading as well
            objects = np.flatnonzero(_holds_objects(changed.data[row : row + count]))
            bulk[start : start + count] = True
            for near in range(-MARGIN_PAGES, MARGIN_PAGES + 1):
                bulk[start + np.clip(objects + near, 0, count - 1)] = False
        start += count
    start, rest = 0, np.flatnonzero(~bulk)
    for _, count in runs_of(pages[rest]):
        if count >= LONG_PAGES:
            bulk[rest[start : start + count]] = True
        start += count
    return pages[bulk]


def _holds_objects(data: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which pages have some words that could be pointers or small numbers: the highest 16 bits are zero."""
    found = np.empty(len(data), bool)
    for start in range(0, len(data), CHUNK_PAGES):
        highest = data[start : start + CHUNK_PAGES].view(np.uint16)[:, 3::4]
        found[start : start + CHUNK_PAGES] = (highest == 0).sum(axis=1) >= OBJECT_WORDS
    return found
