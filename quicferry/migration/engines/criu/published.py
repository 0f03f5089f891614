"""Engines ``published-…``: what the work that is reproduced did, phase after phase and nothing more.

=============  ==================================  ============================================
engine         before the downtime                 in the downtime
=============  ==================================  ============================================
cold                                               runc checkpoint, rsync, runc restore
pre-copy       runc checkpoint --pre-dump, rsync   runc checkpoint --parent-path, rsync, runc restore
=============  ==================================  ============================================

They are here to be compared with, in the same run of the same bench (docs/containers.md). No phase
overlaps another, nothing is packed, the files cross by rsync over the link between the edges, and the
container is gone at the source when it was dumped: a move that fails leads back by a restore from the
images. The agents carry the word that the images have come, and nothing else.

The order of the phases is that of Puliafito et al., Pervasive and Mobile Computing 2022, section on container
migration, with runc and rsync. Its rsync went through ssh; this one does not, which favours it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from quicferry.errors import UNDECODABLE, MigrationError
from quicferry.migration.container.layer import UPPER, VOLUMES
from quicferry.migration.criu import rsync
from quicferry.migration.criu.image_stream import CheckpointManifest
from quicferry.migration.engines.base import EngineContext
from quicferry.migration.engines.criu.base import Held
from quicferry.migration.engines.criu.runc import RuncEngine
from quicferry.migration.order import MoveOrder

#: Tells the agents that the dump is over and that files are on their way. It means nothing to the other end.
ON_ITS_WAY = b" "


class PublishedColdEngine(RuncEngine):
    """The engine ``published-cold``: checkpoint, copy, restore."""

    name = "published-cold"
    method = "dumped by runc into files, which rsync copied"
    is_ready_before = False

    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        self._daemon = rsync.RsyncDaemon(self._box)

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
        files = await self._dump(order, pid)
        yield ON_ITS_WAY
        layer = [str(UPPER), str(VOLUMES)] if self._box.layer is not None else []
        await self._copy(order, [str(self._last_images()), *layer, *files])
        manifest = CheckpointManifest(epoch=order.epoch, pid=pid, files=files, rounds=self._rounds)
        yield msgspec.json.encode(manifest)

    async def _dump(self, order: MoveOrder, pid: int) -> list[str]:
        """Freeze the server and dump it; returns the files that it has open."""
        self._ready()
        runc = self._runc
        assert runc is not None
        with self._context.events.phase("migration.checkpoint", epoch=order.epoch) as detail:
            await self._freeze(order)
            files = self._box.open_files(pid)
            stats = await runc.dump_and_end(
                self._last_images(), self._parent(), timeout_s=order.deadlines.checkpoint_s
            )
            self._box.disown()
            images = self._box.path(str(self._last_images()))
            detail["method"] = self.method
            detail["rounds"] = self._rounds
            detail["bytes"] = sum(file.stat().st_size for file in images.iterdir() if file.is_file())
            detail["criu"] = msgspec.structs.asdict(stats)
        return files

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

    # destination

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also start rsync's daemon."""
        await super().prepare_destination(order)
        await self._box.renew_layer()
        await self._daemon.start()

    async def restore(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Wait for the word that all files are here, restore the container and give it Resume."""
        manifest = await _manifest(chunks)
        try:
            # not to be cut off in the middle, see the base
            return await asyncio.shield(asyncio.create_task(self._bring_up(order, manifest)))
        finally:
            await self._daemon.stop()

    async def _make_process(
        self, order: MoveOrder, manifest: CheckpointManifest, detail: dict[str, Any]
    ) -> None:
        """Restore the container; ``detail`` goes into the event."""
        if self._box.layer is not None:  # rsync has written to the layer itself
            await self._box.layer.remount()
        stats = await self._ready().restore(self._last_images(), timeout_s=order.deadlines.restore_s)
        detail["criu"] = msgspec.structs.asdict(stats)

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        """Also end rsync's daemon."""
        await super().abandon_destination(order, reason)
        await self._daemon.stop()


class PublishedPreCopyEngine(PublishedColdEngine):
    """The engine ``published-pre-copy``: one pre-dump while the server serves, then as ``published-cold``."""

    name = "published-pre-copy"
    method = "pre-dumped and dumped by runc into files, which rsync copied"

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


async def _manifest(chunks: AsyncIterator[bytes]) -> CheckpointManifest:
    """What the source says at the end. Raises ``MigrationError`` when it is cut off."""
    said = b"".join([chunk async for chunk in chunks])
    try:
        return msgspec.json.decode(said, type=CheckpointManifest)
    except UNDECODABLE as error:
        raise MigrationError("the checkpoint is cut off", hint="the source stopped sending it") from error
