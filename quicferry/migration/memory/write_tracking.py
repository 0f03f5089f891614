"""Which pages of a process were written, told by the kernel (Linux 6.7 and later, no soft-dirty bits needed).

A userfaultfd of the process in the mode "asynchronous write protection" has the kernel note first writes to
pages, without stopping anybody: a write to a page that is protected costs the process one minor fault
(about 1 µs). ``PAGEMAP_SCAN`` tells which pages were written and protects them anew in one step.

A userfaultfd is about the memory of the process that made it. So the server makes one when it is asked
(``userfault_offer``; the order ``Track`` of ``control``), and all else is done from outside. A server that
does not answer, or a kernel that cannot do it, is no error to an engine: it compares memory instead.

Interfaces: ioctl_userfaultfd(2), Documentation/admin-guide/mm/pagemap.rst (PAGEMAP_SCAN).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quicferry.errors import Unsupported
from quicferry.migration.memory.page_runs import (
    Bounds,
    both,
    bounds_of_areas,
    either,
    minus,
    pages_of,
)
from quicferry.migration.memory.page_scan import (
    REGION,
    WPALLOWED,
    WRITTEN,
    ZERO,
    Regions,
    anonymous,
    bounds_of_regions,
    scan,
)
from quicferry.migration.memory.pagemap import PAGE_BYTES
from quicferry.migration.memory.process_memory import Listed, private_areas

# linux/userfaultfd.h
UFFD_API = 0xAA
UFFDIO_API = 0xC018AA3F
UFFDIO_REGISTER = 0xC020AA00
API = struct.Struct("<QQQ")  # version, features, ioctls
REGISTER = struct.Struct("<QQQQ")  # start, length, mode, ioctls
WP_UNPOPULATED, WP_ASYNC = 1 << 13, 1 << 15
MODE_WP = 1 << 1

TRACKED = anonymous(told=WPALLOWED | WRITTEN)
#: Of the last scan, which is the list of pages that a dump has (``hidden_memory``).
LISTED = anonymous(told=WPALLOWED | WRITTEN | ZERO)


class WriteTracker:
    """Tells what a process has written. Only writes count that came after the first ``scan``.

    ``close`` ends it, and the process is as it was before.
    """

    def __init__(self, proc: Path, descriptor: int) -> None:
        """``descriptor``: a userfaultfd of that process; it is closed with this object.

        Raises ``Unsupported``.
        """
        self._proc = proc
        self._descriptor = descriptor
        self._pagemap = -1
        self.last_regions: Regions | None = None  # of all anonymous pages, by the last scan
        try:
            fcntl.ioctl(descriptor, UFFDIO_API, bytearray(API.pack(UFFD_API, WP_UNPOPULATED | WP_ASYNC, 0)))
            self._pagemap = os.open(proc / "pagemap", os.O_RDONLY)
        except OSError as error:
            self.close()
            raise Unsupported(f"the kernel does not tell what a process writes: {error}") from error

    def close(self) -> None:
        """Close the descriptors; the kernel then tracks nothing any more."""
        for descriptor in (self._descriptor, self._pagemap):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._pagemap = -1

    def scan(self, *, last: bool = False, aside: Sequence[tuple[int, int]] = ()) -> Listed:
        """The pages written since the last scan; what cannot be known counts as written.

        ``last``: no scan follows, so nothing is protected anew and no new area is tracked (its pages count as
        written): a few calls for the whole process instead of two for each area. ``aside``: runs of pages
        (first, count), sorted, which are left out of a last scan where they were not written. Raises
        ``Unsupported`` when the kernel cannot tell, or the process is gone.
        """
        found = []
        try:
            maps = (self._proc / "maps").read_text()
            areas = private_areas(maps)
            if last:
                # with what the process itself cannot read: CRIU lists that, too
                end = max((first + count for first, count in private_areas(maps, readable=False)), default=0)
                found += list(scan(self._pagemap, 0, end, LISTED))
            else:
                for first, count in areas:
                    self._register(first, count)
                    found += list(scan(self._pagemap, first, first + count, TRACKED, protect=True))
        except OSError as error:
            raise Unsupported(f"the kernel does not tell what the process has written: {error}") from error
        regions = np.concatenate(found) if found else np.empty(0, REGION)
        known = regions["categories"] & np.uint64(WPALLOWED | WRITTEN) == np.uint64(WPALLOWED)
        touched = bounds_of_regions(regions[~known])
        if not last:
            return Listed(pages_of(bounds_of_regions(regions)), pages_of(touched))
        self.last_regions = regions
        here = bounds_of_areas(areas)
        pages = both(either(unwritten(regions[known], aside), touched), here)
        return Listed(pages_of(pages), pages_of(both(touched, here)))

    def _register(self, first: int, count: int) -> None:
        """Track an area; areas may have come since the last time."""
        request = bytearray(REGISTER.pack(first * PAGE_BYTES, count * PAGE_BYTES, MODE_WP, 0))
        try:
            fcntl.ioctl(self._descriptor, UFFDIO_REGISTER, request)
        except OSError as error:
            # gone since the list was made, or an area that cannot be watched: written, as far as is known
            if error.errno not in (errno.EINVAL, errno.ENOMEM, errno.EBUSY, errno.EPERM):
                raise


def unwritten(regions: Regions, aside: Sequence[tuple[int, int]]) -> Bounds:
    """The pages of regions without those that lie in ``aside``."""
    return minus(bounds_of_regions(regions), bounds_of_areas(list(aside)))
