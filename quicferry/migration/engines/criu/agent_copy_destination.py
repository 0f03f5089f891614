"""The destination's side of ``agent_copy``: how a process is restored that gets its memory later.

Pages that the rounds brought are here, in files; all others are at the source. Both are put in place when the
process touches them, and in the background. The process never reads zeros where memory is missing: when the
source cannot be reached it is killed, and when this agent dies, the container's init keeps its userfaultfd
open, so that it stands still until the next agent continues.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from quicferry.errors import MigrationError
from quicferry.migration.criu.image_stream import CheckpointManifest, Unpacker
from quicferry.migration.engines.criu import unfinished
from quicferry.migration.engines.criu.base import Held
from quicferry.migration.engines.criu.lazy_destination import LazyDestination
from quicferry.migration.engines.criu.unfinished import Unfinished
from quicferry.migration.memory.base_image import PAGES, PAGES_ID
from quicferry.migration.memory.page_runs import without
from quicferry.migration.memory.page_sink import WORKING_PAGES, PageSink
from quicferry.migration.memory.pagemap import (
    AS_YOU_LIKE,
    Flag,
    PageMap,
    Pages,
    decode,
    encode,
    entries_of,
    joined,
)
from quicferry.migration.memory.patched_base import PatchedBase
from quicferry.migration.memory.process_memory import ProcessMemory, Snapshot, private_areas
from quicferry.migration.memory.round_pages import LocalPages
from quicferry.migration.memory.uffd_events import Target, UffdEventLog
from quicferry.migration.memory.userfault import wake
from quicferry.migration.order import MoveOrder

BASE_ROUND = "round-0"


class CopyDestination(LazyDestination):
    """Restores the process, and has its missing memory put in place in the background."""

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._sink: PageSink | None = None
        self._keeping: list[asyncio.Task[None]] = []  # descriptors on their way to init

    async def _make_process(
        self, order: MoveOrder, manifest: CheckpointManifest, detail: dict[str, Any]
    ) -> None:
        """Restore the process; with missing memory, start the sink that will bring it first."""
        limit_s = order.deadlines.restore_s
        criu = self._ready()
        detail["rounds"] = manifest.rounds
        lazily = bool(manifest.lazy) or (manifest.rounds > 0 and self._can_restore_lazily)
        detail["lazily"] = lazily
        # some milliseconds of work, which nothing else waits for: to hand it to a thread takes as long
        local = self._decide_on_rounds(manifest)
        if lazily:
            lacking = self._lacking(order, manifest, local)
            lacking.write(self._outside)
            self._settle(order, lacking, self._open_sink(order, lacking, local))
        stats = await criu.restore(self._images, timeout_s=limit_s, lazy=lazily)
        detail["criu"] = msgspec.structs.asdict(stats)
        await asyncio.gather(*self._keeping)
        if self._sink is not None:
            async with asyncio.timeout(limit_s):
                await self._sink.worked()

    def _lacking(
        self, order: MoveOrder, manifest: CheckpointManifest, local: dict[int, LocalPages]
    ) -> Unfinished:
        """The record of what the process will lack, for this agent and for a successor."""
        missing = {}
        for owner in manifest.lazy:
            missing[owner] = decode((self._outside / f"pagemap-{owner}.img").read_bytes()).absent
            if owner in local:  # to CRIU all that it is not to restore is one
                missing[owner] = without(missing[owner], local[owner].pages)
        return Unfinished(
            epoch=order.epoch,
            pid=manifest.pid,
            rounds=manifest.rounds,
            missing=unfinished.runs_by_pid(missing),
            # what is in this agent's memory is in place before the server serves
            local=unfinished.runs_by_pid(
                {owner: without(pages.pages, pages.held) for owner, pages in local.items()}
            ),
        )

    def _open_sink(
        self,
        order: MoveOrder,
        lacking: Unfinished,
        local: dict[int, LocalPages],
        found: list[Target] | None = None,
    ) -> PageSink:
        """Start to fetch missing pages. ``found``: processes that an earlier agent left."""
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
            UffdEventLog(self._outside / unfinished.EVENT_LOG),
            found,
            self._pages_ahead(),
        )

    def _pages_ahead(self) -> int:
        """How many missing pages may come unasked before the server serves."""
        return WORKING_PAGES

    def _settle(
        self, order: MoveOrder, lacking: Unfinished, sink: PageSink, error: str | None = None
    ) -> asyncio.Task[None]:
        """Put the memory in place in the background."""
        self._sink = sink
        return self._finish_in_background(self._finish(order, lacking, sink, error))

    def _keep(self, pid: int, descriptor: int) -> None:
        """Have the container's init keep a copy of a userfaultfd.

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
        """Have init close the descriptors, once all copies have arrived there."""
        keeping, self._keeping = self._keeping, []
        await asyncio.gather(*keeping, return_exceptions=True)
        with contextlib.suppress(MigrationError):  # the container itself may be gone
            await self._container.drop_kept()

    async def take_over(self, order: MoveOrder) -> None:
        """Continue, after a restart of this agent, to give the server the memory that it lacks."""
        lacking = unfinished.read(self._outside)
        left = self._take_left(lacking)
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
            maps = self._proc_of(target.pid) / "maps"
            wake(target.descriptor, private_areas(maps.read_text()))

    def _take_left(self, lacking: Unfinished | None) -> list[tuple[int, int]]:
        """The userfaultfds that init has kept, by PID."""
        return self._container.take_left()

    def _retrace(self, left: list[tuple[int, int]], lacking: Unfinished) -> tuple[list[Target], Unfinished]:
        """What each process lacks by now: what it lacked, without what it has or has unmapped."""
        event_log = UffdEventLog(self._outside / unfinished.EVENT_LOG)
        missing = unfinished.pages_by_pid(lacking.missing)
        local = unfinished.pages_by_pid(lacking.local)
        found = []
        for pid, descriptor in left:
            with ProcessMemory(self._proc_of(pid)) as memory:
                there = set(memory.anonymous_pages().tolist())
            wanted = {page for pages in (missing, local) if pid in pages for page in pages[pid].tolist()}
            target = Target(descriptor, pid, wanted)
            target.retrace(event_log, there)
            found.append(target)
            unplaced = np.array(sorted(target.unplaced), np.int64)
            for pages in (missing, local):
                if pid in pages:
                    pages[pid] = np.intersect1d(pages[pid], unplaced, assume_unique=True)
        event_log.close()
        now_missing, now_local = unfinished.runs_by_pid(missing), unfinished.runs_by_pid(local)
        return found, msgspec.structs.replace(lacking, missing=now_missing, local=now_local)

    def _rounds_here(self, rounds: int) -> Sequence[Path | Snapshot]:
        """The directories of the rounds, the oldest first."""
        return [self._outside / f"round-{number}" for number in range(rounds)]

    def _decide_on_rounds(self, manifest: CheckpointManifest) -> dict[int, LocalPages]:
        """Let pages of the rounds come after the restore where the kernel can do that.

        Else the restore would copy all memory while nothing serves. To CRIU a page is lazy or in the
        parent, not both: both is the source's word for "as you like".
        """
        if not manifest.rounds:
            return {}
        path = self._outside / f"pagemap-{manifest.pid}.img"
        pagemap = decode(path.read_bytes())
        flag = Flag.LAZY if self._can_restore_lazily else Flag.PARENT
        entries = [
            entry._replace(flags=flag) if entry.flags == AS_YOU_LIKE else entry for entry in pagemap.entries
        ]
        path.write_bytes(encode(PageMap(pagemap.pages_id, entries)))
        return {manifest.pid: self._local(manifest, pagemap.optional)} if self._can_restore_lazily else {}

    def _local(self, manifest: CheckpointManifest, pages: Pages) -> LocalPages:
        """Those pages of the server's process that rounds have brought."""
        return LocalPages(self._rounds_here(manifest.rounds), manifest.pid, pages)

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
            await self._end_incomplete()
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

    async def _brought_up(self, order: MoveOrder, manifest: CheckpointManifest) -> None:
        """Let the sink fetch all pages from now on, not only those that are needed to start."""
        if self._sink is not None:
            await self._sink.serving()
        await super()._brought_up(order, manifest)

    async def _forget_destination(self) -> None:
        """Also close the sink and drop the userfaultfds that init keeps."""
        await super()._forget_destination()
        if self._sink is not None:
            await self._sink.close()
            self._sink = None
        await self._drop_kept()


class CopyDestinationOnBase(CopyDestination):
    """As ``CopyDestination``, with the base image for a first round, which is here before the move.

    It stays in the memory of this agent, and is put in place from there (``PatchedBase``). What CRIU reads
    itself, and all of it where pages cannot come after the restore, is written to where the round would be.
    """

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._here: PatchedBase | None = None

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also have the base image at hand."""
        await super().prepare_destination(order)
        if self._context.base_image is not None:
            base = await self._context.base_image()
            self._here = await asyncio.to_thread(PatchedBase, base)
            await asyncio.to_thread(self._lay_out, PAGES, self._here.of_files().data.reshape(-1).data)

    def _lay_out(self, name: str, content: memoryview | bytes) -> None:
        """Write a file of the first round, and note its checksums as of one that was received."""
        self._received.write(self._outside / BASE_ROUND / name, content)

    def _unpacker(self) -> Unpacker:
        """What takes in what comes, changes of the base image among it."""
        here = self._here
        if here is None:
            return super()._unpacker()
        root = self._container.path("/")
        return Unpacker(self._outside, root, self._received, here.original.data, here.apply)

    async def _bring_up(self, order: MoveOrder, manifest: CheckpointManifest) -> dict[str, Any]:
        """Restore the process on the base image. Raises ``MigrationError`` when the source had another."""
        if manifest.base:
            if self._here is None or manifest.base != self._here.sha256:
                raise MigrationError(
                    f"the base image of {self._context.edge} is not that of {order.source}",
                    hint="the same version must run on all hosts; --no-base-image does without",
                )
            await asyncio.to_thread(self._write_base, manifest.pid, self._here)
        try:
            return await super()._bring_up(order, manifest)
        finally:
            self._here = None

    def _pages_ahead(self) -> int:
        """None on a base image: what the server works with is here, and bulk data would delay it."""
        return super()._pages_ahead() if self._here is None else 0

    def _write_base(self, pid: int, here: PatchedBase) -> None:
        """Write what CRIU reads of the base image, as a round of one process."""
        laid_out = here.of_files()
        if not self._can_restore_lazily:
            laid_out = here.merged()
            self._lay_out(PAGES, laid_out.data.reshape(-1).data)
        else:
            inherited = decode((self._outside / f"pagemap-{pid}.img").read_bytes()).inherited
            if not np.isin(inherited, laid_out.pages, assume_unique=True).all():
                # a library lies where the twin had none
                laid_out = here.of(joined(inherited, laid_out.pages))
                self._lay_out(PAGES, laid_out.data.reshape(-1).data)
        entries = entries_of(present=laid_out.pages)
        self._lay_out(f"pagemap-{pid}.img", encode(PageMap(PAGES_ID, entries)))

    def _local(self, manifest: CheckpointManifest, pages: Pages) -> LocalPages:
        """The pages that are here, most of them in the patched base image."""
        if self._here is None or not manifest.base:
            return super()._local(manifest, pages)
        rounds = self._rounds_here(manifest.rounds)[1:]
        return LocalPages(rounds, manifest.pid, pages, *self._here.parts())
