"""Engines ``runc-…``: as ``criu-…``, for a server that runc runs as an OCI container.

What differs is the same for all: runc dumps and restores; the container is halted before the dump, so that
it stands still at the source until the move is decided; and it has a PID namespace of its own, so that its
processes have other PIDs in the images than on the hosts. The rest is the base's, and so are the
guarantees.

Memory moves by the agents, as with the engines ``criu-…``: it is read in the halted container, put in
place in the restored one, and crosses in the agents' stream. What runc itself can do about it is compared
in docs/adr/0010.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from quicferry.errors import MigrationError
from quicferry.migration.container.oci_container import OciContainer
from quicferry.migration.criu.command import Criu
from quicferry.migration.criu.image_stream import CheckpointManifest, RecordKind, Unpacker, record
from quicferry.migration.criu.packing import Packer, unpack
from quicferry.migration.criu.runc import Runc
from quicferry.migration.engines.base import EngineContext
from quicferry.migration.engines.criu.agent_copy import (
    CriuColdOnBaseEngine,
    CriuCopyEngine,
    CriuHybridEngine,
    CriuPostCopyEngine,
    CriuPostCopyOnBaseEngine,
    CriuPreCopyEngine,
)
from quicferry.migration.engines.criu.base import AHEAD, LAST, CriuEngine, Held
from quicferry.migration.engines.criu.cold import CriuColdEngine
from quicferry.migration.engines.criu.rounds import closing_records
from quicferry.migration.order import CHUNK_BYTES, MoveOrder


class RuncEngine(CriuEngine):
    """What is the same for all engines with runc; goes before the engine without it in the list of bases."""

    holds_criu = False  # runc starts it
    is_ready_before = True  # runc is started before the downtime, and waits
    dumps_by_rounds = False  # what the dump builds upon is not known before
    dumps_memory = True  # the dump has the memory in it

    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        self._runc: Runc | None = None
        if not isinstance(context.container, OciContainer):
            raise MigrationError(f"{self.name} needs a server that runs as an OCI container")
        self._box = context.container

    def _tool(self) -> Criu:
        """runc, which runs CRIU."""
        self._runc = Runc(self._box, keep_tcp=self._context.keep_tcp)
        return self._runc

    async def _forget(self) -> None:
        """Also end a runc that was ready and not needed."""
        await super()._forget()
        await self._close()

    async def _close(self) -> None:
        """End a runc that is ready."""
        if self._runc is not None:
            await self._runc.close()

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also have runc ready to dump: of what it does, most needs no server that stands still."""
        await super().prepare_source(order)
        if self.is_ready_before and not self.dumps_by_rounds and self._runc is not None:
            with contextlib.suppress(MigrationError):  # then it starts in the downtime, and says why not
                await self._runc.ready_to_dump(self._images, memory=self.dumps_memory)

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also let runc forget a container that was here before, and have it ready to restore one."""
        await super().prepare_destination(order)
        await self._box.forget()
        if self.is_ready_before and self._runc is not None:
            with contextlib.suppress(MigrationError):  # as at the source
                await self._runc.ready_to_restore(self._images, lazy=self._restores_lazily())

    def _restores_lazily(self) -> bool:
        """Whether the restore will leave memory out, as far as is known before the move."""
        return False

    async def resume_source(self, order: MoveOrder, reason: str) -> dict[str, Any]:
        """End a runc that is ready to dump, then let the container go on."""
        if order.epoch not in self._resumed and not self._is_dumping:
            await self._close()
        return await super().resume_source(order, reason)

    @property
    def _is_dumping(self) -> bool:
        return self._dumping is not None and not self._dumping.done()

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        """Also end a runc that is ready to restore, and remove the container's files that have come."""
        await super().abandon_destination(order, reason)
        if self._box.service_pid is None:  # else the move was refused, as a server runs here
            await self._close()
            # the edge host's container may be gone, and its files with it
            with contextlib.suppress(MigrationError):
                await self._box.renew_layer()

    async def _restore_dead(self, held: Held, order: MoveOrder) -> None:
        """Restore the container from its own images; the server has a new PID then."""
        await super()._restore_dead(held, order)
        pid = self._box.pid_made()
        self._box.adopt(pid)
        await self._box.unhalt(pid)

    def _check_family(self) -> None:
        """Nothing: all that is in the server's PID namespace moves."""

    def _image_tasks(self) -> list[int]:
        """None: those in the images have other PIDs here."""
        return []

    def _check_room(self, manifest: CheckpointManifest) -> None:
        """Raise ``MigrationError`` when a server runs here. PIDs do not matter: it has its own namespace."""
        if self._box.service_pid is not None:
            raise MigrationError(f"a server already runs on {self._context.edge}")

    def _pid_of(self, manifest: CheckpointManifest) -> int:
        """The PID that runc noted of what it restored."""
        return self._box.pid_made()

    def _image_pid(self, pid: int) -> int:
        """The server is PID 1 of its container; in its images every process has the PID it has there."""
        return 1

    def _proc_of(self, image_pid: int) -> Path:
        """The directory of a process under ``/proc``, by its PID in the images."""
        pid = self._box.pid_of_inner(image_pid)
        if pid is None:
            raise MigrationError(f"process {image_pid} of the container on {self._context.edge} is gone")
        return self._box.path(f"/proc/{pid}")

    async def _kill_made(self) -> None:
        """Kill the container that was restored here, with all its processes."""
        with contextlib.suppress(OSError, ValueError):  # runc has noted nothing: then it made nothing
            await self._box.stop(self._box.pid_made(), grace_s=0)

    async def _unmake_process(self) -> None:
        """Remove the container that was restored here."""
        with contextlib.suppress(MigrationError):  # the edge host's container may be gone
            await self._box.remove()


class OwnFilesEngine(RuncEngine):
    """Moves the files that the container has written: most before the downtime, the last changes within."""

    def __init__(self, context: EngineContext) -> None:
        super().__init__(context)
        self._last_names: list[str] = []

    async def _files_ahead(self) -> Iterator[bytes]:
        """Records of all that is in the container's layer and volumes."""
        if self._box.layer is None:
            return iter(())
        self._ready()
        names = await self._box.layer.pack(PurePosixPath(self._images), AHEAD, quiet=False)
        return self._records_of(names)

    async def _collect_files(self) -> None:
        """Pack what differs by now."""
        self._last_names = []
        if self._box.layer is not None:
            images = PurePosixPath(self._images)
            self._last_names = await self._box.layer.pack(images, LAST, quiet=True)

    def _last_files(self) -> Iterator[bytes]:
        """Records of what differed."""
        return self._records_of(self._last_names)

    def _records_of(self, names: list[str]) -> Iterator[bytes]:
        """Records of packed files, each of which is removed when it was read: it is memory, and no image."""
        for name in names:
            packed = self._outside / name
            with packed.open("rb") as file:
                while piece := file.read(CHUNK_BYTES):
                    yield record(RecordKind.IMAGE, name, piece)
            packed.unlink()

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also begin with an empty layer."""
        # before runc is ready: it looks at the root when it starts
        await self._box.forget()
        await self._box.renew_layer()
        await super().prepare_destination(order)

    async def _files_have_come(self, number: int) -> None:
        """Write files to the layer and the volumes."""
        if self._box.layer is not None:
            await self._box.layer.apply(PurePosixPath(self._images), number)

    async def _make_process(
        self, order: MoveOrder, manifest: CheckpointManifest, detail: dict[str, Any]
    ) -> None:
        """Bring the last changes of files, then restore the container."""
        await self._files_have_come(LAST)
        self._box.hand_over(manifest.files)
        await super()._make_process(order, manifest, detail)


class FilesAheadEngine(OwnFilesEngine):
    """Sends the container's files while it runs, and nothing else: its memory crosses later."""

    async def copy_ahead(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Send the files that the container has written."""
        packer = Packer(order.compression)
        async for chunk in packer.pack_all(await self._files_ahead()):
            yield chunk
        for chunk in packer.pack(closing_records(order.epoch, self._server_pid(), 0), flush=True):
            yield chunk

    async def accept_ahead(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> None:
        """Write them to the layer here."""
        self._ready()
        unpacker = Unpacker(self._outside, self._container.path("/"), self._received)
        await unpack(order.compression, unpacker, chunks)
        if unpacker.manifest().epoch != order.epoch:
            raise MigrationError(f"files of another epoch than {order.epoch}")
        await self._files_have_come(AHEAD)


class RuncColdEngine(FilesAheadEngine, CriuColdEngine):
    """The engine ``runc-cold``: as ``criu-cold``, with runc for CRIU."""

    name = "runc-cold"
    method = "dumped by runc with CRIU"
    dumps_stopped = True


class RuncCopyEngine(OwnFilesEngine, CriuCopyEngine):
    """What is the same for the engines whose dump has no memory in it."""

    dumps_memory = False

    def _restores_lazily(self) -> bool:
        return self._can_restore_lazily


class RuncPreCopyEngine(RuncCopyEngine, CriuPreCopyEngine):
    """The engine ``runc-pre-copy``: as ``criu-pre-copy``, with runc for CRIU."""

    name = "runc-pre-copy"


class RuncColdOnBaseEngine(RuncCopyEngine, FilesAheadEngine, CriuColdOnBaseEngine):
    """The engine ``runc-cold`` with a base image: as ``criu-cold``, with runc for CRIU."""

    name = "runc-cold"


class RuncPostCopyOnBaseEngine(RuncCopyEngine, FilesAheadEngine, CriuPostCopyOnBaseEngine):
    """The engine ``runc-post-copy`` with a base image: as ``criu-post-copy``, with runc for CRIU."""

    name = "runc-post-copy"


class RuncPostCopyEngine(RuncCopyEngine, FilesAheadEngine, CriuPostCopyEngine):
    """The engine ``runc-post-copy``: as ``criu-post-copy``, with runc for CRIU."""

    name = "runc-post-copy"


class RuncHybridEngine(RuncCopyEngine, CriuHybridEngine):
    """The engine ``runc-hybrid``: as ``criu-hybrid``, with runc for CRIU."""

    name = "runc-hybrid"
