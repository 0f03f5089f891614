"""``criu-pre-copy``, ``criu-post-copy``, ``criu-hybrid`` by CRIU's own machinery (``memory_by`` is "criu").

=============  =============================================  ======================================
engine         before the freeze                              after the resume
=============  =============================================  ======================================
pre-copy       ``criu pre-dump --track-mem``, in rounds       nothing
post-copy      nothing                                        CRIU's page server at the source feeds
                                                              ``criu lazy-pages`` at the destination
hybrid         as pre-copy                                    as post-copy, what changed since
=============  =============================================  ======================================

The last dump is ``criu dump --track-mem --prev-images-dir``, ``--lazy-pages``, or both. Images cross as
those of ``criu-cold`` do; page server and daemon talk through a tunnel in the agents' own streams. Rounds
need soft-dirty tracking in the kernel. See docs/adr/0011 for how it compares with ``agent_copy``, where the
agents do all this.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from quicferry.errors import MigrationError, Unsupported
from quicferry.migration.container.processes import Completed
from quicferry.migration.criu.command import explain, log_text
from quicferry.migration.criu.image_stream import (
    LEFT_BEHIND,
    CheckpointManifest,
    RecordKind,
    record,
)
from quicferry.migration.criu.packing import Packer
from quicferry.migration.criu.page_server import (
    GUARD_OVER,
    BackgroundCriu,
    MemoryCriu,
    PageServer,
    guard,
    userfaultfds_of,
)
from quicferry.migration.criu.stats import DumpStats
from quicferry.migration.engines.criu.base import CopiesInRounds, Held, Round
from quicferry.migration.engines.criu.lazy_destination import LazyDestination
from quicferry.migration.memory.pagemap import decode
from quicferry.migration.order import CHUNK_BYTES, MoveOrder
from quicferry.migration.rpc.tunnel import Tunnel, tell_over
from quicferry.migration.rpc.tunnel_messages import TunnelCall, TunnelMessage, TunnelOpen, TunnelOver

OpenTunnel = Callable[[str, float], TunnelCall]


def image_records(directory: Path, prefix: str) -> Iterator[bytes]:
    """Records of all images of a directory, with names that begin with ``prefix``."""
    for path in sorted(directory.iterdir()):
        if path.is_symlink() or not path.is_file() or path.name in LEFT_BEHIND:
            continue
        with path.open("rb") as file:
            piece = file.read(CHUNK_BYTES)
            yield record(RecordKind.IMAGE, prefix + path.name, piece)  # also one that is empty
            while piece := file.read(CHUNK_BYTES):
                yield record(RecordKind.IMAGE, prefix + path.name, piece)


class CriuNativeEngine(LazyDestination):
    """Both sides of the three engines in which CRIU's own machinery moves the memory."""

    ahead = False
    method = ""  # how the memory moves, for the record

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._memory_criu: MemoryCriu | None = None
        self._server: PageServer | None = None  # CRIU's page server
        self._tunnel: Tunnel | None = None
        self._lazy_pages = 0
        self._over: dict[int, asyncio.Future[None]] = {}  # epoch -> the destination needs this host no more
        self._daemon: BackgroundCriu | None = None  # CRIU's lazy-pages
        self._guards: list[asyncio.subprocess.Process] = []

    # both

    async def prepare_source(self, order: MoveOrder) -> None:
        """Also find out whether the kernel tracks writes, which rounds need."""
        await super().prepare_source(order)
        if self.ahead and not await self._with_memory().tracks():
            raise Unsupported(
                f"{self.name} by CRIU's own machinery needs a kernel that tracks written pages (soft-dirty)",
                hint="leave out --memory-by criu: the agents find out by themselves what was written",
            )

    async def _forget(self) -> None:
        """Drop what is left of the last move, at both sides."""
        await self._forget_source()
        await self._forget_destination()

    def _with_memory(self) -> MemoryCriu:
        """CRIU for this container, with its machinery for memory."""
        self._ready()
        if self._memory_criu is None:
            self._memory_criu = MemoryCriu(self._container, keep_tcp=self._context.keep_tcp)
        return self._memory_criu

    # source

    async def _forget_source(self) -> None:
        """Close CRIU's page server, which then ends and leaves the process stopped."""
        self._rounds, self._lazy_pages = 0, 0
        tunnel, self._tunnel = self._tunnel, None
        server, self._server = self._server, None
        if tunnel is not None:
            await tunnel.close()
        if server is not None:
            server.hang_up()
            await server.end()

    def _previous(self) -> str | None:
        """The images of the last round, relative to the next dump's directory, which is their sibling."""
        return f"round-{self._rounds - 1}" if self._rounds else None

    async def checkpoint(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Freeze and stop the server, have CRIU dump what crosses in the downtime, and yield that."""
        pid = self._server_pid()
        self._held = Held(order.epoch, pid)
        self._dumping = asyncio.create_task(self._take(order, pid))
        try:
            await asyncio.shield(self._dumping)
            packer = Packer(order.compression)
            async for chunk in packer.pack_all(self._records(order, pid), flush=True):
                yield chunk
        finally:
            await self._dump_is_over()

    async def _take(self, order: MoveOrder, pid: int) -> None:
        """Freeze, stop and dump; the event tells how."""
        criu, limit_s = self._with_memory(), order.deadlines.checkpoint_s
        with self._context.events.phase("migration.checkpoint", epoch=order.epoch) as detail:
            await self._freeze(order)
            # so that it stays where it is, however CRIU ends
            await self._container.halt(pid)
            collecting = asyncio.create_task(self._collect_files())
            if self.lazily:
                self._server = await criu.dump_and_serve(
                    pid, self._images, self._previous(), timeout_s=limit_s
                )
                self._tunnel = Tunnel(order.epoch, self._server.socket)
                self._over[order.epoch] = asyncio.get_running_loop().create_future()
            else:
                stats = await criu.dump_tracked(pid, self._images, self._previous(), timeout_s=limit_s)
                detail["changed_pages"] = stats.pages_written
            await collecting
            detail["method"] = self.method
            detail["memory_by"] = "criu"
            detail["rounds"] = self._rounds
            detail["bytes"] = sum(file.stat().st_size for file in self._outside.iterdir() if file.is_file())

    def _records(self, order: MoveOrder, pid: int) -> Iterator[bytes]:
        """Records of the last image, its open files and the manifest."""
        if self._rounds:
            yield record(RecordKind.PARENT, f".=round-{self._rounds - 1}", b"")
        # first, as they are packed beside the images, and are gone from there when they were read
        yield from self._last_files()
        yield from image_records(self._outside, "")
        manifest = CheckpointManifest(
            epoch=order.epoch,
            pid=pid,
            files=self._container.open_files(pid),
            rounds=self._rounds,
            lazy=self._count_lazy(self._outside),
            stopped=self._container.halts_by_signal,
        )
        yield from self._file_records(pid, manifest)

    def _count_lazy(self, images: Path) -> dict[int, int]:
        """How many pages CRIU's page server has, by PID in these images."""
        lazy = {}
        for path in images.glob("pagemap-[0-9]*.img"):
            if count := len(decode(path.read_bytes()).absent):
                lazy[int(path.stem.removeprefix("pagemap-"))] = count
        self._lazy_pages = sum(lazy.values())
        return lazy

    async def serve_tunnel(
        self,
        epoch: int,
        requests: AsyncIterator[TunnelMessage],
        send: Callable[[TunnelMessage], Awaitable[None]],
    ) -> None:
        """Carry the bytes of one stream between the destination and CRIU's page server."""
        first = await anext(requests, None)
        if isinstance(first, TunnelOver):
            self._note(first)
            await send(TunnelOver(epoch=first.epoch))
        elif not isinstance(first, TunnelOpen) or first.epoch != epoch:
            raise MigrationError(f"a tunnel of epoch {epoch} begins with {first!r}")
        elif self._tunnel is None:
            # an agent that was killed takes CRIU's page server with it, and nobody can stand in for that
            raise MigrationError(f"the page server of epoch {epoch} on {self._context.edge} is gone")
        else:
            await self._tunnel.serve(first, requests, send)

    def _over_in(self, epoch: int) -> asyncio.Future[None]:
        """Done when the destination of that epoch needs this host no more."""
        if epoch not in self._over:
            self._over[epoch] = asyncio.get_running_loop().create_future()
        return self._over[epoch]

    def _note(self, over: TunnelOver) -> None:
        """Note how the destination's memory ended."""
        told = self._over_in(over.epoch)
        if told.done():
            return
        if over.error is None:
            told.set_result(None)
        else:
            told.set_exception(MigrationError(over.error))
            told.exception()  # whoever waits has it; nobody may

    async def drain_source(self, order: MoveOrder) -> dict[str, Any]:
        """Wait until the destination has all memory."""
        if not self.lazily:
            return {"pages": 0, "bytes": 0}
        await asyncio.shield(self._over_in(order.epoch))
        sent_bytes = self._tunnel.sent_bytes if self._tunnel is not None else 0
        return {"pages": self._lazy_pages, "bytes": sent_bytes}

    async def give_up_source(self, order: MoveOrder) -> None:
        """Close CRIU's page server, then kill the stopped process."""
        await self._forget_source()
        await super().give_up_source(order)

    async def resume_source(self, order: MoveOrder, reason: str) -> dict[str, Any]:
        """Close CRIU's page server, then continue the process: CRIU holds it until then."""
        if order.epoch not in self._resumed:
            await self._dump_is_over()
            await self._forget_source()
        return await super().resume_source(order, reason)

    # destination

    async def _make_process(
        self, order: MoveOrder, manifest: CheckpointManifest, detail: dict[str, Any]
    ) -> None:
        """Restore the process; with missing memory, start CRIU's daemon before."""
        await self._restore_with_memory(order, manifest, detail)

    async def _restore_with_memory(
        self, order: MoveOrder, manifest: CheckpointManifest, detail: dict[str, Any]
    ) -> None:
        """Restore the last images, and let missing memory follow; ``detail`` goes into the event."""
        limit_s = order.deadlines.restore_s
        criu, images = self._with_memory(), self._last_images()
        detail["rounds"] = manifest.rounds
        lazily = detail["lazily"] = bool(manifest.lazy)
        if lazily:
            open_tunnel = self._context.open_tunnel
            if open_tunnel is None:
                raise MigrationError(f"{self._context.edge} has no way to fetch pages")
            self._daemon = await criu.fetch_lazily(
                images, timeout_s=limit_s, connection=await self._connection_to_source()
            )
            self._finish_in_background(self._finish(order, self._daemon, open_tunnel))
        stats = await criu.restore(images, timeout_s=limit_s, lazy=lazily)
        detail["criu"] = msgspec.structs.asdict(stats)
        if self._daemon is not None:
            await self._guard(self._pid_of(manifest), self._daemon)

    def _last_images(self) -> Path:
        """The directory of the images that a restore begins with."""
        return self._images

    async def _connection_to_source(self) -> socket.socket | None:
        """A connection to the source's page server, where the agents carry no bytes between the two."""
        return None

    async def _guard(self, pid: int, daemon: BackgroundCriu) -> None:
        """Let a guard hold copies of the daemon's userfaultfds.

        Should the daemon die, the kernel closes its userfaultfds and gives the process zeros for what has
        not come yet. While copies are open the process stands still instead, until it is killed: by this
        agent or, when that is dead, by the guard.
        """
        try:
            copies = userfaultfds_of(daemon.pid)
        except OSError:
            copies = []
        for descriptor in copies:
            try:
                self._guards.append(await guard(self._container, pid, descriptor))
            finally:
                os.close(descriptor)
        if not copies and (status := await daemon.end()) != 0:  # else all memory is in its place already
            raise why_ended(daemon, status)

    async def _end_guards(self) -> None:
        """Dismiss the guards: nothing is missing any more, or the process is dead."""
        guards, self._guards = self._guards, []
        for process in guards:
            await process.communicate(GUARD_OVER)

    async def _finish(self, order: MoveOrder, daemon: BackgroundCriu, open_tunnel: OpenTunnel) -> None:
        """Wait until the process has all its memory, and tell the source."""
        lifetime_s = order.deadlines.restore_s + order.deadlines.pages_s

        def opened() -> TunnelCall:
            return open_tunnel(order.source, lifetime_s)

        error = await self._fetch(order, daemon, opened, lifetime_s)
        if error is not None:
            await self._end_incomplete()
        await self._end_guards()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(order.deadlines.pages_s):
                await tell_over(opened, TunnelOver(epoch=order.epoch, error=error))

    async def _fetch(
        self, order: MoveOrder, daemon: BackgroundCriu, opened: Callable[[], TunnelCall], lifetime_s: float
    ) -> str | None:
        """Carry the daemon's bytes until all memory is in place. Returns why it never will be."""
        tunnel = Tunnel(order.epoch, daemon.socket)
        carrying = asyncio.create_task(tunnel.carry(opened))
        waiting = asyncio.create_task(daemon.process.wait())
        try:
            async with asyncio.timeout(lifetime_s):
                await asyncio.wait([carrying, waiting], return_when=asyncio.FIRST_COMPLETED)
            if waiting.done():
                return None if waiting.result() == 0 else str(why_ended(daemon, waiting.result()))
            return str(carrying.exception())
        except TimeoutError:
            return "not all memory came in time"
        finally:
            carrying.cancel()
            await asyncio.wait([carrying])
            await tunnel.close()
            waiting.cancel()

    async def _forget_destination(self) -> None:
        """Also kill CRIU's daemon and dismiss the guards."""
        await super()._forget_destination()
        if self._daemon is not None:
            await self._daemon.kill()
            self._daemon = None
        await self._end_guards()


def why_ended(daemon: BackgroundCriu, status: int) -> MigrationError:
    """The error for a lazy-pages daemon that ended with that status."""
    return explain("lazy-pages", Completed([], status, "", ""), log_text(daemon.log))


class _Ahead(CopiesInRounds, CriuNativeEngine):
    """Both sides of an engine with rounds before the freeze."""

    ahead = True

    async def _next_round(self, order: MoveOrder, pid: int) -> Round:
        """Have CRIU dump the pages that were written since the last round."""
        stats = await self._pre_dump(pid, order.deadlines.precopy_s)
        stood_still_ms = stats.frozen_time_us / 1000
        return Round(
            self._round_records(),
            stats.pages_written,
            stats.pages_scanned,
            {"stood_still_ms": stood_still_ms},
        )

    async def _pre_dump(self, pid: int, timeout_s: float) -> DumpStats:
        """Run ``criu pre-dump`` to its end, even if the caller is cancelled."""
        images = self._images / f"round-{self._rounds}"
        previous = f"../{self._previous()}" if self._rounds else None
        dumping = asyncio.create_task(
            self._with_memory().pre_dump(pid, images, previous, timeout_s=timeout_s)
        )
        self._dumping = dumping
        # not to be cut off in the middle: whoever takes CRIU away then breaks the server
        return await asyncio.shield(dumping)

    def _round_records(self) -> Iterator[bytes]:
        """Records of the round that was just dumped."""
        name = f"round-{self._rounds}"
        if self._rounds:
            yield record(RecordKind.PARENT, f"{name}={self._previous()}", b"")
        yield from image_records(self._outside / name, f"{name}/")


class NativePreCopyEngine(_Ahead):
    """Pre-copy: all memory before the freeze; what was written since then in the downtime."""

    name = "criu-pre-copy"
    method = "CRIU's pre-dumps with memory tracking"


class NativePostCopyEngine(CriuNativeEngine):
    """Post-copy: all memory after the resume."""

    name = "criu-post-copy"
    lazily = True
    method = "CRIU's page server and lazy-pages daemon"


class NativeHybridEngine(_Ahead):
    """Hybrid: all memory before the freeze; what was written since then after the resume."""

    name = "criu-hybrid"
    lazily = True
    method = "CRIU's pre-dumps with memory tracking, then its page server and lazy-pages daemon"
