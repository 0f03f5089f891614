"""The memory images of CRIU: which page is where. Pure functions on bytes and arrays.

A memory image is two files. ``pagemap-PID.img`` lists runs of pages with flags, sorted by address;
``pages-N.img`` holds the data of the runs that are PRESENT, in the same order and nothing between.
A run that is PARENT is in the image that the link ``parent`` in the same directory leads to; a run
that is only LAZY is nowhere: a page server has it. Format: CRIU's ``images/pagemap.proto`` and
``criu/include/magic.h``; read and written here so that a kernel without dirty tracking can have
incremental images, too (docs/adr/0008).

Sets of pages are sorted arrays of page numbers (address divided by ``PAGE_BYTES``).
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.ma  # np.unique loads it when it is called first: 15 ms, which would be of a downtime
from numpy.typing import NDArray

from quicferry.errors import MigrationError
from quicferry.migration.criu import protobuf

PAGE_BYTES = 4096
MAGIC = struct.pack("<II", 0x54564319, 0x56084025)  # IMG_COMMON_MAGIC, PAGEMAP_MAGIC
SIZE = struct.Struct("<I")
#: A run as it is written here, all of one length, so that thousands are read and written at once: varints
#: with more bytes than they need.
ADDRESS_BYTES, COUNT_BYTES = 9, 5
MESSAGE = np.dtype(
    [
        ("size", "<u4"),
        *(("address_key", "u1"), ("address", "u1", ADDRESS_BYTES)),
        *(("short_key", "u1"), ("short", "u1", COUNT_BYTES)),
        *(("flags_key", "u1"), ("flags", "u1")),
        *(("count_key", "u1"), ("count", "u1", COUNT_BYTES)),
    ]
)
KEYS = (("address_key", 1), ("short_key", 2), ("flags_key", 4), ("count_key", 5))

#: What an image may describe: 57 bits of addresses (five-level paging), and 64 GiB of pages.
MOST_ADDRESS = 1 << 57
MOST_PAGES = 1 << 24

Pages = NDArray[np.int64]  # sorted page numbers
NO_PAGES: Pages = np.empty(0, np.int64)


class Flag(enum.IntFlag):
    """Where the data of a run is (``PE_…`` in CRIU)."""

    PARENT = 1
    LAZY = 2
    PRESENT = 4


#: Of a page in the parent image that may come later.
AS_YOU_LIKE = Flag.PARENT | Flag.LAZY
FLAGS = {flags: Flag(flags) for flags in range(8)}  # made once: it takes a microsecond


class PagemapEntry(NamedTuple):
    """A run of pages: the first page number, how many, and the flags."""

    first: int
    length: int
    flags: Flag


class PageMap(NamedTuple):
    """A decoded pagemap image."""

    pages_id: int  # the N of pages-N.img
    entries: list[PagemapEntry]

    @property
    def pages(self) -> Pages:
        """All pages, wherever their data is."""
        return self._pages(lambda _: True)

    @property
    def present(self) -> Pages:
        """The pages whose data is in this image, in the order of the data."""
        return self._pages(lambda flags: Flag.PRESENT in flags)

    @property
    def eager(self) -> Pages:
        """Those of ``present`` that must be there before the process runs."""
        return self._pages(lambda flags: Flag.PRESENT in flags and Flag.LAZY not in flags)

    @property
    def inherited(self) -> Pages:
        """The pages that CRIU itself reads from the parent image."""
        return self._pages(lambda flags: flags == Flag.PARENT)

    @property
    def optional(self) -> Pages:
        """The pages whose data is in the parent image and may come later; CRIU itself knows no such."""
        return self._pages(lambda flags: flags == AS_YOU_LIKE)

    @property
    def absent(self) -> Pages:
        """The pages whose data is nowhere in the images: a page server has it."""
        return self._pages(lambda flags: flags == Flag.LAZY)

    def _pages(self, wanted: Callable[[Flag], bool]) -> Pages:
        """The pages of all entries whose flags are wanted."""
        return numbers([(first, length) for first, length, flags in self.entries if wanted(flags)])


def numbers(runs: list[tuple[int, int]]) -> Pages:
    """The page numbers of runs (first, count), in the order given."""
    if not runs:
        return NO_PAGES
    firsts, counts = np.array(runs, np.int64).T
    return spread(firsts, counts)


def spread(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> Pages:
    """The page numbers of runs that are given as two arrays, in the order given."""
    ends = np.cumsum(counts)
    pages: Pages = np.repeat(firsts - (ends - counts), counts)
    pages += np.arange(len(pages))
    return pages


def joined(*sets: Pages) -> Pages:
    """The pages of several sets, sorted, each once: ``np.union1d`` takes 30 ms for 280 MiB, this 0.6."""
    pages = np.concatenate((NO_PAGES, *sets))
    pages.sort(kind="stable")  # sorted stretches are merged
    return pages[np.flatnonzero(np.diff(pages, prepend=-1))]


def runs_of(pages: Pages) -> list[tuple[int, int]]:
    """The runs (first, count) of a sorted set of pages; the reverse of ``numbers``."""
    if not len(pages):
        return []
    breaks = np.flatnonzero(np.diff(pages) != 1) + 1
    starts = np.concatenate(([0], breaks))
    ends = np.concatenate((breaks, [len(pages)]))
    return list(zip(pages[starts].tolist(), (ends - starts).tolist(), strict=True))


def entries_of(**kinds: Pages) -> list[PagemapEntry]:
    """Runs of several disjoint sets, in order of address.

    The names are combinations of flags in lower case: ``entries_of(present=a, parent=b, lazy=c,
    lazy_present=d)``. Neighbouring pages share a run only if their flags agree.
    """
    found: list[PagemapEntry] = []
    for kind, pages in kinds.items():
        flags = _flags(kind)
        found += [PagemapEntry(first, count, flags) for first, count in runs_of(pages)]
    return sorted(found)


def _flags(kind: str) -> Flag:
    """The flags that the words of a name stand for."""
    flags = Flag(0)
    for word in kind.split("_"):
        flags |= Flag[word.upper()]
    return flags


def _message(body: bytes) -> bytes:
    """A protobuf message with its size before it."""
    return SIZE.pack(len(body)) + body


def encode(pagemap: PageMap) -> bytes:
    """A pagemap image, for old and new CRIU: the number of pages is in both fields that may hold it."""
    head = MAGIC + _message(protobuf.number(1, pagemap.pages_id))
    if not pagemap.entries:
        return head
    runs = np.array(pagemap.entries, np.int64)
    messages = np.empty(len(runs), MESSAGE)
    messages["size"] = MESSAGE.itemsize - SIZE.size
    for key, field in KEYS:
        messages[key] = field << 3
    messages["address"] = _varints(runs[:, 0] * PAGE_BYTES, ADDRESS_BYTES)
    # the only one before CRIU 4.2
    messages["short"] = _varints(np.minimum(runs[:, 1], 2**32 - 1), COUNT_BYTES)
    messages["flags"] = runs[:, 2]
    messages["count"] = _varints(runs[:, 1], COUNT_BYTES)
    return head + messages.tobytes()


def _varints(values: NDArray[np.int64], size: int) -> NDArray[np.uint8]:
    """Numbers as varints of that many bytes each, one row for each: longer than need be, as is permitted."""
    shifted = values[:, None] >> (7 * np.arange(size, dtype=np.int64))
    groups: NDArray[np.uint8] = (shifted & 0x7F).astype(np.uint8)
    groups[:, :-1] |= 0x80
    return groups


def _messages(image: bytes) -> Iterator[dict[int, int]]:
    """The number fields of each message of an image."""
    position = len(MAGIC)
    while position < len(image):
        if position + SIZE.size > len(image):
            raise IndexError("a message without its size")
        (size,) = SIZE.unpack_from(image, position)
        position += SIZE.size
        if position + size > len(image):
            raise IndexError(f"a message of {size} bytes in {len(image) - position}")
        fields = protobuf.fields(image[position : position + size])
        yield {number: value for number, value in fields if isinstance(value, int)}
        position += size


def decode(image: bytes) -> PageMap:
    """Read a pagemap image. Raises ``MigrationError`` when it is none or damaged."""
    if not image.startswith(MAGIC):
        raise MigrationError("not a pagemap image of CRIU")
    try:
        messages = _messages(image)
        head = next(messages, {})
        entries = _entries_written_here(image)
        if entries is None:
            entries = [_entry(fields) for fields in messages]
        pages = sum(entry.length for entry in entries)
        if pages > MOST_PAGES:
            raise ValueError(f"{pages} pages are more than {MOST_PAGES}")
    except (IndexError, ValueError, KeyError) as error:
        raise MigrationError(f"a pagemap image of CRIU is damaged: {error}") from error
    return PageMap(head.get(1, 0), entries)


def _entries_written_here(image: bytes) -> list[PagemapEntry] | None:
    """The runs of an image that ``encode`` has written; None for any other, which is read step by step."""
    start = len(MAGIC) + SIZE.size
    start += SIZE.unpack_from(image, len(MAGIC))[0] if len(image) >= start else 0
    if len(image) <= start or (len(image) - start) % MESSAGE.itemsize:
        return None
    found = np.frombuffer(image, MESSAGE, offset=start)
    if not (found["size"] == MESSAGE.itemsize - SIZE.size).all():
        return None
    if (
        not all((found[key] == field << 3).all() for key, field in KEYS)
        or (found["flags"] > max(FLAGS)).any()
    ):
        return None
    addresses, counts = _numbers_of(found["address"]), _numbers_of(found["count"])
    if addresses is None or counts is None or (addresses % PAGE_BYTES).any() or not counts.all():
        return None
    if (addresses + counts * PAGE_BYTES > MOST_ADDRESS).any():
        return None
    runs = zip((addresses // PAGE_BYTES).tolist(), counts.tolist(), found["flags"].tolist(), strict=True)
    return [PagemapEntry(first, count, FLAGS[flags]) for first, count, flags in runs]


def _numbers_of(groups: NDArray[np.uint8]) -> NDArray[np.int64] | None:
    """The reverse of ``_varints``; None where these are no varints of just that length."""
    if not (groups[:, :-1] & 0x80).all() or (groups[:, -1] & 0x80).any():
        return None
    shifts = 7 * np.arange(groups.shape[1], dtype=np.int64)
    numbers: NDArray[np.int64] = ((groups & 0x7F).astype(np.int64) << shifts).sum(axis=1)
    return numbers


def _entry(fields: dict[int, int]) -> PagemapEntry:
    """A run of pages from the fields of its message, old or new."""
    address, count = fields[1], fields.get(5) or fields[2]
    if address % PAGE_BYTES:
        raise ValueError(f"an address within a page: {address:#x}")
    if address + count * PAGE_BYTES > MOST_ADDRESS:
        raise ValueError(f"{count} pages at {address:#x} are beyond all addresses")
    # before flags there was a boolean: in the parent or not
    known = fields.get(4)
    flags = Flag(known) if known is not None else Flag.PARENT if fields.get(3) else Flag.PRESENT
    return PagemapEntry(address // PAGE_BYTES, count, flags)
