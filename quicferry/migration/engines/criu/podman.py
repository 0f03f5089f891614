"""Engines ``podman-cold`` and ``podman-pre-copy``: Podman dumps and restores the server's container.

=============  ==========================================  ==================================================
engine         before the downtime                         in the downtime
=============  ==========================================  ==================================================
cold                                                       checkpoint --export, transfer, restore --import
pre-copy       checkpoint --pre-checkpoint, transfer       the same ``--with-previous``, ``--import-previous``
=============  ==========================================  ==================================================

All is Podman's own but for three things, which the promises of the other engines take. The archives cross in
the agents' stream, packed and with digests. The container's control group is frozen when the dump begins, and
the container is left there (``--leave-running``) until the move is decided: a move that fails thaws it. And
Podman is started before the downtime.

The archive has the files of the container and its volumes, so they cross in the downtime, all of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from quicferry.errors import MigrationError
from quicferry.migration.container.podman_container import PodmanContainer
from quicferry.migration.criu.command import Criu
from quicferry.migration.criu.image_stream import CheckpointManifest, RecordKind, Unpacker, record
from quicferry.migration.criu.packing import Packer, unpack
from quicferry.migration.criu.podman import ARCHIVE, PREVIOUS, Podman
from quicferry.migration.engines.base import EngineContext
from quicferry.migration.engines.criu.cold import CriuColdEngine
from quicferry.migration.engines.criu.rounds import closing_records
from quicferry.migration.engines.criu.runc import RuncEngine
from quicferry.migration.order import CHUNK_BYTES, MoveOrder


class PodmanColdEngine(RuncEngine, CriuColdEngine):
    """The engine ``podman-cold``: checkpoint into an archive, copy it, restore from it."""

    name = "podman-cold"
    method = "dumped by Podman, with runc and CRIU, into an archive"
    dumps_stopped = True
    grows = ARCHIVE

    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        self._podman: Podman | None = None
        if not isinstance(context.container, PodmanContainer):
            raise MigrationError(f"{self.name} needs a server that runs in a container of Podman's")
        self._podman_box = context.container

    def _tool(self) -> Criu:
        """Podman, which runs runc, which runs CRIU."""
        self._runc = self._podman = Podman(self._podman_box, keep_tcp=self._context.keep_tcp)
        return self._podman

    def _tool_ready(self) -> Podman:
        self._ready()
        assert self._podman is not None
        return self._podman

    def _others(self) -> list[int]:
        """As in the base, without Podman's monitor of each container, which names runc and stays."""
        monitors = {each.pid for each in self._container.processes() if _is_monitor(each.argv)}
        return [pid for pid in super()._others() if pid not in monitors]

    async def _make_process(
        self, order: MoveOrder, manifest: CheckpointManifest, detail: dict[str, Any]
    ) -> None:
        """Give the files that came to the server's user, then restore the container."""
        self._box.hand_over(manifest.files)
        await super()._make_process(order, manifest, detail)


class PodmanPreCopyEngine(PodmanColdEngine):
    """The engine ``podman-pre-copy``: one pre-checkpoint while the server serves, then as ``podman-cold``."""

    name = "podman-pre-copy"
    method = "pre-dumped and dumped by Podman, with runc and CRIU, into archives"
    dumps_by_rounds = True

    async def copy_ahead(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Have Podman dump the memory of the running server and send the archive; then have it ready."""
        podman = self._tool_ready()
        packer = Packer(order.compression)
        with self._context.events.phase("migration.precopy.round", epoch=order.epoch) as detail:
            pid = self._server_pid()
            stats = await podman.pre_dump(pid, self._images, None, timeout_s=order.deadlines.precopy_s)
            self._rounds = 1
            size_bytes = 0
            async for chunk in packer.pack_all(self._pieces()):
                size_bytes += len(chunk)
                yield chunk
            detail.update(round=1, pages=stats.pages_written, bytes=size_bytes, stop="Podman has one")
        for chunk in packer.pack(closing_records(order.epoch, pid, self._rounds), flush=True):
            yield chunk
        with contextlib.suppress(MigrationError):  # then it starts in the downtime, and says why not
            await podman.ready_to_dump(self._images)

    def _pieces(self) -> Iterator[bytes]:
        """Records of the archive of the pre-checkpoint."""
        with (self._outside / PREVIOUS).open("rb") as file:
            while piece := file.read(CHUNK_BYTES):
                yield record(RecordKind.IMAGE, PREVIOUS, piece)

    async def accept_ahead(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> None:
        """Keep the archive of the pre-checkpoint."""
        self._ready()
        unpacker = Unpacker(self._outside, self._container.path("/"), self._received)
        await unpack(order.compression, unpacker, chunks)
        if unpacker.manifest().epoch != order.epoch:
            raise MigrationError(f"a pre-checkpoint of another epoch than {order.epoch}")

    async def _forget(self) -> None:
        """Count rounds anew."""
        await super()._forget()
        self._rounds = 0


def _is_monitor(argv: list[str]) -> bool:
    return bool(argv) and Path(argv[0]).name == "conmon"
