"""Engine ``criu-cold``: stop the process, copy its checkpoint, restore it at the destination.

While CRIU still writes the memory image, its beginning is already on its way: pages are read as the
file grows, packed into one zstd stream and unpacked at the other end as they come. So dump,
compression, network and unpacking overlap; only the restore waits for the last byte.

The dumped process is not killed but left stopped. It keeps its sockets and its PID at the source
until the destination serves; if that fails, it goes on where it stood. If it has died meanwhile,
it is restored from the images, which are kept as long.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec

from quicferry.migration.criu.command import Criu
from quicferry.migration.criu.image_stream import LEFT_BEHIND, CheckpointManifest, RecordKind, record
from quicferry.migration.criu.packing import Packer
from quicferry.migration.engines.criu.base import CriuEngine, Held
from quicferry.migration.order import CHUNK_BYTES, MoveOrder

#: How long the reader of the growing image sleeps when there is nothing new.
TAIL_S = 0.001
QUEUED_CHUNKS = 8


class CriuColdEngine(CriuEngine):
    """The engine ``criu-cold``: dump everything, transfer while it is dumped, restore."""

    name = "criu-cold"
    holds_criu = True
    method = "dumped by CRIU"  # how the memory gets into the image, for the record
    #: the process is halted first; halted by a signal, it is restored as one that is stopped
    dumps_stopped = False
    #: the files that grow during the dump and are sent meanwhile, as a pattern
    grows = "pages-*.img"

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also have CRIU wait for the dump."""
        await super().prepare_source(order)
        await self._hold_dump(memory=True)

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Also have CRIU wait for the restore."""
        await super().prepare_destination(order)
        await self._hold_restore(lazy=False)

    async def checkpoint(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Freeze the server, dump it, and yield the packed images while they are written."""
        pid = self._server_pid()
        self._held = Held(order.epoch, pid)
        self._dumping = asyncio.create_task(self._dump(self._ready(), order, pid))
        # Packing goes on while the agent sends; the bound keeps it from running far ahead.
        packed: asyncio.Queue[bytes | None] = asyncio.Queue(QUEUED_CHUNKS)
        packing = asyncio.create_task(self._pack(order, pid, self._dumping, packed))
        try:
            while (chunk := await packed.get()) is not None:
                yield chunk
            await packing
        finally:
            packing.cancel()
            await asyncio.wait([packing])
            await self._dump_is_over()

    async def _pack(
        self, order: MoveOrder, pid: int, dumping: asyncio.Task[None], packed: asyncio.Queue[bytes | None]
    ) -> None:
        """Read, compress and queue all records; None ends the queue, also after a failure."""
        try:
            await self._pack_all(order, pid, dumping, packed)
        except Exception:  # not when cancelled: then nobody reads on, and a full queue would hold this up
            await packed.put(None)
            raise
        await packed.put(None)

    async def _pack_all(
        self, order: MoveOrder, pid: int, dumping: asyncio.Task[None], packed: asyncio.Queue[bytes | None]
    ) -> None:
        """Compress the growing images until CRIU has finished, then the other records."""
        packer = Packer(order.compression)
        tail = _Tail(self._outside, self.grows)
        while True:
            finished = dumping.done()
            if finished:
                dumping.result()  # a failed dump ends the stream here
            piece = tail.next_piece(CHUNK_BYTES if not finished else 1)
            if piece is not None:
                for chunk in await asyncio.to_thread(packer.pack, piece):
                    await packed.put(chunk)
            elif finished:
                break
            else:
                await asyncio.wait([dumping], timeout=TAIL_S)
        closing = b"".join(self._closing_records(order, pid))
        for chunk in await asyncio.to_thread(packer.pack, closing, flush=True):
            await packed.put(chunk)

    async def _dump(self, criu: Criu, order: MoveOrder, pid: int) -> None:
        """Freeze the server and have it dumped; the event tells how."""
        with self._context.events.phase("migration.checkpoint", epoch=order.epoch) as detail:
            await self._freeze(order)
            if self.dumps_stopped:
                await self._container.halt(pid)
            collecting = asyncio.create_task(self._collect_files())
            stats = await criu.dump(pid, self._images, timeout_s=order.deadlines.checkpoint_s)
            await collecting
            detail["method"] = self.method
            detail["bytes"] = sum(file.stat().st_size for file in self._outside.iterdir())
            detail["criu"] = msgspec.structs.asdict(stats)

    def _closing_records(self, order: MoveOrder, pid: int) -> Iterator[bytes]:
        """Records of what was not sent while CRIU wrote: small images, open files, manifest."""
        yield from self._last_files()
        for path in sorted(self._outside.iterdir()):
            if path.suffix == ".img" and not _is_pages(path) and path.name not in LEFT_BEHIND:
                yield record(RecordKind.IMAGE, path.name, path.read_bytes())
        files = self._container.open_files(pid)
        stopped = self.dumps_stopped and self._container.halts_by_signal
        manifest = CheckpointManifest(epoch=order.epoch, pid=pid, files=files, stopped=stopped)
        yield from self._file_records(pid, manifest)

    async def _restore_dead(self, held: Held, order: MoveOrder) -> None:
        """Restore the server from its own images, if the dump was completed."""
        dumping = self._dumping
        if dumping is None or dumping.cancelled() or dumping.exception() is not None:
            await super()._restore_dead(held, order)
        for pid in self._image_tasks():  # its children live on, and hold their PIDs
            if self._container.is_alive(pid):
                await self._container.stop(pid, grace_s=0)
        await self._ready().restore(self._images, timeout_s=order.deadlines.restore_s)
        self._container.adopt(held.pid)


def _is_pages(path: Path) -> bool:
    """Whether a file of the image directory holds memory."""
    return path.name.startswith("pages-")


class _Tail:
    """Reads the files of a directory whose names fit a pattern as they grow."""

    def __init__(self, images: Path, pattern: str) -> None:
        self._images = images
        self._pattern = pattern
        self._sent: dict[str, int] = {}

    def next_piece(self, at_least: int) -> bytes | None:
        """The next record of at most a chunk; None when fewer bytes than that are new."""
        for path in sorted(self._images.glob(self._pattern)):
            sent = self._sent.get(path.name, 0)
            new = path.stat().st_size - sent
            if new >= at_least:
                with path.open("rb", buffering=0) as file:
                    file.seek(sent)
                    data = file.read(min(new, CHUNK_BYTES))
                self._sent[path.name] = sent + len(data)
                return record(RecordKind.IMAGE, path.name, data)
        return None
