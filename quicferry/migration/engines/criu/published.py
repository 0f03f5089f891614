"""Engines ``published-…``: what the work that is reproduced did, phase after phase and nothing more.

=============  ==================================  ======================================================
engine         before the downtime                 in the downtime
=============  ==================================  ======================================================
cold                                               runc checkpoint, rsync, runc restore
pre-copy       runc checkpoint --pre-dump, rsync   runc checkpoint --parent-path, rsync, runc restore
post-copy                                          runc checkpoint --lazy-pages, rsync, criu lazy-pages,
                                                   runc restore --lazy-pages; then the memory
hybrid         as pre-copy                         both of them
=============  ==================================  ======================================================

They are here to be compared with, in the same run of the same bench (docs/containers.md). No phase
overlaps another, nothing is packed, the files cross by rsync over the link between the edges, and the
container is gone at the source when it was dumped: a move that fails leads back by a restore from the
images. The agents carry the word that the images have come, and nothing else.

With post-copy and hybrid CRIU's page server and CRIU's daemon have a TCP connection between the edges, as
published: neither encrypted nor packed. It is opened before the downtime, by the agents, as neither end
takes part in the other's start; CRIU has its two ends. Afterwards the container must not go on at the source:
its control group is frozen as soon as it is dumped.

The order of the phases is that of Puliafito et al., Pervasive and Mobile Computing 2022, section on container
migration, with runc and rsync. Its rsync went through ssh; this one does not, which favours it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec

from quicferry.errors import UNDECODABLE, MigrationError
from quicferry.migration.container.layer import UPPER, VOLUMES
from quicferry.migration.criu import rsync
from quicferry.migration.criu.image_stream import CheckpointManifest
from quicferry.migration.criu.meeting import MeetingPoint
from quicferry.migration.criu.page_server import BackgroundCriu
from quicferry.migration.engines.base import EngineContext
from quicferry.migration.engines.criu.base import Held
from quicferry.migration.engines.criu.native_copy import why_ended
from quicferry.migration.engines.criu.native_runc import RuncMemoryEngine
from quicferry.migration.engines.criu.runc import RuncEngine
from quicferry.migration.memory.pagemap import PAGE_BYTES
from quicferry.migration.order import MoveOrder
from quicferry.migration.rpc.tunnel_messages import TunnelCall

#: Tells the agents that the dump is over and that files are on their way. It means nothing to the other end.
ON_ITS_WAY = b" "


class PublishedEngine(RuncEngine):
    """What is the same for all of them."""

    is_ready_before = False
    method = ""  # how the server and its memory move, for the record

    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        self._rsync = rsync.RsyncDaemon(self._box)

    # source

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also look for rsync. Raises ``Unsupported``."""
        rsync.find_rsync()
        await super().prepare_source(order)

    def _last_images(self) -> Path:
        """The directory of the images that a restore begins with."""
        return self._images

    async def checkpoint(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Freeze the server, have runc dump and end the container, then copy the files."""
        pid = self._server_pid()
        self._held = Held(order.epoch, pid)
        dumping = asyncio.create_task(self._dump(order, pid))
        self._dumping = dumping
        try:
            files = await asyncio.shield(dumping)
        finally:
            await self._dump_is_over()
        yield ON_ITS_WAY
        layer = [str(UPPER), str(VOLUMES)] if self._box.layer is not None else []
        await self._copy(order, [str(self._last_images()), *layer, *files])
        manifest = CheckpointManifest(
            epoch=order.epoch, pid=pid, files=files, rounds=self._rounds, lazy=self._lazy_in_images()
        )
        yield msgspec.json.encode(manifest)

    async def _dump(self, order: MoveOrder, pid: int) -> list[str]:
        """Freeze the server and dump it; returns the files that it has open."""
        self._ready()
        with self._context.events.phase("migration.checkpoint", epoch=order.epoch) as detail:
            await self._freeze(order)
            files = self._box.open_files(pid)
            await self._have_dumped(order, pid, detail)
            images = self._box.path(str(self._last_images()))
            detail["method"] = self.method
            detail["rounds"] = self._rounds
            detail["bytes"] = sum(file.stat().st_size for file in images.iterdir() if file.is_file())
        return files

    async def _have_dumped(self, order: MoveOrder, pid: int, detail: dict[str, Any]) -> None:
        """Have runc dump the server; ``detail`` goes into the event."""
        raise NotImplementedError

    def _lazy_in_images(self) -> dict[int, int]:
        """Pages that the images lack, by PID in them."""
        return {}

    def _parent(self) -> str | None:
        """The images that this dump builds upon, relative to its own directory."""
        return None

    async def _copy(self, order: MoveOrder, paths: list[str]) -> None:
        """Copy files to the destination by rsync; the event tells how much that was."""
        host = self._context.address_of(order.destination)
        with self._context.events.phase("migration.rsync", epoch=order.epoch) as detail:
            detail["bytes"] = await rsync.copy(
                self._container, paths, host, timeout_s=order.deadlines.transfer_s
            )

    # destination

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also start rsync's daemon."""
        await super().prepare_destination(order)
        await self._box.renew_layer()
        await self._rsync.start()

    async def restore(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Wait for the word that all files are here, restore the container and give it Resume."""
        manifest = await _manifest(chunks)
        try:
            # not to be cut off in the middle, see the base
            return await asyncio.shield(asyncio.create_task(self._bring_up(order, manifest)))
        finally:
            await self._rsync.stop()

    async def _make_process(
        self, order: MoveOrder, manifest: CheckpointManifest, detail: dict[str, Any]
    ) -> None:
        """Restore the container; ``detail`` goes into the event."""
        if self._box.layer is not None:  # rsync has written to the layer itself
            await self._box.layer.remount()
        await self._have_restored(order, manifest, detail)

    async def _have_restored(
        self, order: MoveOrder, manifest: CheckpointManifest, detail: dict[str, Any]
    ) -> None:
        """Have runc restore the server; ``detail`` goes into the event."""
        stats = await self._ready().restore(self._last_images(), timeout_s=order.deadlines.restore_s)
        detail["criu"] = msgspec.structs.asdict(stats)

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        """Also end rsync's daemon, which must not write to the container's layer any more."""
        try:
            await self._rsync.stop()
        finally:
            await super().abandon_destination(order, reason)


class PublishedColdEngine(PublishedEngine):
    """The engine ``published-cold``: checkpoint, copy, restore."""

    name = "published-cold"
    method = "dumped by runc into files, which rsync copied"

    async def _have_dumped(self, order: MoveOrder, pid: int, detail: dict[str, Any]) -> None:
        """Have runc dump and end the server."""
        runc = self._runc
        assert runc is not None
        stats = await runc.dump_and_end(
            self._last_images(), self._parent(), timeout_s=order.deadlines.checkpoint_s
        )
        self._box.disown()
        detail["criu"] = msgspec.structs.asdict(stats)

    def _held_in(self, order: MoveOrder) -> Held | None:
        """The container that this move dumped, or was about to dump, here."""
        return Held(order.epoch, self._held.pid if self._held is not None else 0)

    async def give_up_source(self, order: MoveOrder) -> None:
        """Remove the images: the container is gone already."""
        self._clear_images()
        self._held = None

    async def _revive(self, held: Held, order: MoveOrder) -> None:
        """Restore the container from its images, if it was dumped; else it still runs."""
        if self._box.service_pid is not None:
            return
        if not (self._box.path(str(self._last_images())) / "inventory.img").exists():
            raise MigrationError(
                f"the server on {self._context.edge} died and there is no checkpoint of it",
                hint="look at its log in the run directory",
            )
        await self._ready().restore(self._last_images(), timeout_s=order.deadlines.restore_s)
        self._box.adopt(self._box.pid_made())


class PreDumps(PublishedEngine):
    """Has runc dump the memory once while the server serves; goes before the engine that dumps the rest."""

    @property
    def _ahead(self) -> Path:
        """The directory of the pre-dump."""
        return self._images / "parent-images"

    def _last_images(self) -> Path:
        """The directory of the last images; that of the pre-dump is beside it."""
        return self._images / "images"

    def _parent(self) -> str | None:
        """The pre-dump, relative to the last images."""
        return f"../{self._ahead.name}"

    async def copy_ahead(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Have runc dump the memory of the running server, then copy the files."""
        self._ready()
        runc = self._runc
        assert runc is not None
        with self._context.events.phase("migration.precopy.round", epoch=order.epoch) as detail:
            stats = await runc.pre_dump(
                self._server_pid(), self._ahead, None, timeout_s=order.deadlines.precopy_s
            )
            self._rounds = 1
            detail.update(round=1, pages=stats.pages_written, stop="as published: one")
        yield ON_ITS_WAY
        await self._copy(order, [str(self._ahead)])
        manifest = CheckpointManifest(epoch=order.epoch, pid=self._server_pid(), files=[], rounds=1)
        yield msgspec.json.encode(manifest)

    async def accept_ahead(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> None:
        """Wait for the word that the files of the pre-dump are here."""
        await _manifest(chunks)

    async def _forget(self) -> None:
        """Count rounds anew."""
        await super()._forget()
        self._rounds = 0


class PublishedPreCopyEngine(PreDumps, PublishedColdEngine):
    """The engine ``published-pre-copy``: one pre-dump while the server serves, then as ``published-cold``."""

    name = "published-pre-copy"
    method = "pre-dumped and dumped by runc into files, which rsync copied"


class PublishedPostCopyEngine(PublishedEngine, RuncMemoryEngine):
    """The engine ``published-post-copy``: checkpoint without memory, copy, restore; then the memory."""

    name = "published-post-copy"
    method = (
        "dumped by runc into files, which rsync copied; memory by CRIU's page server and lazy-pages daemon"
    )
    lazily = True

    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        self._meeting = MeetingPoint()
        self._connection: socket.socket | None = None  # to CRIU's daemon

    # source

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also be there for the connection between the two CRIU."""
        await super().prepare_source(order)
        self._meeting.expect(self._context.address_of(order.destination))

    async def _dump(self, order: MoveOrder, pid: int) -> list[str]:
        """Wait for the connection, then freeze the server and dump it."""
        self._connection = await self._meeting.met()
        return await super()._dump(order, pid)

    async def _have_dumped(self, order: MoveOrder, pid: int, detail: dict[str, Any]) -> None:
        """Have runc dump the server without its memory, and CRIU serve that."""
        self._server = await self._with_memory().dump_and_serve(
            pid,
            self._last_images(),
            self._parent(),
            timeout_s=order.deadlines.checkpoint_s,
            connection=self._connection,
        )
        # CRIU holds it until its memory has crossed, and would then let it go on
        await self._box.halt(pid)
        detail["memory_by"] = "criu"

    def _lazy_in_images(self) -> dict[int, int]:
        """Pages that CRIU's page server has, by PID in the images."""
        return self._count_lazy(self._box.path(str(self._last_images())))

    async def drain_source(self, order: MoveOrder) -> dict[str, Any]:
        """Wait until the destination has all memory."""
        drained = await super().drain_source(order)
        return {**drained, "bytes": drained["pages"] * PAGE_BYTES}

    async def _forget_source(self) -> None:
        """Also close a connection that was not needed."""
        await super()._forget_source()
        self._meeting.close()
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # destination

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also open the connection between the two CRIU."""
        await super().prepare_destination(order)
        # not waited for: the source may not have heard of the move yet
        self._meeting.reach(self._context.address_of(order.source))

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        """Also close a connection that was not needed."""
        await super().abandon_destination(order, reason)
        self._meeting.close()

    async def _connection_to_source(self) -> socket.socket | None:
        return await self._meeting.reached()

    async def _have_restored(
        self, order: MoveOrder, manifest: CheckpointManifest, detail: dict[str, Any]
    ) -> None:
        """Have CRIU's daemon fetch memory, and runc restore the server."""
        await self._restore_with_memory(order, manifest, detail)

    async def _fetch(
        self, order: MoveOrder, daemon: BackgroundCriu, opened: Callable[[], TunnelCall], lifetime_s: float
    ) -> str | None:
        """Wait until all memory is in place. Returns why it never will be."""
        try:
            async with asyncio.timeout(lifetime_s):
                status = await daemon.process.wait()
        except TimeoutError:
            return "not all memory came in time"
        finally:
            daemon.hang_up()
        return None if status == 0 else str(why_ended(daemon, status))

    async def _forget_destination(self) -> None:
        """Also close a connection that was not needed."""
        await super()._forget_destination()
        self._meeting.close()


class PublishedHybridEngine(PreDumps, PublishedPostCopyEngine):
    """The engine ``published-hybrid``: one pre-dump while the server serves, then as post-copy."""

    name = "published-hybrid"
    method = "pre-dumped by runc, then as post-copy"


async def _manifest(chunks: AsyncIterator[bytes]) -> CheckpointManifest:
    """What the source says at the end. Raises ``MigrationError`` when it is cut off."""
    said = b"".join([chunk async for chunk in chunks])
    try:
        return msgspec.json.decode(said, type=CheckpointManifest)
    except UNDECODABLE as error:
        raise MigrationError("the checkpoint is cut off", hint="the source stopped sending it") from error
