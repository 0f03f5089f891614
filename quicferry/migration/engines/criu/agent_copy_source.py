"""The source's side of ``agent_copy``: how the server's memory is read, before and after it is stopped.

Before the freeze: all memory, then what changed, in rounds. While CRIU dumps the stopped process without
its memory: what changed since the last round. Then the last image, with CRIU's own files and its list of
pages as the engine wants it; and what is not in that is read from the stopped process as the destination
asks for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from quicferry.errors import MigrationError, Unsupported
from quicferry.migration.container.descriptors import take_descriptor
from quicferry.migration.control import Track
from quicferry.migration.criu.image_stream import LEFT_BEHIND, CheckpointManifest, RecordKind, record
from quicferry.migration.criu.packing import Packer
from quicferry.migration.criu.page_patch import patches
from quicferry.migration.engines.criu.base import CopiesInRounds, CriuEngine, Held, Round
from quicferry.migration.engines.criu.rounds import (
    Plan,
    bulk_round,
    in_chunks,
    of_pages,
    plan_of,
    portions_of,
    round_records,
)
from quicferry.migration.memory.batches import small_first
from quicferry.migration.memory.bulk import bulk_of
from quicferry.migration.memory.hidden_memory import HiddenMemory, show
from quicferry.migration.memory.page_messages import PageRun, ToPageSource
from quicferry.migration.memory.page_runs import without
from quicferry.migration.memory.page_source import PageSource, say_farewell
from quicferry.migration.memory.pagemap import (
    MOST_PAGES,
    NO_PAGES,
    PAGE_BYTES,
    PageMap,
    Pages,
    decode,
    encode,
    entries_of,
    joined,
    numbers,
    runs_of,
)
from quicferry.migration.memory.patched_base import MOST_NEW_PAGES
from quicferry.migration.memory.process_memory import (
    Listed,
    ProcessMemory,
    Reading,
    Snapshot,
    merged,
    rows_of,
    unchanged,
)
from quicferry.migration.memory.write_tracking import WriteTracker
from quicferry.migration.order import MoveOrder
from quicferry.slowness import longer

TRACK_S = 0.5
ROOM_PAGES = 1024  # that a server writes between the preparation and the freeze, or so
LAST_PAGES = 4096  # that a server has written by the freeze since the last round, or so: 16 MiB
#: So many go ahead even if the dump is over before: a page that is waited for later costs as much as forty.
LEAST_PAGES = 512


async def _until(event: asyncio.Event, dumping: asyncio.Task[None]) -> None:
    """Wait for what happens during a dump, or for the dump's end."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait([dumping, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


class CopySource(CriuEngine):
    """Leaves the memory in the stopped process, and reads it there."""

    lazily = False  # what is lacking comes after the restore
    #: So many of the pages that may follow later go ahead while CRIU dumps, if the dump takes long enough.
    least_pages, most_pages = LEAST_PAGES, MOST_PAGES
    method = ""  # how the memory moves, for the record

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._known = Snapshot.empty()
        self._base = ""  # digest of the base image, if that is the first round
        self._ahead = Snapshot.empty()  # what the destination has had since before the freeze
        self._sent: list[Pages] = []  # portions that crossed while CRIU dumped, one round each
        self._patched = NO_PAGES  # of the base image, or new beside it
        self._same = NO_PAGES  # pages that are as the rounds before the freeze sent them
        self._stopped = asyncio.Event()
        self._written = asyncio.Event()  # CRIU has written all its images
        self._aside: list[tuple[int, int]] = []  # runs of pages that follow later unless they are written
        self._room = Snapshot.empty().data  # where the last reading goes
        self._memory: dict[int, ProcessMemory] = {}  # of the stopped processes, by PID in the images
        self._tracker: WriteTracker | None = None
        self._hidden: HiddenMemory | None = None  # from CRIU; None: it makes the list of pages itself
        self._source: PageSource | None = None
        self._left_behind = False  # the destination needs memory of the stopped process

    async def _forget_source(self) -> None:
        """Drop what is left of the last move from here."""
        self._known, self._rounds, self._same = Snapshot.empty(), 0, NO_PAGES
        self._base, self._ahead = "", Snapshot.empty()
        self._patched = NO_PAGES
        self._room = Snapshot.empty().data
        self._sent.clear()
        self._stopped.clear()
        self._written.clear()
        if self._source is not None:
            self._source.abort()
            self._source = None
        for memory in self._memory.values():
            memory.close()
        self._memory.clear()
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None
        if self._hidden is not None:
            self._hidden.close()
            self._hidden = None

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also see to it that nothing is hidden of the server, should an agent have been killed in a move."""
        await super().prepare_source(order)
        await show(self._container, self._server_pid())

    async def _revive(self, held: Held, order: MoveOrder) -> None:
        """Also hide nothing of the process any more before it goes on."""
        with contextlib.suppress(MigrationError):  # it is tried again before the next move
            await show(self._container, held.pid)
        await super()._revive(held, order)

    async def _track(self) -> None:
        """Have the kernel track from now on what the server writes, where it can; else memory is compared."""
        pid = self._server_pid()
        outside = self._container.outside_pid(pid)
        try:
            offered = await self._context.control.ask(Track(), longer(TRACK_S))
            if outside is None:
                raise Unsupported("the server is gone")
            descriptor = take_descriptor(outside, int(offered["descriptor"]))
            tracker = WriteTracker(self._container.path(f"/proc/{pid}"), descriptor)
        except (MigrationError, Unsupported):
            return
        self._tracker = tracker
        await asyncio.to_thread(tracker.scan)

    async def checkpoint(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Freeze and stop the server, dump it without its memory, and yield what crosses in the downtime.

        While CRIU dumps, what has changed since the last round goes ahead: the process stands already. The
        last image of CRIU is the end: it then lets go of the memory, 16 ms for 280 MiB, and of the process,
        which was halted before and stays so however that ends. Whoever gives it up waits for CRIU.
        """
        pid = self._server_pid()
        self._held = Held(order.epoch, pid)
        owner = self._image_pid(pid)
        self._memory_of(owner)  # while all of the process is to be seen
        self._hidden = await HiddenMemory.of(self._container, pid, self._proc_of(owner))
        dumping = self._dumping = asyncio.create_task(self._take(order, pid))
        packer = Packer(order.compression)
        try:
            await _until(self._stopped, dumping)
            if self._stopped.is_set():
                async for chunk in packer.pack_all(self._last_portions(owner, dumping)):
                    yield chunk
                if self._hidden is not None:
                    # while CRIU is at work
                    self._hidden.pages(self._tracker.last_regions if self._tracker is not None else None)
            await _until(self._written, dumping)
            if dumping.done():
                dumping.result()  # a failed dump ends the stream here
            if self.lazily:
                self._source = PageSource(self._read_pages, order.compression)
            async for chunk in packer.pack_all(self._last_records(order, owner, dumping), flush=True):
                yield chunk
        except BaseException:
            await self._dump_is_over()
            raise

    def _last_records(self, order: MoveOrder, owner: int, dumping: asyncio.Task[None]) -> Iterator[bytes]:
        """The last image, and what follows it if the dump has not failed meanwhile."""
        lazy: dict[int, int] = {}
        yield from self._records(owner, lazy)
        if dumping.done():
            dumping.result()  # better to hear of it before the end is sent
        yield from self._closing_records(order, owner, lazy)

    async def _take(self, order: MoveOrder, pid: int) -> None:
        """Freeze, stop, dump without memory; the event tells how."""
        with self._context.events.phase("migration.checkpoint", epoch=order.epoch) as detail:
            await self._freeze(order)
            await self._container.halt(pid)
            if self._hidden is not None and not await self._hidden.hold():
                self._hidden = None
            self._stopped.set()
            collecting = asyncio.create_task(self._collect_files())
            await self._ready().dump_without_memory(
                pid, self._images, timeout_s=order.deadlines.checkpoint_s, written=self._written.set
            )
            await collecting
            detail["method"] = self.method
            detail["memory_by"] = "agents"
            detail["rounds"] = self._rounds
            detail["base_image"] = bool(self._base)
            detail["listed_by"] = "criu" if self._hidden is None else "agent"
            detail["tracked"] = self._tracker is not None
            detail["bytes"] = sum(file.stat().st_size for file in self._outside.iterdir() if file.is_file())

    def _memory_of(self, pid: int) -> ProcessMemory:
        """The memory of a process by its PID in the images, opened once."""
        if pid not in self._memory:
            self._memory[pid] = ProcessMemory(self._proc_of(pid))
        return self._memory[pid]

    def _list(self, *, last: bool = False) -> Listed | None:
        """The pages that the kernel says were written; None when it cannot, and all must be compared.

        ``last``: of the stopped process.
        """
        if self._tracker is None:
            return None
        try:
            return self._tracker.scan(last=last, aside=self._aside)
        except Unsupported:
            self._tracker.close()
            self._tracker = None
            return None

    def _last_portions(self, pid: int, dumping: asyncio.Task[None]) -> Iterator[bytes]:
        """Read what changed since the last round from the stopped process, as further rounds.

        Where the rest may follow later, they end with CRIU's dump: until then they cost no time.
        """
        if not self._rounds:
            return
        memory = self._memory_of(pid)
        reading = memory.differing(self._known, self._list(last=True), self._room)
        self._same = unchanged(reading)
        # what is mapped from files CRIU must restore itself, and dumps
        changed = memory.without_files(reading.changed.pages)
        for portion in portions_of(changed) if self.lazily else [changed]:
            ahead = sum(map(len, self._sent))
            over = dumping.done() or self._written.is_set()
            if ahead >= self.most_pages or (over and ahead >= self.least_pages):
                return
            # read from the stopped process already
            read = Snapshot(portion, reading.changed.data[np.searchsorted(reading.changed.pages, portion)])
            self._sent.append(read.pages)
            rest = self._same if not self.lazily else NO_PAGES
            number = self._rounds + len(self._sent) - 1
            yield from round_records(
                number, pid, Reading(joined(rest, read.pages), read), self._ahead, in_words=True
            )

    def _records(self, pid: int, lazy: dict[int, int]) -> Iterator[bytes]:
        """The last image: CRIU's own files, with the list of pages as this engine wants it.

        ``lazy`` gets how many pages of each process stay here.
        """
        # CRIU itself looks into rounds only if all memory is restored at once
        leading = self._rounds + (0 if self.lazily else len(self._sent))
        if leading:
            yield record(RecordKind.PARENT, f".=round-{leading - 1}", b"")
        sent = joined(self._patched, *self._sent)
        replaced = set()
        for path in sorted(self._outside.glob("pagemap-[0-9]*.img")):
            owner = int(path.stem.removeprefix("pagemap-"))
            pagemap = dumped = decode(path.read_bytes())
            mine = owner == pid
            if mine and self._hidden is not None:
                pagemap = self._hidden.completed(dumped)
            plan = plan_of(
                pagemap, self._same if mine else NO_PAGES, sent if mine else NO_PAGES, lazily=self.lazily
            )
            if len(plan.lazy):
                lazy[owner] = len(plan.lazy)
            pages_name = f"pages-{pagemap.pages_id}.img"
            replaced |= {path.name, pages_name}
            data = self._data(owner, plan, dumped, self._outside / pages_name)
            entries = entries_of(
                present=data.pages, parent=plan.parent, parent_lazy=plan.parent_lazy, lazy=plan.lazy
            )
            yield record(RecordKind.IMAGE, path.name, encode(PageMap(pagemap.pages_id, entries)))
            yield record(RecordKind.IMAGE, pages_name, b"")
            yield from of_pages(pages_name, data, self._ahead)
        for path in sorted(self._outside.iterdir()):
            if path.suffix == ".img" and path.name not in LEFT_BEHIND and path.name not in replaced:
                yield from in_chunks(path.name, memoryview(path.read_bytes()))

    def _closing_records(self, order: MoveOrder, pid: int, lazy: dict[int, int]) -> Iterator[bytes]:
        """What follows the images when the dump has succeeded: files, the manifest, the end."""
        yield from self._last_files()
        self._left_behind = bool(lazy)
        manifest = CheckpointManifest(
            epoch=order.epoch,
            pid=pid,
            files=self._container.open_files(self._server_pid()),
            rounds=self._rounds + len(self._sent),
            portions=len(self._sent),
            lazy=lazy,
            base=self._base,
            stopped=self._container.halts_by_signal,
        )
        yield from self._file_records(pid, manifest)

    def _data(self, owner: int, plan: Plan, dumped: PageMap, pages_file: Path) -> Snapshot:
        """The pages that the last image holds, sorted, from the dump and from the stopped process."""
        present = dumped.present
        raw = np.fromfile(pages_file, np.uint8).reshape(-1, PAGE_BYTES)
        if not len(plan.fetched) and np.array_equal(plan.dumped, present):
            return Snapshot(present, raw)  # post-copy: no copy is needed
        rows = rows_of(plan.dumped, present)
        here = rows >= 0  # CRIU has not dumped what it has not found
        wanted = joined(plan.dumped[~here], plan.fetched)
        fetched = self._memory_of(owner).read(wanted)
        if len(fetched.pages) != len(wanted):
            raise MigrationError("memory of the stopped server is gone")
        pages = np.concatenate((plan.dumped[here], wanted))
        order = np.argsort(pages)
        return Snapshot(pages[order], np.concatenate((raw[rows[here]], fetched.data))[order])

    def _read_pages(self, owner: int, first: int, count: int) -> bytes:
        """Read pages of the stopped process for the destination. Raises ``MigrationError``."""
        snapshot = self._memory_of(owner).read(np.arange(first, first + count, dtype=np.int64))
        if len(snapshot.pages) != count:
            raise MigrationError("memory of the stopped server is gone")
        return snapshot.data.tobytes()

    async def serve_pages(
        self, epoch: int, requests: AsyncIterator[ToPageSource], send: Callable[[PageRun], Awaitable[None]]
    ) -> None:
        """Send the destination the memory that stayed here."""
        self._find_source(epoch)
        if self._source is not None and self._held is not None and self._held.epoch == epoch:
            await self._source.serve(requests, send)
        elif not await say_farewell(requests, send):
            raise MigrationError(f"no memory of epoch {epoch} is kept on {self._context.edge}")

    async def drain_source(self, order: MoveOrder) -> dict[str, Any]:
        """Wait until the destination has all memory."""
        self._find_source(order.epoch)
        source = self._source
        if source is None or not self._left_behind:
            return {"pages": 0, "bytes": 0, "waited_for": 0}
        await source.done()
        return {"pages": source.sent_pages, "bytes": source.sent_bytes, "waited_for": source.waited_for}

    def _find_source(self, epoch: int) -> None:
        """Find the stopped process again after a restart of this agent: its memory is still there."""
        pid = self._container.service_pid
        if self.lazily and self._source is None and pid is not None and self._container.is_stopped(pid):
            self._held = Held(epoch, pid)
            self._left_behind = True
            self._source = PageSource(self._read_pages, "auto")


class CopySourceAhead(CopiesInRounds, CopySource):
    """As ``CopySource``, with rounds before the freeze."""

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also have the kernel track from now on what the server writes, where it can."""
        await super().prepare_source(order)
        await self._track()

    async def _next_round(self, order: MoveOrder, pid: int) -> Round:
        """Read the pages that differ from the last round."""
        owner = self._image_pid(pid)
        memory = self._memory_of(owner)
        reading = await asyncio.to_thread(lambda: memory.differing(self._known, self._list()))
        self._known = self._ahead = await asyncio.to_thread(merged, self._known, reading)
        if not len(self._room):
            # written, so that the memory is there: a page that is touched first takes as long as its copy
            self._room = np.ones((LAST_PAGES, PAGE_BYTES), np.uint8)
        lazy = memory.without_files(reading.changed.pages)
        records = round_records(self._rounds, owner, reading, lazy=lazy)
        return Round(records, len(reading.changed.pages), len(reading.pages), {})


class CopySourceOnBase(CopySource):
    """As ``CopySource``, with the base image for a first round, which need not be sent.

    What differs from it is found out before the freeze as far as the kernel tells what is written since.
    Pages cross as changes of the base image (``page_patch``): most have changed in a few words. New pages do,
    too, up to a bound: they are what the server works with. Added memory is new as well: what is beyond the
    bound is a round of files, read as it is sent (``bulk_round``). Where memory may follow after the resume,
    bulk data does that (``bulk_of``), unless it was written since the preparation, and is not even looked at
    in the downtime.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._differed = NO_PAGES  # from the base image, before the freeze

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also have the base image at hand."""
        await super().prepare_source(order)
        if self._context.base_image is not None:
            base = await self._context.base_image()
            self._known = self._ahead = base.snapshot
            self._base, self._rounds = base.sha256, 1
            await self._track()
            if self._tracker is not None:
                memory = self._memory_of(self._image_pid(self._server_pid()))
                # what is new crosses whatever it holds: to read it is of use only to find what may follow
                known = None if self.lazily else _of_base(memory, base.snapshot.pages)
                reading = await asyncio.to_thread(memory.differing, base.snapshot, known)
                self._differed = reading.changed.pages
                if self.lazily:
                    self._aside = runs_of(bulk_of(reading.changed, base.snapshot.pages))
                    self._differed = without(self._differed, numbers(self._aside))
                # written, so that the memory is there: a page that is touched first takes as long as its copy
                room_pages = len(self._differed) + ROOM_PAGES + (0 if self.lazily else MOST_NEW_PAGES)
                self._room = np.ones((room_pages, PAGE_BYTES), np.uint8)

    async def _forget_source(self) -> None:
        """Also drop what the last reading was for."""
        await super()._forget_source()
        self._differed = NO_PAGES
        self._aside = []

    def _list(self, *, last: bool = False) -> Listed | None:
        """The pages that may differ from the base image: as before, or written since."""
        listed = super()._list(last=last)
        if listed is None:
            return None
        return Listed(listed.pages, joined(listed.touched, self._differed))

    def _last_portions(self, pid: int, dumping: asyncio.Task[None]) -> Iterator[bytes]:
        """Read what differs from the base image from the stopped process: patches, a round of the rest."""
        if not self._rounds:
            return
        memory = self._memory_of(pid)
        listed, bulk = self._without_bulk(memory, self._list(last=True))
        reading = memory.differing(self._known, listed, self._room)
        self._same = unchanged(reading)
        # what is mapped from files CRIU must restore itself, and dumps
        lazy = np.isin(reading.changed.pages, memory.without_files(reading.changed.pages), assume_unique=True)
        rows = rows_of(reading.changed.pages, self._ahead.pages)
        new = np.flatnonzero(lazy & (rows < 0))
        known = np.flatnonzero(lazy & (rows >= 0))
        most_new = MOST_NEW_PAGES - (len(known) if self.lazily else 0)
        if len(new) > most_new:
            first = numbers(small_first(reading.changed.pages[new]))[: max(0, most_new)]
            near = np.isin(reading.changed.pages[new], first, assume_unique=True)
            new, rest = new[near], new[~near]
        else:
            rest = np.empty(0, np.intp)
        chosen = np.sort(np.concatenate((known, new)))
        pages, data = reading.changed
        for patch in patches(pages, data, rows, self._ahead.data, chosen):
            yield record(RecordKind.PATCH, "", patch)
        self._patched = pages[chosen]
        if len(bulk):
            self._sent.append(bulk)
            yield from bulk_round(self._rounds, pid, bulk, self._same, memory)
        elif len(rest) and not self.lazily:
            read = Snapshot(pages[rest], data[rest])
            self._sent.append(read.pages)
            yield from round_records(self._rounds, pid, Reading(joined(self._same, read.pages), read))

    def _without_bulk(self, memory: ProcessMemory, listed: Listed | None) -> tuple[Listed | None, Pages]:
        """Take out of the list the new pages that are to be a round of their own, which are not compared.

        None where memory may follow after the resume, or the kernel has made no list.
        """
        if listed is None or self.lazily:
            return listed, NO_PAGES
        new = memory.without_files(without(listed.pages, self._known.pages))
        bulk = np.sort(numbers(small_first(new))[MOST_NEW_PAGES:])
        left = [without(pages, bulk) for pages in listed]
        return Listed(*left), bulk


def _of_base(memory: ProcessMemory, known: Pages) -> Listed:
    """The pages of a process that the base image has as well."""
    pages = np.intersect1d(memory.anonymous_pages(), known, assume_unique=True)
    return Listed(pages, pages)
