"""CRIU's own machinery for memory outside the downtime: tracked dumps, page server, lazy-pages daemon.

Page server and daemon get a socket of ours each (``--ps-socket``): nobody listens on a port, and what
they say to each other crosses between the hosts as the agents carry it (``rpc.tunnel``).
Sources: criu(8), https://criu.org/Incremental_dumps, https://criu.org/Lazy_migration.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
from pathlib import Path
from typing import NamedTuple, Protocol

from quicferry.errors import MigrationError, Unsupported
from quicferry.migration.container.container import Container
from quicferry.migration.container.descriptors import descriptors_in, descriptors_of, take_descriptor
from quicferry.migration.container.processes import Completed, only_child
from quicferry.migration.container.readiness import until_readable
from quicferry.migration.criu import pipe_filter
from quicferry.migration.criu.command import Criu, explain, log_text
from quicferry.migration.criu.stats import DumpStats, read_dump_stats

#: What ``criu check`` calls a kernel that knows which pages were written (soft-dirty).
TRACK_FEATURE = "mem_dirty_track"
PIPE_LIMIT = Path("/proc/sys/fs/pipe-max-size")
WANTED_PIPE_BYTES = 4 << 20  # what the kernel makes of the 3.2 MiB that CRIU's page server asks for
POLL_S = 0.0005
SET_UP_S = 5.0  # for a page server that has said it is ready to be so
END_S = 5.0
USERFAULTFD = "anon_inode:[userfaultfd]"
#: Reads from its agent; at the end of that without a word, the agent is dead. $0 is the PID.
GUARD = 'read -r word; [ "$word" = over ] || kill -9 "$0"'
GUARD_OVER = b"over\n"


class PageServer(Protocol):
    """A CRIU that has dumped a process and serves its memory."""

    @property
    def socket(self) -> socket.socket:
        """Our end of its connection, or another descriptor of it."""

    def hang_up(self) -> None:
        """End its connection: it then ends, and leaves the process as it was dumped."""

    async def end(self) -> int:
        """Wait for its end and return its status."""


def hang_up(connection: socket.socket) -> None:
    """End a connection, whoever else has a descriptor of it."""
    with contextlib.suppress(OSError):  # the other end has ended it
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def ends(connection: socket.socket | None) -> tuple[socket.socket, socket.socket]:
    """Our end and CRIU's: of a new pair, or of a given ``connection``, which blocks, as CRIU wants."""
    if connection is not None:
        connection.setblocking(True)
        return connection, connection.dup()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


class BackgroundCriu(NamedTuple):
    """A CRIU that runs in the background (page server or lazy-pages daemon), and our end of its socket."""

    process: asyncio.subprocess.Process
    pid: int  # of CRIU itself, seen from the agent
    socket: socket.socket
    log: Path

    def hang_up(self) -> None:
        """End its connection."""
        hang_up(self.socket)

    async def end(self) -> int:
        """Wait for its end and return its status; its socket must be closed, or at its end."""
        try:
            async with asyncio.timeout(END_S):
                return await self.process.wait()
        except TimeoutError:
            await self.kill()
            return await self.process.wait()

    async def kill(self) -> None:
        """Kill it and wait for its end."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


def pipe_limit() -> int:
    """The largest pipe that this process may make, in bytes; 0 when it may make what CRIU asks for.

    0: it may have what CRIU asks for.
    """
    read, write = os.pipe()
    try:
        fcntl.fcntl(read, fcntl.F_SETPIPE_SZ, WANTED_PIPE_BYTES)
    except PermissionError:
        return int(PIPE_LIMIT.read_text())
    finally:
        os.close(read)
        os.close(write)
    return 0


def enlarge_pipes(proc: Path, limit: int) -> None:
    """Make all pipes of the process with that directory below ``/proc`` as large as ``limit`` allows."""
    for number, target in descriptors_in(proc):
        if target.startswith("pipe:"):
            descriptor = os.open(proc / "fd" / str(number), os.O_RDONLY | os.O_NONBLOCK)
            try:
                if fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ) < limit:
                    fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, limit)
            finally:
                os.close(descriptor)


def has_sink(proc: Path) -> bool:
    """Whether a page server has opened ``/dev/null`` for writing, which it does after its last pipe."""
    for number, target in descriptors_in(proc):
        if number > 2 and target == "/dev/null":
            words = (proc / "fdinfo" / str(number)).read_text().split()
            if int(words[words.index("flags:") + 1], 8) & os.O_ACCMODE == os.O_WRONLY:
                return True
    return False


async def set_up_pipes(proc: Path, limit: int) -> None:
    """Wait until the page server with that directory below ``/proc`` has its pipes, and enlarge them.

    Raises ``MigrationError`` when it never has.
    """
    try:
        async with asyncio.timeout(SET_UP_S):
            while not has_sink(proc):  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(POLL_S)
        enlarge_pipes(proc, limit)
    except (OSError, TimeoutError) as error:
        raise MigrationError(f"CRIU's page server has no pipe that is large enough: {error}") from error


def filtered(limit: int) -> list[str]:
    """The words before those of a program that is to run with ``pipe_filter``; none without a limit."""
    return [sys.executable, "-I", "-S", pipe_filter.__file__, str(limit)] if limit else []


def userfaultfds_of(pid: int) -> list[int]:
    """Copies of all userfaultfds of a process. Raises ``MigrationError``, ``OSError`` when it has ended."""
    numbers = [number for number, target in descriptors_of(pid) if target == USERFAULTFD]
    copies: list[int] = []
    try:
        for number in numbers:
            copies += [take_descriptor(pid, number)]
    except BaseException as error:
        for copy in copies:
            os.close(copy)
        if isinstance(error.__cause__, ProcessLookupError):
            raise error.__cause__ from None  # it has ended since, as if there had been nothing to list
        if isinstance(error, Unsupported):
            raise MigrationError(f"a userfaultfd of CRIU cannot be copied: {error}") from error
        raise
    return copies


class MemoryCriu(Criu):
    """CRIU in one container, with its machinery for memory that crosses before or after the downtime."""

    async def tracks(self) -> bool:
        """Whether kernel and CRIU can track which pages were written (soft-dirty)."""
        return await self.has(TRACK_FEATURE)

    def _tracked(self, previous: str | None) -> list[str]:
        """Arguments for a dump that tracks writes, on top of earlier images or none."""
        return ["--track-mem", *(["--prev-images-dir", previous] if previous is not None else [])]

    async def pre_dump(self, pid: int, images: Path, previous: str | None, *, timeout_s: float) -> DumpStats:
        """Write the memory of a running process that was written since the images ``previous``.

        That name is relative to ``images``; None: all memory. Raises ``MigrationError``; the process
        goes on in either case. It stands still for as long as its pages take to be listed.
        """
        outside = self._container.path(str(images))
        outside.mkdir(mode=0o700, parents=True, exist_ok=True)
        argv = [
            *(str(self.program), "pre-dump", "-t", str(pid), "-D", str(images), "-o", "dump.log"),
            *(*self._common, *self._tracked(previous)),
        ]
        done = await self._container.run(argv, timeout_s=timeout_s, let_go_on=True)
        if done.status != 0:
            raise explain("pre-dump", done, log_text(outside / "dump.log"))
        return read_dump_stats((outside / "stats-dump").read_bytes())

    async def dump_tracked(
        self, pid: int, images: Path, previous: str | None, *, timeout_s: float
    ) -> DumpStats:
        """As ``dump``, but only with the memory that was written since the images ``previous``."""
        argv = [*self.dump_argv(pid, images), *self._tracked(previous)]
        done = await self._container.run(argv, timeout_s=timeout_s, let_go_on=True)
        outside = self._container.path(str(images))
        if done.status != 0:
            raise explain("dump", done, log_text(outside / "dump.log"))
        return read_dump_stats((outside / "stats-dump").read_bytes())

    async def dump_and_serve(
        self, pid: int, images: Path, previous: str | None, *, timeout_s: float
    ) -> PageServer:
        """Write the images of a process but for memory that can be restored lazily, and serve that.

        Returns CRIU with its page server at the other end of the socket. The process stays stopped, and
        CRIU with it, until the memory was fetched, or the socket is closed. Raises ``MigrationError`` as
        ``dump`` does.
        """
        argv = [*self.dump_argv(pid, images), "--lazy-pages"]
        if previous is not None:
            argv += self._tracked(previous)
        limit = pipe_limit()
        helper = await self._begin([*filtered(limit), *argv], "dump", images, timeout_s)
        if limit:
            try:
                await set_up_pipes(Path(f"/proc/{helper.pid}"), limit)
            except MigrationError:
                helper.socket.close()
                await helper.kill()
                raise
        return helper

    async def fetch_lazily(
        self, images: Path, *, timeout_s: float, connection: socket.socket | None = None
    ) -> BackgroundCriu:
        """Start the daemon that fetches missing memory by its socket and puts it in place.

        Its status is 0 when all memory is in its place. It must run before ``restore``. With a
        ``connection`` to a page server it uses that, else the one whose other end is returned.
        """
        argv = [
            str(self.program),
            "lazy-pages",
            "-D",
            str(images),
            "-o",
            "lazy-pages.log",
            "-v1",
            "--page-server",
        ]
        return await self._begin(argv, "lazy-pages", images, timeout_s, connection)

    async def _begin(
        self,
        argv: list[str],
        step: str,
        images: Path,
        timeout_s: float,
        connection: socket.socket | None = None,
    ) -> BackgroundCriu:
        """Start a CRIU in the background, and wait until it reports that it is ready."""
        log = self._container.path(str(images)) / f"{step}.log"
        ours, theirs = ends(connection)
        ready, told = os.pipe()
        try:
            descriptors = (theirs.fileno(), told)
            words = [*argv, "--ps-socket", str(theirs.fileno()), "--status-fd", str(told)]
            process = await self._container.begin(words, descriptors=descriptors)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(told)
        try:
            async with asyncio.timeout(timeout_s):
                word = await _read_word(ready)
            if word:
                with contextlib.suppress(OSError, ValueError):  # it ended in this moment
                    return BackgroundCriu(process, only_child(process.pid), ours, log)
        except BaseException:
            ours.close()
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        finally:
            os.close(ready)
        ours.close()
        raise explain(step, Completed(argv, await process.wait(), "", ""), log_text(log))


async def guard(container: Container, pid: int, descriptor: int) -> asyncio.subprocess.Process:
    """Start a process that holds ``descriptor`` open, and kills ``pid`` when this agent dies.

    ``communicate(GUARD_OVER)`` with it ends it without that.
    """
    enter = ["nsenter", "-t", str(container.init_pid), "-m", "-p", "--"]
    return await asyncio.create_subprocess_exec(
        *(*enter, "sh", "-c", GUARD, str(pid)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        pass_fds=[descriptor],
        start_new_session=True,
    )


async def _read_word(descriptor: int) -> bytes:
    """Read one byte; empty when the other end is closed."""
    await until_readable(descriptor)
    return os.read(descriptor, 1)
