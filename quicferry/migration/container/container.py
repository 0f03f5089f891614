"""The container in which a server's process lives on its edge host, and helpers to run things in it.

A container is a PID and a mount namespace of its own inside the edge host's network namespace, with
a private tmpfs on ``/run``. It is made by the node agent of that host and ends with it. Its own PID
namespace lets a restored process have the PID it had elsewhere; its own mount namespace lets CRIU,
run inside, see one consistent set of mounts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import secrets
import signal
import socket
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Self

import msgspec

from quicferry.emulation.sandbox import cgroups
from quicferry.errors import MigrationError, Unsupported
from quicferry.migration.container import init
from quicferry.migration.container.processes import ContainerNamespaces, only_child
from quicferry.migration.container.readiness import until_readable
from quicferry.slowness import longer

INIT = Path(init.__file__)
REAPED_S = 5.0
STOPPED_S = 1.0  # for a process that is halted to stand still
STOPPED_POLL_S = 0.0005
READY_S = 30.0  # an idle machine needs 0.03 s
#: Service PIDs are 10 000 + 1 000 times the edge's number: no two edges of one run choose the same.
PIDS_PER_EDGE = 1_000
FIRST_SERVICE_PID = 10_000
#: Helpers have PIDs from 100 + 450 times the edge's number up. So do threads and children that a service
#: makes where it has come to: they differ between edges as well, as they move on with it.
HELPER_PIDS_PER_EDGE = 450
FIRST_HELPER_PID = 100
#: Between two services started in one container: room for the threads of the first.
PIDS_PER_SERVICE = 50
MOUNT_RUN = "mount -t tmpfs -o mode=0755 tmpfs /run"
#: Joins the control group whose ``cgroup.procs`` is $0, then becomes the program.
JOIN = 'echo 0 >"$0" && exec "$@"'
MAX_KEPT = 64  # descriptors that init keeps: one for each process of a server, and two of its memory


def first_pid_of(edge: str) -> int:
    """The first PID for services started on that edge: by its number, or by a hash of a name without one.

    A process keeps its PID on all its hops, so PIDs must differ between the edges it may visit.
    Stays below 32 768, the smallest ``kernel.pid_max`` in use.
    """
    return FIRST_SERVICE_PID + PIDS_PER_EDGE * _number_of(edge)


def first_helper_pid_of(edge: str) -> int:
    """The first PID for all else that runs in that edge's container; stays below ``FIRST_SERVICE_PID``."""
    return FIRST_HELPER_PID + HELPER_PIDS_PER_EDGE * _number_of(edge)


def _number_of(edge: str) -> int:
    """A number from 0 to 19."""
    digits = re.search(r"(\d+)$", edge)
    return (int(digits[1]) if digits else zlib.crc32(edge.encode())) % 20


Channel = tuple[asyncio.StreamWriter, asyncio.StreamReader]  # requests to init, its answers


class ContainerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the next agent needs to find a container that outlives the present one."""

    socket: str  # init's Unix socket, a file beside the record
    init_pid: int
    service_pid: int | None
    next_pid: int


class Surroundings(NamedTuple):
    """What a container is made with."""

    mounts: str = MOUNT_RUN  # shell commands that make its mounts, before init starts
    namespaces: tuple[str, ...] = ()  # options of unshare(1), beside those that all have
    group: PurePosixPath | None = None  # the control group of all that is in it; None: that of the agent


class Container(ContainerNamespaces):
    """One container. ``container = await Container.create("edge-1")`` … ``await container.close()``.

    Also an asynchronous context manager. Not for use by several event loops.
    """

    #: ``halt`` sends a signal, which is in the process's image; False: nothing of it can be seen there
    halts_by_signal = True

    def __init__(
        self,
        edge: str,
        parent: asyncio.subprocess.Process | None,
        init_pid: int,
        channel: Channel,
        record: Path | None = None,
    ) -> None:
        super().__init__(edge, init_pid)
        self._parent = parent  # None: an agent before this one made the container
        self._requests, self._answers = channel
        self._record = record
        self._name = ""  # of init's socket
        self._socket: socket.socket | None = None  # our end of it
        #: descriptors that init has kept for an agent before this one, with the PIDs inside
        self.left: list[tuple[int, int]] = []
        self._service_pid: int | None = None
        #: ends when the service has all its memory; an engine that moves it on must wait for that
        self.settling: asyncio.Task[None] | None = None
        self._next_pid = first_pid_of(edge)
        self._lock = asyncio.Lock()

    @classmethod
    async def create(cls, edge: str, *, enter: Sequence[str] = (), record: Path | None = None) -> Self:
        """Make a container in the namespaces of the calling process.

        ``enter`` is an argument vector put before all others, for a caller that is not in the edge
        host's namespaces (``["nsenter", "--net=/proc/42/ns/net"]``). Raises ``Unsupported`` without
        root or without the programs of util-linux, ``MigrationError`` when it does not come up.

        With a file as ``record`` the container outlives its agent: what was killed before it could
        ``close`` leaves it there, with the server in it, and the next agent finds it by the record.
        """
        if record is not None and (found := await cls._find(edge, record)) is not None:
            return found
        name = f"{edge}-{secrets.token_hex(8)}.socket" if record is not None else ""
        around = cls.surroundings(edge)
        try:
            return await cls._create(edge, enter, record, name, around)
        except BaseException:
            if around.group is not None:
                cgroups.remove(around.group)
            raise

    @classmethod
    def surroundings(cls, edge: str) -> Surroundings:  # noqa: ARG003 - one may be named after it
        """What a new container on that edge is made with."""
        return Surroundings()

    @classmethod
    async def _create(
        cls, edge: str, enter: Sequence[str], record: Path | None, name: str, around: Surroundings
    ) -> Self:
        """Make a container in these surroundings, with an init that listens on the socket ``name``."""
        procs = cgroups.open_procs(around.group) if around.group is not None else None
        # Bound here and passed on: its name is a file that is in no mount namespace of the container, so
        # that nothing in there, an OCI container least of all, can so much as connect to it.
        listener = _listen(record.parent, name) if record is not None else None
        passed = [procs] if procs is not None else []
        if listener is not None:
            passed.append(listener.fileno())
        argv = [
            *enter,
            # before the namespaces are made: the root of a cgroup namespace is the group of who makes it
            *(("sh", "-c", JOIN, f"/proc/self/fd/{procs}") if procs is not None else ()),
            # The first dies with the agent's thread, the second kills init when the first dies.
            *(() if record is not None else ("setpriv", "--pdeathsig", "KILL")),
            *("unshare", *around.namespaces, "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"),
            *("sh", "-c", f'{around.mounts} && exec "$@"', "sh"),
            *(sys.executable, "-I", "-S", str(INIT), str(first_helper_pid_of(edge))),
            *((str(listener.fileno()),) if listener is not None else ()),
        ]
        try:
            parent = await asyncio.create_subprocess_exec(
                *argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                pass_fds=passed,
            )
        except FileNotFoundError as error:
            raise Unsupported(f"the program {argv[0]} is not installed", hint="run `make setup`") from error
        finally:
            if procs is not None:
                os.close(procs)
            if listener is not None:
                listener.close()
        assert parent.stdout is not None and parent.stderr is not None
        try:
            ready = await asyncio.wait_for(parent.stdout.readline(), longer(READY_S))
        except TimeoutError:
            ready = b""
        if not ready:
            with contextlib.suppress(ProcessLookupError):
                parent.kill()
            why = (await parent.stderr.read()).decode(errors="replace").strip() or "no message"
            await parent.wait()
            raise MigrationError(
                f"the container on {edge} did not start: {why}",
                hint="it takes root; `quicferry doctor` says more",
            )
        if record is None:
            assert parent.stdin is not None
            return cls(edge, parent, only_child(parent.pid), (parent.stdin, parent.stdout))
        connection = await _connect(record.parent, name)
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        made = cls(edge, parent, only_child(parent.pid), (writer, reader), record)
        made._name, made._socket = name, connection
        made._write_record()
        return made

    @classmethod
    async def _find(cls, edge: str, record: Path) -> Self | None:
        """The container that an agent before this one has left; None when there is none."""
        try:
            left = msgspec.json.decode(_read(record), type=ContainerRecord)
            connection = await _connect(record.parent, left.socket)
            kept = await _what_is_kept(connection)
            reader, writer = await asyncio.open_unix_connection(sock=connection)
        except (OSError, msgspec.DecodeError):
            return None
        found = cls(edge, None, left.init_pid, (writer, reader), record)
        found._name, found._service_pid, found._next_pid = left.socket, left.service_pid, left.next_pid
        found._socket, found.left = connection, kept
        return found

    def _write_record(self) -> None:
        """Note what the next agent needs, if this container is to outlive the present one."""
        if self._record is None:
            return
        record = ContainerRecord(
            socket=self._name,
            init_pid=self._init_pid,
            service_pid=self._service_pid,
            next_pid=self._next_pid,
        )
        draft = self._record.with_name(f"{self._record.name}.new")
        draft.write_bytes(msgspec.json.encode(record))
        draft.replace(self._record)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def service_pid(self) -> int | None:
        """PID of the server's process inside the container; None while none runs."""
        if self._service_pid is not None and not self.is_alive(self._service_pid):
            self._service_pid = None
        return self._service_pid

    def log_path(self, pid: int) -> str:
        """Where, inside the container, stdout and stderr of the service with that PID go."""
        return f"/run/service-{pid}.log"

    async def _ask(self, *, descriptor: int | None = None, **request: Any) -> dict[str, Any]:
        """Send one request to init and return its answer. Raises ``MigrationError``."""
        words = json.dumps(request).encode() + b"\n"
        async with self._lock:
            if descriptor is None:
                self._requests.write(words)
            else:
                assert self._socket is not None
                # past the writer: every request has been answered, so nothing is left in it
                socket.send_fds(self._socket, [words], [descriptor])
            answer = await self._answers.readline()
        if not answer:
            raise MigrationError(f"the container on {self.edge} is gone")
        decoded: dict[str, Any] = json.loads(answer)
        if "error" in decoded:
            raise MigrationError(f"the container on {self.edge}: {decoded['error']}")
        return decoded

    async def start(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> int:
        """Start the server's process with stdio opened inside; returns its PID inside the container.

        ``env`` None means the agent's environment. stdin is ``/dev/null``, stdout and stderr go to
        ``log_path(pid)``. Returns when the program has taken over. Raises ``MigrationError`` when it
        cannot be executed or its PID is taken.
        """
        wanted = self._next_pid
        self._next_pid += PIDS_PER_SERVICE
        answer = await self._ask(
            do="start",
            argv=list(argv),
            env=None if env is None else dict(env),
            log=self.log_path(wanted),
            pid=wanted,
        )
        self._service_pid = int(answer["pid"])
        self._write_record()
        return self._service_pid

    def adopt(self, pid: int) -> None:
        """The server's process is now this PID inside the container: an engine restored it."""
        self._service_pid = pid
        self._write_record()

    def disown(self) -> None:
        """No server runs here any more: an engine has ended it, and its PID may be given again."""
        self._service_pid = None
        self._write_record()

    async def end_processes(self) -> None:
        """Kill all processes inside but init, whoever started them."""
        while processes := self.processes():  # one that is ended late may have started more
            for process in processes:
                await self.stop(process.pid, grace_s=0)
        self._service_pid = None

    async def signal(self, pid: int, number: int) -> None:
        """Send a signal to a process inside; nothing when it is gone."""
        await self._ask(do="kill", pid=pid, signal=number)

    async def halt(self, pid: int) -> None:
        """Have a process inside stand still (``is_stopped``) until ``unhalt``. Raises ``MigrationError``."""
        await self.signal(pid, signal.SIGSTOP)
        # SIGSTOP takes effect in each thread on its next way back to user mode, not at once
        await self._until_stopped(pid)

    async def _until_stopped(self, pid: int) -> None:
        try:
            async with asyncio.timeout(STOPPED_S):
                while not self.is_stopped(pid):  # noqa: ASYNC110 - the kernel stops it, no event tells
                    await asyncio.sleep(STOPPED_POLL_S)
        except TimeoutError as error:
            raise MigrationError(f"process {pid} on {self.edge} does not stand still") from error

    async def unhalt(self, pid: int) -> None:
        """Let a process and its descendants go on that ``halt`` or CRIU stopped; nothing when it is gone."""
        # its children first: CRIU has stopped all, and the parent may ask them at once
        for each in (*reversed(self.descendants(pid)), pid):
            await self.signal(each, signal.SIGCONT)

    async def stop(self, pid: int, *, grace_s: float = 1.0) -> None:
        """End a process inside and its descendants: SIGTERM for it, then SIGKILL for all after ``grace_s``.

        0 means SIGKILL at once. Raises ``MigrationError`` when one survives.
        """
        family = self.descendants(pid)
        if grace_s > 0:
            await self.signal(pid, signal.SIGTERM)
            # a stopped process acts on SIGTERM only when it goes on
            if self.is_stopped(pid):
                await self.unhalt(pid)
            await self._gone(pid, grace_s)
        else:
            # so that none is forked while they are killed one after the other
            await self.signal(pid, signal.SIGSTOP)
            while found := [each for each in self.descendants(pid) if each not in family]:
                for each in found:
                    await self.signal(each, signal.SIGSTOP)
                family += found
        # children first: those whose parent is gone are init's, and may be told to go on by its end (SIGHUP)
        for each in (*reversed(family), pid):
            await self.signal(each, signal.SIGKILL)
        for each in (pid, *family):
            if not await self._gone(each, 5.0):
                raise MigrationError(f"process {each} on {self.edge} survived SIGKILL")

    async def stop_service(self, *, grace_s: float = 1.0) -> None:
        """End the server's process (SIGTERM, SIGKILL after ``grace_s``); nothing when none runs."""
        pid = self.service_pid
        if pid is not None:
            await self.stop(pid, grace_s=grace_s)
            self._service_pid = None

    async def has_died(self, pid: int) -> bool:
        """Whether a process inside is no more. One that is dying is waited for until it is reaped.

        Its PID is free then for a process that is restored in its place. Raises ``MigrationError`` when none
        does so within ``REAPED_S``.
        """
        if self.is_dying(pid) and not await self._gone(pid, REAPED_S):
            raise MigrationError(f"process {pid} on {self.edge} is dead, and nobody reaps it")
        return not self.is_alive(pid)

    async def _gone(self, pid: int, timeout_s: float) -> bool:
        """Wait until a process inside is gone; False when it is not within ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while not self.is_over(pid):
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.002)
        return True

    @property
    def outlives_agent(self) -> bool:
        """Whether the container, its processes and what it keeps survive an agent that is killed."""
        return self._record is not None

    async def keep(self, pid: int, descriptor: int) -> None:
        """Have init keep a copy of a descriptor that belongs to a process inside, for the next agent.

        Nothing when the container ends with this agent. ``drop_kept`` ends it.
        """
        if self.outlives_agent:
            await self._ask(do="keep", pid=pid, descriptor=descriptor)

    def take_left(self) -> list[tuple[int, int]]:
        """What init kept for an agent before this one: (PID inside, descriptor), the caller's from now on."""
        left, self.left = self.left, []
        return left

    async def drop_kept(self) -> None:
        """Have init close all that it keeps."""
        if self.outlives_agent:
            await self._ask(do="drop")

    async def close(self) -> None:
        """End everything in the container and the container; may be called again."""
        group = self._group()
        if self._parent is None or self._parent.returncode is None:
            # init leads to the end of all in its PID namespace, and with the last one the mounts go
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._init_pid, signal.SIGKILL)
        self._service_pid = None
        if self._record is not None:
            self._requests.close()
            self._record.unlink(missing_ok=True)
            self._record.with_name(self._name).unlink(missing_ok=True)
        if self._parent is not None:
            # communicate() closes our ends of the pipes and waits
            await self._parent.communicate()
        if group is not None:
            await asyncio.to_thread(cgroups.remove, group)

    def _group(self) -> PurePosixPath | None:
        """The control group that was made for this container; None when there is none."""
        try:
            group = cgroups.own_group(self._init_pid)
        except OSError:  # it has ended; the tool removes the group at the end of the run
            return None
        return group if cgroups.NAME.fullmatch(group.name) else None


def _read(path: Path) -> bytes:
    """Read a small file of this host; short enough to do it in the event loop."""
    return path.read_bytes()


@contextlib.contextmanager
def _short_path(folder: Path, name: str) -> Iterator[str]:
    """A path to a file there that fits into a socket's address, which holds 108 bytes (unix(7))."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def _listen(folder: Path, name: str) -> socket.socket:
    """A socket for init, as a file there for root alone. Raises ``OSError``."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _short_path(folder, name) as path:
            listener.bind(path)
            Path(path).chmod(0o600)
        listener.listen(1)
    except OSError:
        listener.close()
        raise
    return listener


async def _connect(folder: Path, name: str) -> socket.socket:
    """A connection to the init that listens on that socket. Raises ``OSError``."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        with _short_path(folder, name) as path:
            await asyncio.get_running_loop().sock_connect(connection, path)
    except OSError:
        connection.close()
        raise
    return connection


async def _what_is_kept(connection: socket.socket) -> list[tuple[int, int]]:
    """Ask an init for copies of all descriptors that it keeps: (PID inside, descriptor)."""
    await asyncio.get_running_loop().sock_sendall(connection, b'{"do": "kept"}\n')
    await until_readable(connection)
    line, descriptors, _, _ = socket.recv_fds(connection, 4096, MAX_KEPT)
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)  # recv_fds of Python 3.11 forgets its flags
    return list(zip(json.loads(line or b"{}").get("pids", []), descriptors, strict=False))
