"""CRIU's own machinery for memory outside the downtime, as runc drives it.

``runc checkpoint`` has options for pre-dumps (``--pre-dump``, ``--parent-path``) and for a page server
(``--lazy-pages``, ``--page-server``, ``--status-fd``); the daemon at the destination is CRIU's own in either
case. What differs from ``page_server.MemoryCriu``: runc starts CRIU, which finds its socket by its
configuration, and runc ends when CRIU has served the last page.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from pathlib import Path

from quicferry.errors import MigrationError
from quicferry.migration.container.oci_container import OciContainer
from quicferry.migration.container.processes import Completed
from quicferry.migration.container.readiness import until_readable
from quicferry.migration.criu.command import explain, log_text
from quicferry.migration.criu.held_runc import HELD_S, HeldRunc
from quicferry.migration.criu.page_server import (
    END_S,
    MemoryCriu,
    PageServer,
    ends,
    filtered,
    hang_up,
    pipe_limit,
    set_up_pipes,
)
from quicferry.migration.criu.runc import WITHOUT_MEMORY, Runc, on_top_of
from quicferry.migration.criu.stats import DumpStats, read_dump_stats

#: Begins the title that CRIU gives itself for a dump that runc has asked for.
DUMPS = "dump --rpc "


class ServingRunc:
    """A runc whose CRIU serves the memory of a container that it has dumped."""

    def __init__(self, box: OciContainer, running: asyncio.Task[Completed], connection: socket.socket):
        self._box = box
        self._running = running
        self.socket = connection  # our end of what CRIU has, or the same one

    def hang_up(self) -> None:
        """End its connection: CRIU then ends, and leaves the container as it was dumped."""
        hang_up(self.socket)

    async def end(self) -> int:
        """Wait for its end and return its status; its connection must be closed, or at its end."""
        try:
            async with asyncio.timeout(END_S):
                return (await asyncio.shield(self._running)).status
        except TimeoutError:
            await self.kill()
            return -1

    async def kill(self) -> None:
        """Kill runc and CRIU."""
        self._running.cancel()
        await asyncio.wait([self._running])
        for pid in workers(self._box):
            await self._box.stop(pid, grace_s=0)


def workers(box: OciContainer) -> list[int]:
    """The PIDs, in the edge host's container, of what runc has started of CRIU and is at a dump."""
    return [process.pid for process in box.processes() if any(DUMPS in word for word in process.argv)]


class MemoryRunc(Runc, MemoryCriu):
    """runc in one container, with CRIU's machinery for memory that crosses before or after the downtime."""

    _ours: socket.socket | None = None  # our end of the socket of a CRIU that is ready to serve
    _ready: int | None = None  # where it will report that it serves

    async def ready_to_dump(self, images: Path, *, memory: bool) -> None:
        """Have runc and CRIU ready for ``dump_and_serve`` without earlier images; else as ``Runc``'s."""
        if memory:
            await super().ready_to_dump(images, memory=memory)
            return
        await self.close()
        self._ours, theirs = ends(None)
        self._ready, told = os.pipe()
        try:
            words = self._serving_words(images, None, told, theirs)
            descriptors = [theirs.fileno(), told]
            before = filtered(pipe_limit())
            self._dumper = HeldRunc(self._box, self.program, "dump", words, descriptors, before)
            await self._dumper.begin()
        finally:
            theirs.close()
            os.close(told)

    async def close(self) -> None:
        """End what is ready and was not needed."""
        await super().close()
        ours, self._ours, ready, self._ready = self._ours, None, self._ready, None
        if ours is not None:
            ours.close()
        if ready is not None:
            os.close(ready)

    def _serving_words(
        self, images: Path, previous: str | None, told: int, theirs: socket.socket
    ) -> list[str]:
        """Write CRIU's configuration for a dump that serves, and give runc's arguments."""
        self._configure(f"ps-socket {theirs.fileno()}")
        more = ("--leave-running", *WITHOUT_MEMORY, "--status-fd", str(told), *on_top_of(previous))
        return self.words("checkpoint", images, *more)

    async def dump_tracked(
        self, pid: int, images: Path, previous: str | None, *, timeout_s: float
    ) -> DumpStats:
        """As ``Runc.dump``, but only with the memory that was written since the images ``previous``."""
        words = self.words("checkpoint", images, "--leave-running", *on_top_of(previous))
        await self._run("checkpoint", images, words, timeout_s)
        return read_dump_stats((self._outside(images) / "stats-dump").read_bytes())

    async def dump_and_serve(
        self,
        pid: int,
        images: Path,
        previous: str | None,
        *,
        timeout_s: float,
        connection: socket.socket | None = None,
    ) -> PageServer:
        """Write the images of the server but for memory that can be restored lazily, and serve that.

        CRIU holds the server, and runc with it, until the memory was fetched or the connection has ended;
        afterwards it is as it was before: frozen, if it was. ``connection``: to the daemon; None: another
        end is made, as for ``MemoryCriu``. Raises ``MigrationError``; then the server goes on.
        """
        self._outside(images).mkdir(mode=0o700, parents=True, exist_ok=True)
        limit = pipe_limit()
        if connection is None and previous is None and self._dumper is not None and self._dumper.waits:
            assert self._ours is not None and self._ready is not None
            ours, self._ours, ready, self._ready = self._ours, None, self._ready, None
            running, self._dumper = self._dumper.release(), None
            passed: list[int] = []
        else:
            ours, ready, running, passed = self._start(images, previous, connection, limit)
        serving = ServingRunc(self._box, running, ours)
        try:
            if not await _reports(ready, running, timeout_s):
                await asyncio.wait([running], timeout=END_S)  # it may have closed what it reports by
                if not running.done():
                    raise MigrationError(f"runc checkpoint on {self._box.edge} still ran after {timeout_s} s")
                log = log_text(self._outside(images) / "dump.log")
                raise explain("checkpoint", running.result(), log, "runc")
            if limit:
                await self._enlarge_pipes(limit)
        except BaseException:
            serving.hang_up()
            if not running.done():
                await serving.kill()
            raise
        finally:
            os.close(ready)
            for descriptor in passed:
                os.close(descriptor)
            self._configure()
        return serving

    async def _enlarge_pipes(self, limit: int) -> None:
        """Enlarge the pipes of the CRIU that serves. Raises ``MigrationError``."""
        serving = workers(self._box)
        if not serving:
            raise MigrationError(f"the CRIU that serves memory on {self._box.edge} cannot be found")
        for worker in serving:
            await set_up_pipes(self._box.path(f"/proc/{worker}"), limit)

    def _start(
        self, images: Path, previous: str | None, connection: socket.socket | None, limit: int
    ) -> tuple[socket.socket, int, asyncio.Task[Completed], list[int]]:
        """Start runc now: our end, where it reports, its run, and descriptors to close when it has them."""
        ours, theirs = ends(connection)
        ready, told = os.pipe()
        words = self._serving_words(images, previous, told, theirs)
        passed = [theirs.detach(), told]
        running = asyncio.create_task(
            self._box.run_tool(
                *words, timeout_s=HELD_S, path=self._path, descriptors=passed, before=filtered(limit)
            )
        )
        return ours, ready, running, passed


async def _reports(ready: int, running: asyncio.Task[Completed], timeout_s: float) -> bool:
    """Whether a word comes before the end of runc, and in time."""
    word = asyncio.create_task(until_readable(ready))
    try:
        await asyncio.wait([word, running], timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        return word.done() and os.read(ready, 1) != b""
    finally:
        word.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await word
