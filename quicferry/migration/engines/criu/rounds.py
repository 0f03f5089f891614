"""Rounds of pre-copy: when they end, what one is on its way, and what the last image takes of them.

A round is an incremental image of CRIU, of one process's memory alone. The last image names the last
round as its parent.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import numpy as np

from quicferry.errors import MigrationError
from quicferry.migration.criu.image_stream import CheckpointManifest, RecordKind, record
from quicferry.migration.criu.page_delta import DELTA_PAGES, delta
from quicferry.migration.criu.page_patch import patches
from quicferry.migration.memory.batches import small_first
from quicferry.migration.memory.page_runs import both, bounds_of, either, minus, pages_of, without
from quicferry.migration.memory.pagemap import (
    NO_PAGES,
    PAGE_BYTES,
    PageMap,
    Pages,
    encode,
    entries_of,
    numbers,
)
from quicferry.migration.memory.process_memory import (
    ProcessMemory,
    Reading,
    Snapshot,
    rows_of,
    unchanged,
)
from quicferry.migration.order import CHUNK_BYTES

#: Pre-copy ends after so many rounds, whatever they brought.
MAX_ROUNDS = 8
#: So few pages are no matter at 1 Gbit/s (8 ms), and a server that is in use never gets below.
FEW_PAGES = 256
#: A round with more than this share of the round before it makes no progress: the server writes as
#: fast as the network sends.
PROGRESS = 0.9
#: Read, packed and sent at once while CRIU dumps; then it is seen whether the dump is over.
PORTION_PAGES = 512
PAGES_ID = 1  # of the pages file of a round
BULK_PAGES = CHUNK_BYTES // PAGE_BYTES - 1  # of a record that fits into a chunk with its header
NOTHING_AHEAD = Snapshot.empty()


def why_stop(rounds: int, pages: int, before: int | None) -> str | None:
    """The rule by which the round that was just sent was the last one; None when another follows.

    ``rounds``: how many there were; ``pages``: sent in the last one; ``before``: in the one before it.
    """
    if pages <= FEW_PAGES:
        return "few-pages"
    if rounds >= MAX_ROUNDS:
        return "max-rounds"
    if before is not None and pages > PROGRESS * before:
        return "no-progress"
    return None


class Plan(NamedTuple):
    """How the last image of a process is made of a dump without memory and of what is known."""

    parent: Pages  # as in a round, and to be there before the process runs
    parent_lazy: Pages  # in a round, and may also come after the restore
    dumped: Pages  # data from the dump, or from the stopped process where CRIU has not found it
    fetched: Pages  # data from the stopped process, into the image
    lazy: Pages  # data stays in the stopped process


def plan_of(pagemap: PageMap, same: Pages, sent: Pages, *, lazily: bool) -> Plan:
    """Decide for every page of a dump where the destination gets it from.

    ``same``: pages that are as the rounds before the freeze sent them; ``sent``: those that crossed while
    CRIU dumped.
    """
    present, absent = bounds_of(pagemap.present), bounds_of(pagemap.absent)
    as_before = bounds_of(same)
    here = either(as_before, bounds_of(sent))
    missing = pages_of(minus(absent, here))
    return Plan(
        parent=pages_of(both(present, as_before)),
        parent_lazy=pages_of(both(absent, here)),
        dumped=pages_of(minus(present, as_before)),
        fetched=NO_PAGES if lazily else missing,
        lazy=missing if lazily else NO_PAGES,
    )


def portions_of(pages: Pages) -> Iterator[Pages]:
    """Cut sorted pages into portions, pages of short stretches of memory before those of long ones."""
    ordered = numbers(small_first(pages))
    for start in range(0, len(ordered), PORTION_PAGES):
        yield np.sort(ordered[start : start + PORTION_PAGES])


def in_chunks(name: str, data: memoryview) -> Iterator[bytes]:
    """Records that append ``data`` to an image file."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield record(RecordKind.IMAGE, name, data[start : start + CHUNK_BYTES])


def patches_of(name: str, pages: Snapshot, ahead: Snapshot) -> Iterator[bytes]:
    """The same for a round that is kept in memory: of most pages, only the words that differ."""
    for patch in patches(pages.pages, pages.data, rows_of(pages.pages, ahead.pages), ahead.data):
        yield record(RecordKind.PATCH, name, patch)


def of_pages(name: str, pages: Snapshot, ahead: Snapshot) -> Iterator[bytes]:
    """Records that append pages to an image file, as differences from those that the destination has had."""
    if not len(ahead.pages):
        yield from in_chunks(name, pages.data.reshape(-1).data)
        return
    rows = rows_of(pages.pages, ahead.pages)
    for start in range(0, len(rows), DELTA_PAGES):
        part, data = rows[start : start + DELTA_PAGES], pages.data[start : start + DELTA_PAGES]
        if (part < 0).all():
            yield from in_chunks(name, data.reshape(-1).data)
        else:
            yield record(RecordKind.DELTA, name, delta(part, data, ahead.data))


def closing_records(epoch: int, pid: int, rounds: int) -> bytes:
    """The records after the last round: epoch, PID, number of rounds, end."""
    end = CheckpointManifest(epoch=epoch, pid=pid, files=[], rounds=rounds)
    return record(RecordKind.MANIFEST, "", msgspec.json.encode(end)) + record(RecordKind.END, "", b"")


def bulk_round(number: int, pid: int, pages: Pages, same: Pages, memory: ProcessMemory) -> Iterator[bytes]:
    """The records of a round of pages that the destination knows nothing of, each read when it is sent.

    So the first is on its way before the last is read, and none is copied aside. ``same``: the pages that are
    as the rounds before have them. Raises ``MigrationError`` when one is gone.
    """
    directory = f"round-{number}"
    name = f"{directory}/pages-{PAGES_ID}.img"
    yield record(RecordKind.PARENT, f"{directory}=round-{number - 1}", b"")
    yield record(RecordKind.IMAGE, name, b"")
    for start in range(0, len(pages), BULK_PAGES):
        wanted = pages[start : start + BULK_PAGES]
        read = memory.read(wanted)
        if len(read.pages) != len(wanted):
            raise MigrationError("memory of the stopped server is gone")
        yield record(RecordKind.IMAGE, name, read.data.reshape(-1).data)
    entries = entries_of(present=pages, parent=same)
    yield record(RecordKind.IMAGE, f"{directory}/pagemap-{pid}.img", encode(PageMap(PAGES_ID, entries)))


def round_records(
    number: int,
    pid: int,
    reading: Reading,
    ahead: Snapshot = NOTHING_AHEAD,
    lazy: Pages | None = None,
    in_words: bool = False,
) -> Iterator[bytes]:
    """The records of one round, an incremental image.

    ``ahead``: what the destination has had before. ``lazy``: those of the changed pages that may come after
    the restore, as no file is mapped where they lie; None: not said. ``in_words``: what the destination has
    had is in its memory, and pages cross as changes of it (``page_patch``).
    """
    directory = f"round-{number}"
    if number:
        yield record(RecordKind.PARENT, f"{directory}=round-{number - 1}", b"")
    # CRIU opens the file also when it is empty
    yield record(RecordKind.IMAGE, f"{directory}/pages-{PAGES_ID}.img", b"")
    records = patches_of if in_words else of_pages
    yield from records(f"{directory}/pages-{PAGES_ID}.img", reading.changed, ahead)
    lazy = NO_PAGES if lazy is None else lazy
    eager = without(reading.changed.pages, lazy)
    entries = entries_of(present=eager, lazy_present=lazy, parent=unchanged(reading))
    yield record(RecordKind.IMAGE, f"{directory}/pagemap-{pid}.img", encode(PageMap(PAGES_ID, entries)))
