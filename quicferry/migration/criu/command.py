"""Running CRIU in a container: find it, dump, restore, and say clearly why it failed.

CRIU runs inside the namespaces of the container, where it sees a process in the same namespaces as
itself and a plain set of mounts: no external resources have to be named.
Options: criu(8), https://criu.org/CLI. Measured reasons are in ``docs/adr/0004-criu-cold.md``.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from quicferry.errors import MigrationError, Unsupported
from quicferry.migration.container.container import Container
from quicferry.migration.container.processes import Completed, HeldProgram
from quicferry.migration.criu.image_stream import LEFT_BEHIND
from quicferry.migration.criu.stats import (
    DumpStats,
    RestoreStats,
    read_dump_stats,
    read_restore_stats,
)
from quicferry.paths import CHECKOUT
from quicferry.process import find_program

INSTALL_HINT = "run `provision/criu.sh` as root (`make setup` does); `quicferry doctor` tries it out"

#: Both ways. ``--network-lock skip``: without live TCP connections nothing is to be locked, and where
#: they live on, their address has left the host before; a lock that is left over would block the edge
#: host. ``--file-validation filesize``: the files are those of one machine; reading the build IDs of
#: every mapped library takes longer. ``-v1``: errors only.
COMMON = ("--network-lock", "skip", "--file-validation", "filesize", "-v1")
#: Listeners live on, connections end, as their addresses do not move.
CLOSE_TCP = "--tcp-close"
#: Connections live on, too: for an address that moves with the process.
KEEP_TCP = "--tcp-established"

#: A connection that waits in a listener's queue cannot be dumped, and the frozen server takes none out of it.
#: It is left out: its client hears so from the destination's kernel and connects again. Without this option
#: the whole dump fails.
SKIP_QUEUED_TCP = "--skip-in-flight"

#: What a dump with lazy pages waits for before it ends: that its page server is told to close. The
#: rest of the request is without meaning; it is as long as the longest form there is (CRIU 4.2).
CLOSE_PAGE_SERVER = struct.pack("<I28x", 0x1023)  # PS_IOV_CLOSE

#: Its answer, a status.
PAGE_SERVER_CLOSED = struct.pack("<i", 0)

#: What ``criu check`` calls a userfaultfd that tells all that is to be known for lazy pages.
LAZY_FEATURE = "uffd-noncoop"

#: A CRIU that is started ahead reads its configuration from its stdin, and so waits there: it is loaded and
#: linked by then. What it cannot do without is not among its arguments but in that: should its agent die, it
#: reads nothing, says so, and ends.
CONFIGURED_BY_STDIN = ("--config", "/proc/self/fd/0")

KERNEL_CACHE = "/run/criu.kdat"

#: Said in every run without CAP_SYS_RESOURCE, and of no consequence.
HARMLESS = "Can't setup RLIMIT_NOFILE"

#: What CRIU says -> what it means for the reader. The first that is found is given.
HINTS: tuple[tuple[str, str], ...] = (
    (
        r"No space left|no space left",
        "there is no room for the checkpoint, which is kept in memory, on the private /run: move less",
    ),
    (r"Network is unreachable", "the loopback interface of this host is down"),
    (r"Unsupported proto 262", "the process holds an MPTCP socket; CRIU cannot move those"),
    (r"Can't lookup mount", "the process has a file open from outside its container, perhaps its stdio"),
    (
        r"has bad (size|mode)|Can't open file|Can't stat",
        "a file that the process has open differs at this host",
    ),
    (r"(fork|clone).*File exists|Pid \d+ .*(taken|exists|busy)", "the PID is in use in this container"),
    (r"EADDRINUSE|Address already in use", "another process holds the port at this host"),
    (r"Cannot assign requested address", "the process is bound to an address this host does not have"),
    (r"unix.*(external|peer)|External socket", "the process holds a unix socket to one outside"),
    (r"tty|terminal", "the process has a terminal; start it with its stdio on files"),
    (
        r"ptrace|Operation not permitted",
        "CRIU lacks a privilege: run as root, outside of unprivileged containers",
    ),
    (r"vdso|vDSO", "this CRIU is too old for the kernel: run `provision/criu.sh`"),
    (
        r"cgroup manager can not access cgroup",
        "this runc restores only what has a cgroup of its own; runc 1.1 (Debian 12 and 13) does without",
    ),
    (
        r"soft-dirty|pagemap|missing features",
        "the kernel lacks a feature that CRIU uses here: `quicferry doctor`",
    ),
)


def find_criu() -> Path:
    """The CRIU to use: the launcher that ``provision/criu.sh`` wrote, else the program on the PATH.

    ``QUICFERRY_CRIU_PREFIX`` names another prefix than ``.cache/criu``. Raises ``Unsupported``.
    """
    prefix = os.environ.get("QUICFERRY_CRIU_PREFIX")
    launcher = (Path(prefix) if prefix else CHECKOUT / ".cache" / "criu").resolve() / "bin" / "criu"
    if os.access(launcher, os.X_OK):
        return launcher
    system = find_program("criu")
    if system is None:
        raise Unsupported(f"there is no criu, neither {launcher} nor on the PATH", hint=INSTALL_HINT)
    return system


def explain(step: str, done: Completed, log: str, program: str = "criu") -> MigrationError:
    """The error for a failed run of CRIU, or of a program that ran it: its last words and their meaning."""
    errors = [match[1].strip() for match in re.finditer(r"Error \([^)]*\): (.*)", log)]
    errors = [error for error in errors if not re.search(HARMLESS, error)]
    words = errors or (done.stderr or done.stdout or log).strip().splitlines() or ["it left no message"]
    # The first errors name the cause, the last is only "Dumping FAILED."
    told = "; ".join(dict.fromkeys(word for word in words[:4] if not word.endswith("FAILED.")))
    hint = next((hint for pattern, hint in HINTS if re.search(pattern, "\n".join(words))), None)
    return MigrationError(
        f"{program} {step} failed with status {done.status}: {told or words[-1]}",
        hint=hint or "`quicferry doctor` tries CRIU out; docs/criu.md says what cannot be moved",
    )


class Criu:
    """CRIU in one container. ``images`` are directories inside the container.

    With ``keep_tcp`` established TCP connections are dumped and restored, else they are closed.
    """

    def __init__(self, container: Container, program: Path | None = None, *, keep_tcp: bool = False) -> None:
        self._container = container
        self._common = (KEEP_TCP if keep_tcp else CLOSE_TCP, *COMMON)
        self.program = find_criu() if program is None else program
        self._waiting: HeldProgram | None = None  # a CRIU that is started before the downtime
        self._sockets: tuple[socket.socket, socket.socket] | None = None  # of one that dumps without memory

    async def warm_up(self, images: Path) -> None:
        """Let CRIU probe the kernel now: it keeps what it learns in ``/run`` of this container.

        Raises ``MigrationError`` when it cannot even do that: better now than after the freeze.
        """
        self._container.path(str(images)).mkdir(parents=True, exist_ok=True, mode=0o700)
        # Any feature would do; that this one is missing on some kernels is no matter here.
        done = await self._container.run([str(self.program), "check", "--feature", "mem_dirty_track"])
        if not self._container.path(KERNEL_CACHE).exists():
            raise explain("check", done, done.stderr)

    async def has(self, feature: str) -> bool:
        """Whether kernel and CRIU have a feature that ``criu check --feature`` knows."""
        done = await self._container.run([str(self.program), "check", "--feature", feature])
        return done.status == 0

    def dump_argv(self, pid: int, images: Path) -> list[str]:
        """The arguments to dump a process and leave it stopped: then it can go on if the move fails."""
        return [
            *(str(self.program), "dump", "-t", str(pid), "-D", str(images), "-o", "dump.log"),
            *("--leave-stopped", SKIP_QUEUED_TCP, *self._common),
        ]

    def restore_argv(self, images: Path) -> list[str]:
        """The arguments to restore a process that then lives on without CRIU."""
        return [str(self.program), "restore", "-d", "-D", str(images), "-o", "restore.log", *self._common]

    def _lazy_dump_argv(self, pid: int, images: Path, descriptor: int) -> list[str]:
        return [*self.dump_argv(pid, images), "--lazy-pages", "--ps-socket", str(descriptor)]

    def _restore_argv(self, images: Path, *, lazy: bool) -> list[str]:
        return [*self.restore_argv(images), *(["--lazy-pages"] if lazy else [])]

    # before the downtime

    async def hold_dump(self, pid: int, images: Path, *, memory: bool) -> None:
        """Have CRIU wait in the container for ``dump``, or without ``memory`` for ``dump_without_memory``."""
        await self.release()
        if memory:
            argv = self.dump_argv(pid, images)
            self._waiting = await self._container.hold(argv, started=started_dump(argv))
            return
        _, theirs = self._sockets = socket.socketpair()
        argv = self._lazy_dump_argv(pid, images, theirs.fileno())
        self._waiting = await self._container.hold(
            argv, descriptors=[theirs.fileno()], started=started_dump(argv)
        )

    async def hold_restore(self, images: Path, *, lazy: bool) -> None:
        """Have CRIU wait in the container for ``restore`` with that ``lazy``."""
        await self.release()
        argv = self._restore_argv(images, lazy=lazy)
        self._waiting = await self._container.hold(argv, started=started_restore(argv))

    async def release(self) -> None:
        """End a CRIU that waits and was not needed."""
        waiting, self._waiting = self._waiting, None
        self._close_sockets()
        if waiting is not None:
            await waiting.close()

    def _close_sockets(self) -> None:
        for end in self._sockets or ():
            end.close()
        self._sockets = None

    async def _call(
        self, argv: list[str], timeout_s: float, descriptors: Sequence[int] = (), *, let_go_on: bool = False
    ) -> Completed:
        """Have CRIU do its work: the one that waits, if it was started for just that."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None and waiting.waits and waiting.argv == argv:
            return await self._container.run_held(waiting, timeout_s=timeout_s, let_go_on=let_go_on)
        if waiting is not None:
            await waiting.close()
        return await self._container.run(
            argv, timeout_s=timeout_s, descriptors=descriptors, let_go_on=let_go_on
        )

    # in it

    async def dump(self, pid: int, images: Path, *, timeout_s: float) -> DumpStats:
        """Write the images of a process, which is stopped afterwards. Raises ``MigrationError``.

        When it fails, the process goes on as if nothing had happened: CRIU sees to that. It is not killed
        when it takes too long: one in fourteen servers did not survive that (docs/faults.md).
        """
        done = await self._call(self.dump_argv(pid, images), timeout_s, let_go_on=True)
        outside = self._container.path(str(images))
        if done.status != 0:
            raise explain("dump", done, log_text(outside / "dump.log"))
        return read_dump_stats((outside / "stats-dump").read_bytes())

    async def dump_without_memory(
        self, pid: int, images: Path, *, timeout_s: float, written: Callable[[], None] | None = None
    ) -> None:
        """Write the images of a process but for the memory that can be restored lazily.

        The process is stopped afterwards, and that memory is in it: whoever wants it reads it there.
        Raises ``MigrationError`` as ``dump`` does.

        CRIU would serve the memory itself, over an unprotected connection. It is given a socket in
        which the order to close waits already, so that it goes to its end at once. Its answer says that all
        images are there: ``written`` is called then. What follows takes 4 ms for 100 MiB, and may still fail:
        CRIU lets go of the memory and of the process, and ends.
        """
        if self._sockets is None:
            self._sockets = socket.socketpair()
        ours, theirs = self._sockets
        try:
            ours.sendall(CLOSE_PAGE_SERVER)
            ours.setblocking(False)
            hearing = asyncio.create_task(_hear_closed(ours, written))
            argv = self._lazy_dump_argv(pid, images, theirs.fileno())
            try:
                done = await self._call(argv, timeout_s, [theirs.fileno()], let_go_on=True)
            finally:
                hearing.cancel()
                await asyncio.wait([hearing])
        finally:
            self._close_sockets()
        if done.status != 0:
            raise explain("dump", done, log_text(self._container.path(str(images)) / "dump.log"))

    def leave_behind(self, images: Path) -> None:
        """Remove files from an image directory that must not take part in a restore."""
        for name in LEFT_BEHIND:
            (self._container.path(str(images)) / name).unlink(missing_ok=True)

    async def restore(self, images: Path, *, timeout_s: float, lazy: bool = False) -> RestoreStats:
        """Restore a running process from its images. Raises ``MigrationError``; then no process is left.

        ``lazy``: pages that the images lack are left out, see ``memory.userfault``.
        """
        outside = self._container.path(str(images))
        self.leave_behind(images)
        argv = self._restore_argv(images, lazy=lazy)
        done = await self._call(argv, timeout_s)
        if done.status != 0:
            raise explain("restore", done, log_text(outside / "restore.log"))
        return read_restore_stats((outside / "stats-restore").read_bytes())


def started_dump(argv: Sequence[str]) -> tuple[list[str], str]:
    """The arguments of a dump that is started ahead, and the word at which it begins: what to dump."""
    place = argv.index("-t")
    return [*argv[:place], *argv[place + 2 :], *CONFIGURED_BY_STDIN], f"tree {argv[place + 1]}"


def started_restore(argv: Sequence[str]) -> tuple[list[str], str]:
    """The same of a restore: where the images are. Its log is written there in any case."""
    place = argv.index("-D")
    images = argv[place + 1]
    words = [*argv[:place], *argv[place + 2 :], "-W", images, *CONFIGURED_BY_STDIN]
    return words, f"images-dir {images}"


async def _hear_closed(page_server: socket.socket, written: Callable[[], None] | None) -> None:
    """Wait until CRIU's page server says that it has closed."""
    answer = await asyncio.get_running_loop().sock_recv(page_server, len(PAGE_SERVER_CLOSED))
    if answer == PAGE_SERVER_CLOSED and written is not None:
        written()


def log_text(path: Path) -> str:
    """The text of a log file, empty when there is none."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
