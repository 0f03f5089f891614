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
import contextlib
import shutil
import signal
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import zstandard

from quicferry.errors import MigrationError
from quicferry.migration.container import Container
from quicferry.migration.control import Abort, Freeze, Resume
from quicferry.migration.criu import Criu
from quicferry.migration.criu_image import LEFT_BEHIND, Kind, Manifest, Unpacker, record
from quicferry.migration.engines.base import CHUNK_BYTES, EngineContext, MoveOrder, check_lease

#: The memory of a Python server shrinks to a quarter at 400 MB/s, and what cannot shrink passes at
#: 1 GB/s: at 1 Gbit/s this takes more than a third off the downtime. See docs/adr/0004.
ZSTD_LEVEL = -1
#: How long the reader of the growing image sleeps when there is nothing new.
TAIL_S = 0.001
QUEUED_CHUNKS = 8


class Held(NamedTuple):
    """What the source keeps until the move is decided."""

    epoch: int
    pid: int  # inside the container


class CriuColdEngine:
    """See the module. Made with an ``EngineContext`` whose container is a real one."""

    name = "criu-cold"
    needs_standby = False

    def __init__(self, context: EngineContext) -> None:
        if not isinstance(context.container, Container):
            raise MigrationError("CRIU needs a container with a PID namespace of its own")
        self._context = context
        self._container = context.container
        self._images = context.state_dir / "criu"
        self._criu: Criu | None = None
        self._held: Held | None = None
        self._dumping: asyncio.Task[None] | None = None
        self._resumed: dict[int, dict[str, Any]] = {}
        self._abandoned: set[int] = set()
        #: held while a process is made here, so that giving up waits until it can be undone
        self._making = asyncio.Lock()
        self._clearing: asyncio.Task[None] | None = None
        self._made: Held | None = None

    # source

    async def prepare_source(self, order: MoveOrder) -> None:
        """Find CRIU, let it probe the kernel, and make room for the images."""
        await self._prepare()

    async def prepare_destination(self, order: MoveOrder) -> None:
        """The same at the other end."""
        await self._prepare()

    async def _prepare(self) -> None:
        self._criu = Criu(self._container)
        if self._clearing is not None:
            await self._clearing
        self._clear_images()
        await self._criu.warm_up(self._images)

    def _clear_images(self) -> None:
        shutil.rmtree(self._outside, ignore_errors=True)

    @property
    def _outside(self) -> Path:
        """The image directory as the agent sees it."""
        return self._container.path(str(self._images))

    def _ready(self) -> Criu:
        if self._criu is None:
            self._criu = Criu(self._container)
        self._outside.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._criu

    async def checkpoint(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Freeze the server, dump it, and yield the packed images while they are written."""
        pid = self._container.service_pid
        if pid is None:
            raise MigrationError(f"no server runs on {self._context.edge}")
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

    async def _dump_is_over(self) -> None:
        """Wait for CRIU: whoever takes it away in the middle of a dump breaks the server."""
        if self._dumping is not None:
            await asyncio.wait([self._dumping])
            if not self._dumping.cancelled():
                self._dumping.exception()  # the agent has it from the iterator

    async def _pack(
        self, order: MoveOrder, pid: int, dumping: asyncio.Task[None], packed: asyncio.Queue[bytes | None]
    ) -> None:
        """Read, compress and queue all records; None at the end, also at that of a failure."""
        try:
            await self._pack_all(order, pid, dumping, packed)
        except Exception:
            # not when cancelled: then nobody reads on, and a full queue would hold this up for ever
            await packed.put(None)
            raise
        await packed.put(None)

    async def _pack_all(
        self, order: MoveOrder, pid: int, dumping: asyncio.Task[None], packed: asyncio.Queue[bytes | None]
    ) -> None:
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compressobj()
        tail = _Tail(self._outside)
        while True:
            finished = dumping.done()
            if finished:
                dumping.result()  # a failed dump ends the stream here
            piece = tail.next_piece(CHUNK_BYTES if not finished else 1)
            if piece is not None:
                for chunk in await asyncio.to_thread(_compress, compressor, piece):
                    await packed.put(chunk)
            elif finished:
                break
            else:
                await asyncio.wait([dumping], timeout=TAIL_S)
        closing = b"".join(self._closing_records(order, pid))
        for chunk in await asyncio.to_thread(_compress, compressor, closing, flush=True):
            await packed.put(chunk)

    async def _dump(self, criu: Criu, order: MoveOrder, pid: int) -> None:
        with self._context.events.phase("migration.checkpoint", epoch=order.epoch) as detail:
            freeze = Freeze(epoch=order.epoch, strategy=order.strategy, server_first=order.server_first)
            await self._context.control.ask(freeze, order.deadlines.checkpoint_s)
            stats = await criu.dump(pid, self._images, timeout_s=order.deadlines.checkpoint_s)
            detail["bytes"] = sum(file.stat().st_size for file in self._outside.iterdir())
            detail["criu"] = msgspec.structs.asdict(stats)

    def _closing_records(self, order: MoveOrder, pid: int) -> Iterator[bytes]:
        """All that was not sent while CRIU wrote: the small images, the open files, the manifest."""
        for path in sorted(self._outside.iterdir()):
            if not _is_pages(path) and path.name not in LEFT_BEHIND:
                yield record(Kind.IMAGE, path.name, path.read_bytes())
        files = self._container.open_files(pid)
        for name in files:
            path = self._container.path(name)
            yield record(Kind.FILE, name, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))
        manifest = Manifest(epoch=order.epoch, pid=pid, files=files)
        yield record(Kind.MANIFEST, "", msgspec.json.encode(manifest))
        yield record(Kind.END, "", b"")

    async def give_up_source(self, order: MoveOrder) -> None:
        """The destination serves: end the stopped process and forget its images."""
        held = self._held
        if held is None or held.epoch != order.epoch:
            return
        await self._container.stop(held.pid, grace_s=0)
        self._clear_images()
        self._held = None

    async def resume_source(self, order: MoveOrder, reason: str) -> dict[str, Any]:
        """Let the stopped process go on, or restore it if it has died, and give it Abort."""
        if order.epoch in self._resumed:
            return self._resumed[order.epoch]
        await self._dump_is_over()
        held = self._held
        if held is not None and held.epoch == order.epoch:
            await self._revive(held, order)
        answer = await self._context.control.ask(
            Abort(epoch=order.epoch, reason=reason), order.deadlines.commit_s
        )
        self._clear_images()
        self._held = None
        self._resumed[order.epoch] = answer
        return answer

    async def _revive(self, held: Held, order: MoveOrder) -> None:
        if self._container.is_alive(held.pid):
            await self._container.signal(held.pid, signal.SIGCONT)
            return
        dumping = self._dumping
        if dumping is None or dumping.cancelled() or dumping.exception() is not None:
            raise MigrationError(
                f"the server on {self._context.edge} died and there is no checkpoint of it",
                hint="look at its log in the run directory",
            )
        await self._ready().restore(self._images, timeout_s=order.deadlines.restore_s)
        self._container.adopt(held.pid)

    # destination

    async def restore(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Unpack the images as they come, make the process and give it Resume."""
        self._ready()
        unpacker = Unpacker(self._outside, self._container.path("/"))
        decompressor = zstandard.ZstdDecompressor().decompressobj()
        async for chunk in chunks:
            await asyncio.to_thread(_unpack, decompressor, unpacker, chunk)
        # Not to be cut off in the middle: a half-made process would be left behind.
        return await asyncio.shield(asyncio.create_task(self._bring_up(order, unpacker.manifest())))

    async def _bring_up(self, order: MoveOrder, manifest: Manifest) -> dict[str, Any]:
        async with self._making:
            with self._context.events.phase("migration.restore", epoch=order.epoch) as detail:
                if manifest.epoch != order.epoch:
                    raise MigrationError(f"a checkpoint of epoch {manifest.epoch}, not {order.epoch}")
                if self._container.is_alive(manifest.pid):
                    raise MigrationError(f"PID {manifest.pid} is in use on {self._context.edge}")
                self._made = Held(order.epoch, manifest.pid)
                try:
                    return await self._restore_and_resume(order, manifest.pid, detail)
                except BaseException:
                    await self._unmake()
                    raise

    async def _restore_and_resume(self, order: MoveOrder, pid: int, detail: dict[str, Any]) -> dict[str, Any]:
        stats = await self._ready().restore(self._images, timeout_s=order.deadlines.restore_s)
        detail["criu"] = msgspec.structs.asdict(stats)
        if order.epoch in self._abandoned:
            raise MigrationError(f"the move of epoch {order.epoch} was called off")
        check_lease(order)
        self._context.before_resume()
        resume = Resume(
            epoch=order.epoch,
            edge=self._context.edge,
            strategy=order.strategy,
            server_first=order.server_first,
        )
        answer = await self._context.control.ask(resume, order.deadlines.restore_s)
        self._container.adopt(pid)
        # Freeing the memory of the images takes milliseconds that the agent's answer need not wait for.
        self._clearing = asyncio.create_task(asyncio.to_thread(self._clear_images))
        return answer

    async def _unmake(self) -> None:
        """End what was restored here; the images stay for whoever looks into the failure."""
        if self._made is not None:
            with contextlib.suppress(MigrationError):  # the container itself may be gone
                await self._container.stop(self._made.pid, grace_s=0)
            self._made = None

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        """The move is off: when this returns, no process of this order is here or will be."""
        self._abandoned.add(order.epoch)
        async with self._making:
            if self._made is not None and self._made.epoch == order.epoch:
                await self._unmake()
        self._clear_images()


def _is_pages(path: Path) -> bool:
    return path.name.startswith("pages-")


class _Tail:
    """Reads the memory images of a directory as they grow."""

    def __init__(self, images: Path) -> None:
        self._images = images
        self._sent: dict[str, int] = {}

    def next_piece(self, at_least: int) -> bytes | None:
        """The next record of at most a chunk of memory; None when fewer bytes than that are new."""
        for path in sorted(self._images.glob("pages-*.img")):
            sent = self._sent.get(path.name, 0)
            new = path.stat().st_size - sent
            if new >= at_least:
                with path.open("rb", buffering=0) as file:
                    file.seek(sent)
                    data = file.read(min(new, CHUNK_BYTES))
                self._sent[path.name] = sent + len(data)
                return record(Kind.IMAGE, path.name, data)
        return None


def _compress(compressor: zstandard.ZstdCompressionObj, data: bytes, *, flush: bool = False) -> list[bytes]:
    """Pack records; runs in a thread, as zstd lets others run meanwhile. May keep bytes for later."""
    packed = compressor.compress(data)
    if flush:
        packed += compressor.flush()
    return [packed[start : start + CHUNK_BYTES] for start in range(0, len(packed), CHUNK_BYTES)]


def _unpack(decompressor: zstandard.ZstdDecompressionObj, unpacker: Unpacker, chunk: bytes) -> None:
    try:
        unpacker.feed(decompressor.decompress(chunk))
    except zstandard.ZstdError as error:
        raise MigrationError(f"the checkpoint is damaged: {error}") from error
