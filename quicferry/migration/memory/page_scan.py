"""``PAGEMAP_SCAN``: the kernel lists the pages of a process that are of a kind, many in one call (Linux 6.7).

Interface: Documentation/admin-guide/mm/pagemap.rst; the numbers are those of ``linux/fs.h``.
"""

from __future__ import annotations

import fcntl
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quicferry.migration.memory.page_runs import Bounds, bounds_of_runs
from quicferry.migration.memory.pagemap import PAGE_BYTES

PAGEMAP_SCAN = 0xC0606610
#: size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, any-of mask, returned
SCAN = struct.Struct("<12Q")
WP_MATCHING = 1
WPALLOWED, WRITTEN, OF_FILE, PRESENT, SWAPPED, ZERO = 1, 2, 4, 8, 16, 32
REGIONS = 8192  # answers of one call; what is more comes with the next
Regions = NDArray[np.void]
REGION = np.dtype([("start", "<u8"), ("end", "<u8"), ("categories", "<u8")])


class Wanted(NamedTuple):
    """Which pages are listed, and what is told of them, as the kernel has it."""

    inverted: int
    mask: int
    any_of: int
    told: int


def anonymous(*, told: int = 0) -> Wanted:
    """Pages that are there and are of no file; of their categories ``told`` are told."""
    return Wanted(OF_FILE, OF_FILE, PRESENT | SWAPPED, told)


def scan(
    pagemap: int, first: int, end: int, wanted: Wanted | None = None, *, protect: bool = False
) -> Iterator[Regions]:
    """Yield the regions of the pages from ``first`` to before ``end``, by a descriptor of ``pagemap``.

    ``protect``: have the kernel note from now on which of them are written. Raises ``OSError``.
    """
    start, stop = first * PAGE_BYTES, end * PAGE_BYTES
    flags = WP_MATCHING if protect else 0
    while start < stop:
        regions = np.empty(REGIONS, REGION)
        place = regions.ctypes.data
        masks = wanted or anonymous()
        request = bytearray(SCAN.pack(SCAN.size, flags, start, stop, 0, place, REGIONS, 0, *masks))
        count = fcntl.ioctl(pagemap, PAGEMAP_SCAN, request)
        yield regions[:count]
        if count < REGIONS:  # then it came to the end, even if walk_end has an earlier value
            return
        start = SCAN.unpack(request)[4]


def bounds_of_regions(regions: Regions) -> Bounds:
    """The pages of regions; the kernel may tell of a page twice where an answer of its own was full."""
    size = np.uint64(PAGE_BYTES)
    first, end = (regions["start"] // size).astype(np.int64), (regions["end"] // size).astype(np.int64)
    return bounds_of_runs(first, end - first)
