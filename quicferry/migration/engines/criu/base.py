"""What all CRIU engines have in common: one container at either end, and how a process is kept,
brought back, made and unmade.

The dumped process is not killed but left stopped. It keeps its sockets and its PID at the source
until the destination serves; if that fails, it goes on where it stood.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import msgspec

from quicferry.errors import MigrationError
from quicferry.migration.container.beneath import content_beneath
from quicferry.migration.container.container import Container
from quicferry.migration.control import Abort, Freeze, Resume
from quicferry.migration.criu.command import Criu
from quicferry.migration.criu.image_stream import CheckpointManifest, RecordKind, Unpacker, record
from quicferry.migration.criu.packing import Packer, unpack
from quicferry.migration.criu.received import ReceivedFiles
from quicferry.migration.engines.base import EngineContext
from quicferry.migration.engines.criu.rounds import closing_records, why_stop
from quicferry.migration.order import MoveOrder, check_lease
from quicferry.units import NS_PER_MS, now_ns

DUMPERS = ("criu", "runc")  # programs that must not be disturbed
OTHERS_POLL_S = 0.01
MAX_FILE_BYTES = 1 << 30  # of a file that the server has open under /run
#: The numbers of the two times at which a server's own files are sent.
AHEAD, LAST = 0, 1


class Held(NamedTuple):
    """What a side keeps until the move is decided."""

    epoch: int
    pid: int  # inside the container


class CriuEngine:
    """The base of the CRIU engines. Made with an ``EngineContext`` whose container is a real one.

    A subclass has a ``name`` and a ``checkpoint``; it may dump and restore in its own way.
    """

    name = ""
    needs_standby = False
    #: CRIU is started before the downtime and waits in the container for the word
    holds_criu = False

    def __init__(self, context: EngineContext) -> None:
        if not isinstance(context.container, Container):
            raise MigrationError("CRIU needs a container with a PID namespace of its own")
        self._context = context
        self._container = context.container
        self._images = context.state_dir / "criu"
        self._criu: Criu | None = None
        self._held: Held | None = None
        self._dumping: asyncio.Task[Any] | None = None
        self._resumed: dict[int, dict[str, Any]] = {}
        self._abandoned: set[int] = set()
        #: held while a process is made here, so that giving up waits until it can be undone
        self._making = asyncio.Lock()
        self._clearing: asyncio.Task[None] | None = None
        self._made: Held | None = None
        self._rounds = 0  # of pre-copy, sent in this move
        self._received = ReceivedFiles()  # of the present move, at the destination

    # both

    async def prepare_source(self, order: MoveOrder) -> None:
        """Find CRIU, let it probe the kernel, and make room for the images."""
        self._check_family()
        await self._prepare()

    async def prepare_destination(self, order: MoveOrder) -> None:
        """Find CRIU, let it probe the kernel, and make room for the images."""
        await self._prepare()

    async def _settled(self) -> None:
        """Wait until a server that was moved here has all its memory; only then may it be moved on."""
        if self._container.settling is not None:
            await asyncio.wait([self._container.settling])

    async def _forget(self) -> None:
        """Drop what is left of the last move to or from here, so that none of it gets into the next."""

    async def _prepare(self) -> None:
        """Wait for the last move's remains, clear them away, and warm CRIU up."""
        await self._settled()
        await self._release()
        await self._forget()
        self._received = ReceivedFiles()
        self._criu = self._tool()
        if self._clearing is not None:
            await self._clearing
        self._clear_images()
        await self._criu.warm_up(self._images)

    async def _hold_dump(self, *, memory: bool) -> None:
        """Have CRIU wait for the dump, with or without ``memory`` in it."""
        if self.holds_criu:
            await self._ready().hold_dump(self._server_pid(), self._images, memory=memory)

    async def _hold_restore(self, *, lazy: bool) -> None:
        """Have CRIU wait for the restore."""
        if self.holds_criu:
            await self._ready().hold_restore(self._images, lazy=lazy)

    async def _release(self) -> None:
        """End a CRIU that waits and is not needed."""
        if self._criu is not None:
            await self._criu.release()

    def _tool(self) -> Criu:
        """The program that dumps and restores."""
        return Criu(self._container, keep_tcp=self._context.keep_tcp)

    def _clear_images(self) -> None:
        """Remove the image directory."""
        shutil.rmtree(self._outside, ignore_errors=True)

    @property
    def _outside(self) -> Path:
        """The image directory as the agent sees it."""
        return self._container.path(str(self._images))

    def _ready(self) -> Criu:
        """CRIU for this container, with an image directory."""
        if self._criu is None:
            self._criu = self._tool()
        self._outside.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._criu

    # source

    def _server_pid(self) -> int:
        """The server's PID. Raises ``MigrationError`` when none runs."""
        pid = self._container.service_pid
        if pid is None:
            raise MigrationError(f"no server runs on {self._context.edge}")
        return pid

    def _check_family(self) -> None:
        """Raise ``MigrationError`` when a process of the server's would be left here: CRIU dumps a tree.

        What init has adopted was once a child of the server's: a daemon, most often.
        """
        adopted = [pid for pid, parent in self._container.parents().items() if parent == 1]
        argv_of = {each.pid: each.argv for each in self._container.processes()}
        for pid in adopted:
            argv = argv_of.get(pid, [])
            if argv and pid != self._container.service_pid and not _dumps(argv):
                raise MigrationError(
                    f"process {pid} on {self._context.edge} ({' '.join(argv)[:80]}) belongs to the server, "
                    "but is no descendant of it: it would be left behind",
                    hint="have the server keep its child processes (no daemons), or take an engine runc-…: "
                    "what is in an OCI container moves as a whole",
                )

    async def _freeze(self, order: MoveOrder) -> None:
        """Have the server freeze itself, then do what must follow directly (``after_freeze``)."""
        self._check_family()
        freeze = Freeze(epoch=order.epoch, strategy=order.strategy, server_first=order.server_first)
        await self._context.control.ask(freeze, order.deadlines.checkpoint_s)
        await self._context.after_freeze()

    async def _dump_is_over(self) -> None:
        """Wait for CRIU: to kill it in the middle of a dump breaks the server."""
        if self._dumping is not None:
            await asyncio.wait([self._dumping])
            if not self._dumping.cancelled():
                self._dumping.exception()  # the agent has it from the iterator

    def _others(self) -> list[int]:
        """PIDs of dumping programs in this container that no call of this agent waits for."""
        running = self._container.processes()
        return [each.pid for each in running if _dumps(each.argv)]

    async def _orphan_is_over(self, order: MoveOrder) -> None:
        """Wait for a CRIU that runs on alone: its agent was killed, or it takes too long.

        At its end it would stop a server that was let go before. Killed, it may take the server along.
        """
        patience_s = order.deadlines.restore_s / 2
        while orphans := self._others():
            if patience_s <= 0:
                for pid in orphans:
                    await self._container.stop(pid, grace_s=0)
            await asyncio.sleep(OTHERS_POLL_S)
            patience_s -= OTHERS_POLL_S

    def _file_records(self, pid: int, manifest: CheckpointManifest) -> Iterator[bytes]:
        """Records of the files that the process holds open, the manifest, the end."""
        for name in manifest.files:
            data, mode = content_beneath(self._container.path("/"), PurePosixPath(name), MAX_FILE_BYTES)
            yield record(RecordKind.FILE, name, data, mode)
        yield record(RecordKind.MANIFEST, "", msgspec.json.encode(manifest))
        yield record(RecordKind.END, "", b"")

    def _held_in(self, order: MoveOrder) -> Held | None:
        """The process that this move stopped here, even if an earlier agent stopped it."""
        if self._held is None and (pid := self._container.service_pid) is not None:
            return Held(order.epoch, pid)
        return self._held if self._held is not None and self._held.epoch == order.epoch else None

    async def give_up_source(self, order: MoveOrder) -> None:
        """Kill the stopped process and remove its images: the destination serves."""
        held = self._held_in(order)
        if held is None:
            return
        await self._dump_is_over()  # all images were there, but CRIU may still be letting go of the process
        await self._container.stop(held.pid, grace_s=0)
        self._clear_images()
        self._held = None

    async def resume_source(self, order: MoveOrder, reason: str) -> dict[str, Any]:
        """Continue the stopped process, or restore it if it has died, and give it Abort."""
        if order.epoch in self._resumed:
            return self._resumed[order.epoch]
        # A CRIU that is still at work would stop the server again after it was continued.
        await self._dump_is_over()
        await self._release()
        await self._orphan_is_over(order)
        held = self._held_in(order)
        if held is not None:
            await self._revive(held, order)
        answer = await self._context.control.ask(
            Abort(epoch=order.epoch, reason=reason), order.deadlines.commit_s
        )
        self._clear_images()
        self._held = None
        self._resumed[order.epoch] = answer
        return answer

    async def _revive(self, held: Held, order: MoveOrder) -> None:
        """Continue the stopped process, or restore it if it has died."""
        if await self._container.has_died(held.pid):
            await self._restore_dead(held, order)
        else:
            await self._container.unhalt(held.pid)

    async def _restore_dead(self, held: Held, order: MoveOrder) -> None:
        """Restore a stopped process that has died from its images, if they have all of it."""
        raise MigrationError(
            f"the server on {self._context.edge} died and there is no checkpoint of it",
            hint="look at its log in the run directory",
        )

    async def _files_ahead(self) -> Iterator[bytes]:
        """Records of files that the server has written, while it runs. A bare process has none of its own."""
        return iter(())

    async def _collect_files(self) -> None:
        """Collect what was written to such files since then, while the server stands still."""

    def _last_files(self) -> Iterator[bytes]:
        """Records of what ``_collect_files`` has collected."""
        return iter(())

    # destination

    async def _files_have_come(self, number: int) -> None:
        """Put files in place that have come, those ahead or the last ones."""

    async def restore(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        """Unpack the images as they come, restore the process and give it Resume."""
        self._ready()
        unpacker = self._unpacker()
        await unpack(order.compression, unpacker, chunks)
        # Not to be cut off in the middle: a half-made process would be left behind.
        return await asyncio.shield(asyncio.create_task(self._bring_up(order, unpacker.manifest())))

    def _unpacker(self) -> Unpacker:
        """What writes the images that come."""
        return Unpacker(self._outside, self._container.path("/"), self._received)

    async def _bring_up(self, order: MoveOrder, manifest: CheckpointManifest) -> dict[str, Any]:
        """Restore the process and give it Resume; undo all of it when that fails."""
        async with self._making:
            with self._context.events.phase("migration.restore", epoch=order.epoch) as detail:
                if manifest.epoch != order.epoch:
                    raise MigrationError(f"a checkpoint of epoch {manifest.epoch}, not {order.epoch}")
                self._check_room(manifest)
                # noted before CRIU runs: should the restore fail half-way, there is something to undo
                self._made = Held(order.epoch, manifest.pid)
                pages: asyncio.Task[None] | None = None
                try:
                    pages = await self._check_received(detail)
                    await self._make_process(order, manifest, detail)
                    await pages
                    # CRIU restores a process in the state in which it was dumped
                    if manifest.stopped:
                        await self._container.unhalt(self._pid_of(manifest))
                    # before it serves: should this agent die then, the next one must find it
                    self._container.adopt(self._pid_of(manifest))
                    answer = await self._resume(order)
                    await self._brought_up(order, manifest)
                except BaseException:
                    if pages is not None:
                        pages.cancel()
                    await self._unmake()
                    raise
                finally:
                    self._received = ReceivedFiles()
        return answer

    async def _check_received(self, detail: dict[str, Any]) -> asyncio.Task[None]:
        """Check that what was received is still what it was. Raises ``MigrationError``.

        All that CRIU acts upon is checked when this returns. The contents of the memory, which CRIU only
        copies, are checked by the task that is returned, at the same time as they are restored: to be
        awaited before the process gets Resume, up to which it is frozen and says nothing.
        """
        received = self._received
        large = [path for path in received.paths if path.name.startswith("pages-")]
        received.check([path for path in received.paths if path not in large])  # too little for a thread

        async def check_pages() -> None:
            began_ns = now_ns()
            checked_bytes = await asyncio.to_thread(received.check, large)
            detail["checked"] = {"bytes": checked_bytes, "ms": round((now_ns() - began_ns) / NS_PER_MS, 3)}

        return asyncio.create_task(check_pages())

    def _check_room(self, manifest: CheckpointManifest) -> None:
        """Raise ``MigrationError`` when another process is in the way of the restore."""
        for pid in sorted({manifest.pid, *self._image_tasks()}):
            if self._container.is_alive(pid):
                raise MigrationError(f"PID {pid} is in use on {self._context.edge}")

    def _image_tasks(self) -> list[int]:
        """The IDs that the processes and threads in the images here need in this host's container."""
        names = (path.stem.removeprefix("core-") for path in self._outside.glob("core-*.img"))
        return [int(name) for name in names if name.isdigit()]

    def _pid_of(self, manifest: CheckpointManifest) -> int:
        """The PID that the restored process has in this host's container: the same on every host."""
        return manifest.pid

    def _image_pid(self, pid: int) -> int:
        """The PID that a process of this host's container has in its images."""
        return pid

    def _proc_of(self, image_pid: int) -> Path:
        """The directory of a process under ``/proc``, by its PID in the images.

        Raises ``MigrationError`` when it is gone; not every engine looks.
        """
        return self._container.path(f"/proc/{image_pid}")

    async def _make_process(
        self, order: MoveOrder, manifest: CheckpointManifest, detail: dict[str, Any]
    ) -> None:
        """Restore the process; ``detail`` goes into the event."""
        stats = await self._ready().restore(self._images, timeout_s=order.deadlines.restore_s)
        detail["criu"] = msgspec.structs.asdict(stats)

    async def _resume(self, order: MoveOrder) -> dict[str, Any]:
        """Give the process Resume. Raises ``MigrationError`` when the move was called off, or too late."""
        # the last moment at which nothing has answered a client yet: afterwards there is no way back
        if order.epoch in self._abandoned:
            raise MigrationError(f"the move of epoch {order.epoch} was called off")
        check_lease(self._context.lease_of(order), order.destination)
        self._context.before_resume()
        resume = Resume(
            epoch=order.epoch,
            edge=self._context.edge,
            strategy=order.strategy,
            server_first=order.server_first,
            service=order.service,
            lease=self._context.lease_of(order),
        )
        return await self._context.control.ask(resume, order.deadlines.restore_s)

    async def _brought_up(self, order: MoveOrder, manifest: CheckpointManifest) -> None:
        """Clean up after a restore, once the server serves."""
        # Freeing the memory of the images takes milliseconds that the agent's answer need not wait for.
        self._clearing = asyncio.create_task(asyncio.to_thread(self._clear_images))

    async def _unmake(self) -> None:
        """Kill the process that was restored here; its images stay for whoever looks into the failure."""
        if self._made is not None:
            await self._unmake_process()
            self._made = None

    async def _kill_made(self) -> None:
        """Kill the process that was restored here."""
        if self._made is not None:
            with contextlib.suppress(MigrationError):  # the container itself may be gone
                await self._container.stop(self._made.pid, grace_s=0)

    async def _unmake_process(self) -> None:
        """Kill the process that was restored here, and remove what belongs to it."""
        await self._kill_made()

    async def abandon_destination(self, order: MoveOrder, reason: str) -> None:
        """Undo the move: when this returns, no process of this order is here or will be."""
        # Said before the lock is waited for: a restore that holds it sees this before it resumes the server.
        self._abandoned.add(order.epoch)
        async with self._making:
            await self._release()
            if self._made is not None and self._made.epoch == order.epoch:
                await self._unmake()
        self._clear_images()


def _dumps(argv: Sequence[str]) -> bool:
    """Whether a process with that command line is one of ``DUMPERS``."""
    return any(Path(word).name in DUMPERS for word in argv)


class Round(NamedTuple):
    """One round of pre-copy: the records to send, and numbers for its event."""

    records: Iterator[bytes]
    pages: int  # that are sent
    of_pages: int  # that were looked at
    more: dict[str, float]  # further details for the round's event


class CopiesInRounds(CriuEngine):
    """An engine that copies memory ahead in rounds, each an incremental image of CRIU."""

    async def copy_ahead(self, order: MoveOrder) -> AsyncIterator[bytes]:
        """Send all memory, then what was written meanwhile, until ``rounds.why_stop`` has a reason."""
        pid = self._server_pid()
        packer = Packer(order.compression)
        before: int | None = None
        async for chunk in packer.pack_all(await self._files_ahead()):
            yield chunk
        try:
            while True:
                with self._context.events.phase("migration.precopy.round", epoch=order.epoch) as detail:
                    this = await self._next_round(order, pid)
                    size_bytes = 0
                    async for chunk in packer.pack_all(this.records):
                        size_bytes += len(chunk)
                        yield chunk
                    self._rounds += 1
                    stop = why_stop(self._rounds, this.pages, before)
                    detail.update(
                        round=self._rounds,
                        pages=this.pages,
                        of_pages=this.of_pages,
                        bytes=size_bytes,
                        stop=stop,
                    )
                    detail.update(this.more)
                if stop is not None:
                    break
                before = this.pages
            end = closing_records(order.epoch, self._image_pid(pid), self._rounds)
            for chunk in packer.pack(end, flush=True):
                yield chunk
        finally:
            await self._dump_is_over()

    async def _next_round(self, order: MoveOrder, pid: int) -> Round:
        """Collect the pages that were written since the last round."""
        raise NotImplementedError

    async def accept_ahead(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> None:
        """Write the rounds to where the last image will find them."""
        self._ready()
        unpacker = self._unpacker()
        await unpack(order.compression, unpacker, chunks)
        manifest = unpacker.manifest()
        if manifest.epoch != order.epoch:
            raise MigrationError(f"rounds of epoch {manifest.epoch}, not {order.epoch}")
        await self._files_have_come(AHEAD)
        await self._rounds_have_come(manifest)

    async def _rounds_have_come(self, manifest: CheckpointManifest) -> None:
        """Do with the rounds what can be done before the freeze."""
