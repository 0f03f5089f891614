"""Engines ``criu-pre-copy``, ``criu-post-copy``, ``criu-hybrid``: the memory does not cross in the downtime.

=============  =======================================  ==========================================
engine         before the freeze                        after the resume
=============  =======================================  ==========================================
pre-copy       all memory, then what changed, in rounds  nothing
post-copy      nothing                                  all memory, as it is touched and besides
hybrid         as pre-copy                              what changed since the last round
=============  =======================================  ==========================================

In the downtime cross the things that are no memory (sockets, files, registers), a list of all pages,
the few pages that cannot be restored lazily, and for pre-copy the pages that changed since the last
round. For that, CRIU dumps the process *without* its memory, which stays in the stopped process and is
read there; at the same time it is compared with what the last round sent. See docs/adr/0008.

At the destination each round is a native incremental image of CRIU, and the last one's parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from quicferry.errors import MigrationError, Unsupported
from quicferry.migration import unfinished
from quicferry.migration.control import Track
from quicferry.migration.criu import LAZY_FEATURE
from quicferry.migration.criu_image import LEFT_BEHIND, Kind, Manifest, record
from quicferry.migration.engines.base import CHUNK_BYTES, MoveOrder, PageRun, ToPageSource
from quicferry.migration.engines.criu_common import CriuEngine, Held, Packer, TakesRounds
from quicferry.migration.lazy_pages import LocalPages, PageSink, PageSource, say_farewell, small_first
from quicferry.migration.pagemap import (
    NO_PAGES,
    PAGE_BYTES,
    Flag,
    PageMap,
    Pages,
    decode,
    encode,
    entries_of,
    numbers,
)
from quicferry.migration.process_memory import (
    Listed,
    ProcessMemory,
    Reading,
    Snapshot,
    merged,
    private_areas,
    unchanged,
)
from quicferry.migration.unfinished import Unfinished
from quicferry.migration.userfault import Target, Trail, wake
from quicferry.migration.userfault_offer import take
from quicferry.migration.write_tracking import WriteTracker

#: Pre-copy ends after so many rounds, whatever they brought.
MAX_ROUNDS = 8
#: So few pages are no matter at 1 Gbit/s (8 ms), and a server that is in use never gets below.
FEW_PAGES = 256
#: A round with more than this share of the round before it makes no progress: the server writes as
#: fast as the network sends.
PROGRESS = 0.9
TRACK_S = 0.5
#: Read, packed and sent at once while CRIU dumps; then it is seen whether the dump is over.
PORTION_PAGES = 512
#: So many go ahead even if the dump is over before: a page that is waited for later costs as much as forty.
LEAST_PAGES = 512
PAGES_ID = 1  # of the pages file of a round


def why_stop(rounds: int, pages: int, before: int | None) -> str | None:
    """Whether the round that was just sent was the last one, and by which rule.

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
    dumped: Pages  # data from the dump
    fetched: Pages  # data from the stopped process, into the image
    lazy: Pages  # data stays in the stopped process


def plan_of(pagemap: PageMap, same: Pages, sent: Pages, *, lazily: bool) -> Plan:
    """Decide for every page of a dump.

    ``same``: pages that are as the rounds before the freeze sent them; ``sent``: those that crossed while
    CRIU dumped.
    """
    present, absent = pagemap.present, pagemap.absent
    there = np.intersect1d(absent, np.union1d(same, sent), assume_unique=True)
    missing = np.setdiff1d(absent, there, assume_unique=True)
    return Plan(
        parent=np.intersect1d(present, same, assume_unique=True),
        parent_lazy=there,
        dumped=np.setdiff1d(present, same, assume_unique=True),
        fetched=NO_PAGES if lazily else missing,
        lazy=missing if lazily else NO_PAGES,
    )


def portions_of(pages: Pages) -> Iterator[Pages]:
    """Portions of sorted pages, those of short stretches of memory before those of long ones."""
    ordered = numbers(small_first(pages))
    for start in range(0, len(ordered), PORTION_PAGES):
        yield np.sort(ordered[start : start + PORTION_PAGES])


def in_chunks(name: str, data: memoryview) -> Iterator[bytes]:
    """Records that append to an image file."""
    for start in range(0, len(data), CHUNK_BYTES):
        yield record(Kind.IMAGE, name, bytes(data[start : start + CHUNK_BYTES]))


def round_records(number: int, pid: int, reading: Reading) -> Iterator[bytes]:
    """One round as an incremental image."""
    directory = f"round-{number}"
    if number:
        yield record(Kind.PARENT, f"{directory}=round-{number - 1}", b"")
    # CRIU opens the file also when it is empty
    yield record(Kind.IMAGE, f"{directory}/pages-{PAGES_ID}.img", b"")
    yield from in_chunks(f"{directory}/pages-{PAGES_ID}.img", reading.changed.data.reshape(-1).data)
    entries = entries_of(present=reading.changed.pages, parent=unchanged(reading))
    yield record(Kind.IMAGE, f"{directory}/pagemap-{pid}.img", encode(PageMap(PAGES_ID, entries)))


class CriuCopyEngine(CriuEngine):
    """The base of the three. See the module."""

    lazily = False
    method = ""  # how the memory moves, for the record

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._can_restore_lazily = False
        self._known = Snapshot.empty()
        self._rounds = 0
        self._sent: list[Pages] = []  # portions that crossed while CRIU dumped, one round each
        self._same = NO_PAGES  # pages that are as the rounds before the freeze sent them
        self._stopped = asyncio.Event()
        self._memory: dict[int, ProcessMemory] = {}  # of the stopped process, by PID
        self._tracker: WriteTracker | None = None
        self._source: PageSource | None = None
        self._left_behind = False  # the destination needs memory of the stopped process
        self._finishing: asyncio.Task[None] | None = None
        self._sink: PageSink | None = None
        self._keeping: list[asyncio.Task[None]] = []  # descriptors on their way to init

    async def _prepare(self) -> None:
        await self._settled()
        await self._forget()
        await super()._prepare()

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also find out whether memory can come after the restore. Post-copy and hybrid must have that."""
        await super().prepare_destination(order)
        self._can_restore_lazily = await self._ready().has(LAZY_FEATURE)
        if self.lazily and not self._can_restore_lazily:
            raise Unsupported(
                f"{self.name} needs userfaultfd, and CRIU says that this kernel lacks it",
                hint="`quicferry doctor` says more; criu-cold and criu-pre-copy do without",
            )

    async def _forget(self) -> None:
        """Drop what is left of the last move."""
        self._known, self._rounds, self._same = Snapshot.empty(), 0, NO_PAGES
        self._sent.clear()
        self._stopped.clear()
        if self._source is not None:
            self._source.abort()
            self._source = None
        for memory in self._memory.values():
            memory.close()
        self._memory.clear()
        if self._tracker is not None:
            self._tracker.close()
            self._tracker = None
        await self._end_lazy_pages()

    # source

    async def checkpoint(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Freeze and stop the server, dump it without its memory, and yield what must cross now.

        While CRIU dumps, what has changed since the last round goes ahead: the process stands already.
        """
        pid = self._server_pid()
        self._held = Held(order.epoch, pid)
        dumping = self._dumping = asyncio.create_task(self._take(order, pid))
        packer = Packer(order.compression)
        stopping = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait([dumping, stopping], return_when=asyncio.FIRST_COMPLETED)
            if self._stopped.is_set():
                async for chunk in packer.pack_all(self._last_portions(pid, dumping)):
                    yield chunk
            await asyncio.shield(dumping)
            if self.lazily:
                self._source = PageSource(self._read_pages, order.compression)
            async for chunk in packer.pack_all(self._records(order, pid), flush=True):
                yield chunk
        finally:
            stopping.cancel()
            await self._dump_is_over()

    async def _take(self, order: MoveOrder, pid: int) -> None:
        with self._context.events.phase("migration.checkpoint", epoch=order.epoch) as detail:
            await self._freeze(order)
            await self._stop(pid)
            self._stopped.set()
            await self._ready().dump_without_memory(pid, self._images, timeout_s=order.deadlines.checkpoint_s)
            detail["method"] = self.method
            detail["memory_by"] = "agents"
            detail["rounds"] = self._rounds
            detail["tracked"] = self._tracker is not None
            detail["bytes"] = sum(file.stat().st_size for file in self._outside.iterdir() if file.is_file())

    def _memory_of(self, pid: int) -> ProcessMemory:
        if pid not in self._memory:
            self._memory[pid] = ProcessMemory(self._container.path(f"/proc/{pid}"))
        return self._memory[pid]

    def _list(self) -> Listed | None:
        """What the kernel tells of the server's writes; None when it does not, and all must be compared."""
        if self._tracker is None:
            return None
        try:
            return self._tracker.scan()
        except Unsupported:
            self._tracker.close()
            self._tracker = None
            return None

    def _last_portions(self, pid: int, dumping: asyncio.Task[None]) -> Iterator[bytes]:
        """What has changed since the last round, as more rounds, read from the stopped process.

        Where the rest may follow later, they end with CRIU's dump: until then they cost no time.
        """
        if not self._rounds:
            return
        memory = self._memory_of(pid)
        reading = memory.differing(self._known, self._list())
        self._same = unchanged(reading)
        # what is mapped from files CRIU must restore itself, and dumps
        changed = memory.without_files(reading.changed.pages)
        for portion in portions_of(changed) if self.lazily else [changed]:
            if dumping.done() and sum(map(len, self._sent)) >= LEAST_PAGES:
                return
            read = memory.read(portion)
            self._sent.append(read.pages)
            rest = self._same if not self.lazily else NO_PAGES
            number = self._rounds + len(self._sent) - 1
            yield from round_records(number, pid, Reading(np.union1d(rest, read.pages), read))

    def _records(self, order: MoveOrder, pid: int) -> Iterator[bytes]:
        """The last image: CRIU's own files, with the list of pages as this engine wants it."""
        # CRIU itself looks into rounds only if all memory is restored at once
        leading = self._rounds + (0 if self.lazily else len(self._sent))
        if leading:
            yield record(Kind.PARENT, f".=round-{leading - 1}", b"")
        sent = np.unique(np.concatenate([NO_PAGES, *self._sent]))
        replaced = set()
        lazy: dict[int, int] = {}
        for path in sorted(self._outside.glob("pagemap-[0-9]*.img")):
            owner = int(path.stem.removeprefix("pagemap-"))
            pagemap = decode(path.read_bytes())
            mine = owner == pid
            plan = plan_of(
                pagemap, self._same if mine else NO_PAGES, sent if mine else NO_PAGES, lazily=self.lazily
            )
            if len(plan.lazy):
                lazy[owner] = len(plan.lazy)
            pages_name = f"pages-{pagemap.pages_id}.img"
            replaced |= {path.name, pages_name}
            data = self._data(owner, plan, pagemap, self._outside / pages_name)
            entries = entries_of(
                present=data.pages, parent=plan.parent, parent_lazy=plan.parent_lazy, lazy=plan.lazy
            )
            yield record(Kind.IMAGE, path.name, encode(PageMap(pagemap.pages_id, entries)))
            yield record(Kind.IMAGE, pages_name, b"")
            yield from in_chunks(pages_name, data.data.reshape(-1).data)
        for path in sorted(self._outside.iterdir()):
            if path.is_file() and path.name not in LEFT_BEHIND and path.name not in replaced:
                yield from in_chunks(path.name, memoryview(path.read_bytes()))
        self._left_behind = bool(lazy)
        manifest = Manifest(
            epoch=order.epoch,
            pid=pid,
            files=self._container.open_files(pid),
            rounds=self._rounds + len(self._sent),
            portions=len(self._sent),
            lazy=lazy,
            stopped=True,
        )
        yield from self._file_records(pid, manifest)

    def _data(self, owner: int, plan: Plan, pagemap: PageMap, pages_file: Path) -> Snapshot:
        """The pages that the last image holds, sorted, from the dump and from the stopped process."""
        present = pagemap.present
        raw = np.fromfile(pages_file, np.uint8).reshape(-1, PAGE_BYTES)
        dumped = raw[np.searchsorted(present, plan.dumped)]
        pages = np.concatenate((plan.dumped, plan.fetched))
        fetched = self._memory_of(owner).read(plan.fetched)
        if len(fetched.pages) != len(plan.fetched):
            raise MigrationError("memory of the stopped server is gone")
        order = np.argsort(pages)
        return Snapshot(pages[order], np.concatenate((dumped, fetched.data))[order])

    def _read_pages(self, owner: int, first: int, count: int) -> bytes:
        snapshot = self._memory_of(owner).read(np.arange(first, first + count, dtype=np.int64))
        if len(snapshot.pages) != count:
            raise MigrationError("memory of the stopped server is gone")
        return snapshot.data.tobytes()

    async def serve_pages(
        self, epoch: int, requests: AsyncIterator[ToPageSource], send: Callable[[PageRun], Awaitable[None]]
    ) -> None:
        """Give the destination the memory that stayed here."""
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
        """After a restart of this agent: the stopped process is still there, and so is its memory."""
        pid = self._container.service_pid
        if self.lazily and self._source is None and pid is not None and self._container.is_stopped(pid):
            self._held = Held(epoch, pid)
            self._left_behind = True
            self._source = PageSource(self._read_pages, "auto")

    async def give_up_source(self, order: MoveOrder) -> None:
        await super().give_up_source(order)
        await self._forget()

    async def resume_source(self, order: MoveOrder, reason: str) -> dict[str, Any]:
        answer = await super().resume_source(order, reason)
        await self._forget()
        return answer

    # destination

    async def _make_process(self, order: MoveOrder, manifest: Manifest, detail: dict[str, Any]) -> None:
        limit_s = order.deadlines.restore_s
        criu = self._ready()
        detail["rounds"] = manifest.rounds
        lazily = bool(manifest.lazy) or (manifest.rounds > 0 and self._can_restore_lazily)
        detail["lazily"] = lazily
        local = await asyncio.to_thread(self._decide_on_rounds, manifest)
        if lazily:
            lacking = self._lacking(order, manifest, local)
            await asyncio.to_thread(lacking.write, self._outside)
            self._settle(order, lacking, self._open_sink(order, lacking, local))
        stats = await criu.restore(self._images, timeout_s=limit_s, lazy=lazily)
        detail["criu"] = msgspec.structs.asdict(stats)
        await asyncio.gather(*self._keeping)
        if self._sink is not None:
            async with asyncio.timeout(limit_s):
                await self._sink.worked()

    def _lacking(self, order: MoveOrder, manifest: Manifest, local: dict[int, LocalPages]) -> Unfinished:
        missing = {}
        for owner in manifest.lazy:
            absent = decode((self._outside / f"pagemap-{owner}.img").read_bytes()).absent
            here = local[owner].pages if owner in local else NO_PAGES
            missing[owner] = np.setdiff1d(absent, here, assume_unique=True)
        return Unfinished(
            epoch=order.epoch,
            pid=manifest.pid,
            rounds=manifest.rounds,
            missing=unfinished.runs_by_pid(missing),
            local=unfinished.runs_by_pid({owner: pages.pages for owner, pages in local.items()}),
        )

    def _open_sink(
        self,
        order: MoveOrder,
        lacking: Unfinished,
        local: dict[int, LocalPages],
        found: list[Target] | None = None,
    ) -> PageSink:
        open_pages = self._context.open_pages
        if open_pages is None:
            raise MigrationError(f"{self._context.edge} has no way to fetch pages")
        lifetime_s = order.deadlines.restore_s + order.deadlines.pages_s
        return PageSink(
            order.epoch,
            self._outside,
            unfinished.pages_by_pid(lacking.missing),
            local,
            lambda detour: open_pages(order.source, lifetime_s, detour),
            self._keep,
            Trail(self._outside / unfinished.TRAIL),
            found,
        )

    def _settle(
        self, order: MoveOrder, lacking: Unfinished, sink: PageSink, error: str | None = None
    ) -> asyncio.Task[None]:
        """Have the memory come, in the background."""
        self._sink = sink
        self._finishing = asyncio.create_task(self._finish(order, lacking, sink, error))
        self._container.settling = self._finishing
        return self._finishing

    def _keep(self, pid: int, descriptor: int) -> None:
        """Should this agent die, the kernel would give the process zeros for what has not come yet.

        The container's init keeps the descriptor, so that the process stands still then, and the next
        agent goes on. Awaited before the server serves.
        """
        # a copy: ours is closed as soon as all has come, which may be before it was handed over
        copy = os.dup(descriptor)

        async def hand_over() -> None:
            try:
                await self._container.keep(pid, copy)
            finally:
                os.close(copy)

        self._keeping.append(asyncio.create_task(hand_over()))

    async def _drop_kept(self) -> None:
        keeping, self._keeping = self._keeping, []
        await asyncio.gather(*keeping, return_exceptions=True)
        with contextlib.suppress(MigrationError):  # the container itself may be gone
            await self._container.drop_kept()

    async def take_over(self, order: MoveOrder) -> None:
        """After a restart of this agent: give the server the memory that it still lacks."""
        lacking = unfinished.read(self._outside)
        left = self._container.take_left()
        if lacking is None or lacking.epoch != order.epoch:
            for _, descriptor in left:
                os.close(descriptor)
            await self._drop_kept()
            return
        if not left and not lacking.placed:
            raise MigrationError(f"what the server on {self._context.edge} lacks was not kept")
        self._made = Held(order.epoch, lacking.pid)
        error: str | None = None
        found: list[Target] = []
        rest = msgspec.structs.replace(lacking, missing={}, local={})
        try:
            if not lacking.placed:
                found, rest = await asyncio.to_thread(self._retrace, left, lacking)
        except MigrationError as failure:
            error = str(failure)
        local = {
            owner: LocalPages(self._rounds_here(lacking.rounds), owner, pages)
            for owner, pages in unfinished.pages_by_pid(rest.local).items()
        }
        sink = self._open_sink(order, rest, local, found)
        self._settle(order, lacking, sink, error).add_done_callback(lambda _: self._clear_images())
        pages = sum(count for runs in rest.missing.values() for _, count in runs)
        self._context.events.emit("migration.pages.taken_over", epoch=order.epoch, pages=pages, error=error)
        await sink.serving()
        for target in found:
            maps = self._container.path(f"/proc/{target.pid}/maps")
            wake(target.descriptor, private_areas(maps.read_text()))

    def _retrace(self, left: list[tuple[int, int]], lacking: Unfinished) -> tuple[list[Target], Unfinished]:
        """What each process lacks by now: what it lacked, less what it has or has given up."""
        trail = Trail(self._outside / unfinished.TRAIL)
        missing = unfinished.pages_by_pid(lacking.missing)
        local = unfinished.pages_by_pid(lacking.local)
        found = []
        for pid, descriptor in left:
            with ProcessMemory(self._container.path(f"/proc/{pid}")) as memory:
                there = set(memory.anonymous_pages().tolist())
            wanted = {page for pages in (missing, local) if pid in pages for page in pages[pid].tolist()}
            target = Target(descriptor, pid, wanted)
            target.retrace(trail, there)
            found.append(target)
            unplaced = np.array(sorted(target.unplaced), np.int64)
            for pages in (missing, local):
                if pid in pages:
                    pages[pid] = np.intersect1d(pages[pid], unplaced, assume_unique=True)
        trail.close()
        now_missing, now_local = unfinished.runs_by_pid(missing), unfinished.runs_by_pid(local)
        return found, msgspec.structs.replace(lacking, missing=now_missing, local=now_local)

    def _rounds_here(self, rounds: int) -> list[Path]:
        return [self._outside / f"round-{number}" for number in range(rounds)]

    def _decide_on_rounds(self, manifest: Manifest) -> dict[int, LocalPages]:
        """What the rounds brought and may come later does so, where the kernel can do it.

        Else the restore would copy all memory while nothing serves. To CRIU a page is lazy or in the
        parent, not both: both is the source's word for "as you like".
        """
        if not manifest.rounds:
            return {}
        path = self._outside / f"pagemap-{manifest.pid}.img"
        pagemap = decode(path.read_bytes())
        flag = Flag.LAZY if self._can_restore_lazily else Flag.PARENT
        entries = [
            entry._replace(flags=flag) if entry.flags == Flag.PARENT | Flag.LAZY else entry
            for entry in pagemap.entries
        ]
        path.write_bytes(encode(PageMap(pagemap.pages_id, entries)))
        if not self._can_restore_lazily:
            return {}
        rounds = self._rounds_here(manifest.rounds)
        return {manifest.pid: LocalPages(rounds, manifest.pid, pagemap.optional)}

    async def _finish(
        self, order: MoveOrder, lacking: Unfinished, sink: PageSink, error: str | None = None
    ) -> None:
        """Wait until the process has all its memory, and tell the source."""
        try:
            if error is None:
                async with asyncio.timeout(order.deadlines.restore_s + order.deadlines.pages_s):
                    await sink.placed()
        except (MigrationError, OSError, TimeoutError) as failure:
            error = str(failure) or "not all memory came in time"
        if error is not None and self._made is not None:
            # half of its memory is nowhere: it must not go on as if nothing were
            with contextlib.suppress(MigrationError):
                await self._container.stop(self._made.pid, grace_s=0)
        else:
            # a successor must not look for descriptors that were dropped
            with contextlib.suppress(OSError):  # no room: then it has nothing to tell
                msgspec.structs.replace(lacking, placed=True).write(self._outside)
        await self._drop_kept()
        if lacking.missing:  # else the source has gone its way
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(order.deadlines.pages_s):
                    await sink.finish(error)
        await sink.close()

    async def _brought_up(self, order: MoveOrder, manifest: Manifest) -> None:
        if self._finishing is None or self._sink is None:
            await super()._brought_up(order, manifest)
            return
        await self._sink.serving()
        self._finishing.add_done_callback(lambda _: self._clear_images())

    async def _unmake(self) -> None:
        await super()._unmake()  # first: a process that lacks memory must not find zeros there
        await self._end_lazy_pages()

    async def _end_lazy_pages(self) -> None:
        if self._finishing is not None:
            self._finishing.cancel()
            await asyncio.wait([self._finishing])
            self._finishing = None
        if self._sink is not None:
            await self._sink.close()
            self._sink = None
        await self._drop_kept()


class _Ahead(TakesRounds, CriuCopyEngine):
    """With rounds before the freeze."""

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also have the kernel tell from now on what the server writes, where it can."""
        await super().prepare_source(order)
        pid = self._server_pid()
        outside = self._container.outside_pid(pid)
        try:
            offered = await self._context.control.ask(Track(), TRACK_S)
            if outside is None:
                raise Unsupported("the server is gone")
            descriptor = take(outside, int(offered["descriptor"]))
            tracker = WriteTracker(self._container.path(f"/proc/{pid}"), descriptor)
        except (MigrationError, Unsupported):
            return  # its memory is compared then
        self._tracker = tracker
        await asyncio.to_thread(tracker.scan)

    async def copy_ahead(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Send all memory, then what has changed meanwhile, until a rule says that it is enough."""
        pid = self._server_pid()
        memory = self._memory_of(pid)
        packer = Packer(order.compression)
        before: int | None = None
        while True:
            with self._context.events.phase("migration.precopy.round", epoch=order.epoch) as detail:
                reading = await asyncio.to_thread(lambda: memory.differing(self._known, self._list()))
                self._known = await asyncio.to_thread(merged, self._known, reading)
                size_bytes = 0
                async for chunk in packer.pack_all(round_records(self._rounds, pid, reading)):
                    size_bytes += len(chunk)
                    yield chunk
                self._rounds += 1
                pages = len(reading.changed.pages)
                stop = why_stop(self._rounds, pages, before)
                detail.update(
                    round=self._rounds, pages=pages, of_pages=len(reading.pages), bytes=size_bytes, stop=stop
                )
            if stop is not None:
                break
            before = pages
        end = Manifest(epoch=order.epoch, pid=pid, files=[], rounds=self._rounds)
        closing = record(Kind.MANIFEST, "", msgspec.json.encode(end)) + record(Kind.END, "", b"")
        for chunk in packer.pack(closing, flush=True):
            yield chunk


class CriuPreCopyEngine(_Ahead):
    """All memory before the freeze, what changed since then in the downtime."""

    name = "criu-pre-copy"
    method = "read by the agent and compared with the last round"


class CriuPostCopyEngine(CriuCopyEngine):
    """All memory after the resume."""

    name = "criu-post-copy"
    lazily = True
    method = "left in the stopped process and served by the agent"


class CriuHybridEngine(_Ahead):
    """All memory before the freeze, what changed since then after the resume."""

    name = "criu-hybrid"
    lazily = True
    method = "read and compared by the agent, the changed pages served from the stopped process"
