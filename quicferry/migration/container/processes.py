"""What runs inside a container: seen and joined from its host, by the PID of its init.

Nothing here asks init for anything: ``/proc`` tells what there is, and a program joins the namespaces
that init is in.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from quicferry.errors import MigrationError
from quicferry.migration.container.descriptors import descriptors_in
from quicferry.process import children_of, stat_fields


class Completed(NamedTuple):
    """What a program that ran in the container left behind. A negative status is the signal that ended it."""

    argv: list[str]
    status: int
    stdout: str
    stderr: str


class ContainedProcess(NamedTuple):
    """A process in the container: its PID there, its state letter (``T`` stopped, ``Z`` zombie) and argv."""

    pid: int
    state: str
    argv: list[str]


_EXITING = 0x4  # PF_EXITING, include/linux/sched.h
_KILLED = 1 << (signal.SIGKILL - 1)  # in a mask of pending signals

#: Waits for a line on stdin, then becomes the program; without one it ends.
GATE = ("sh", "-c", 'read -r word && exec "$@" </dev/null', "sh")


class ContainerNamespaces:
    """The namespaces of a container, looked into and joined from its host by the PID of its init.

    PIDs are those inside, unless said otherwise.
    """

    def __init__(self, edge: str, init_pid: int) -> None:
        self.edge = edge
        self._init_pid = init_pid
        self._left_to_itself: set[asyncio.Task[int]] = set()

    @property
    def init_pid(self) -> int:
        """PID of the container's init, seen from the agent."""
        return self._init_pid

    def path(self, inside: str) -> Path:
        """The agent's path to a file of the container: ``/proc/<init>/root`` + ``inside``."""
        return Path(f"/proc/{self._init_pid}/root{inside}")

    def place_of(self, path: str) -> str:
        """Where a file is, by a path inside, that the server knows by ``path``: for a bare process, there."""
        return path

    # what there is

    def outside_pid(self, pid: int) -> int | None:
        """The PID by which this agent knows a process of the container; None when it is gone."""
        for child in children_of(self._init_pid):
            with contextlib.suppress(OSError):  # it ended while we looked
                status = Path(f"/proc/{child}/status").read_text()
                # ours, the container's, then those of namespaces within
                if re.search(rf"^NSpid:\s+\d+\s+{pid}(\s|$)", status, re.MULTILINE):
                    return child
        return None

    def _stat(self, pid: int) -> tuple[str, int] | None:
        """The state letter of a process inside and the PID of its parent; None when it is gone."""
        try:
            state, parent = stat_fields(self.path(f"/proc/{pid}"))[:2]
        except OSError:
            return None
        return state, int(parent)

    def state(self, pid: int) -> str | None:
        """The state letter of a process inside; None when it is gone."""
        found = self._stat(pid)
        return found[0] if found is not None else None

    def is_dying(self, pid: int) -> bool:
        """Whether a process inside will soon be gone, whatever it is told: it is over, or will be.

        It is dead and nobody has reaped it yet, is on its way out of the kernel, or has SIGKILL before it, on
        which it acts when it next has a processor (proc_pid_stat(5), proc_pid_status(5)).
        """
        proc = self.path(f"/proc/{pid}")
        try:
            fields, status = stat_fields(proc), (proc / "status").read_text(errors="replace")
        except OSError:
            return False
        if fields[0] in ("Z", "X") or int(fields[6]) & _EXITING:
            return True
        pending = [line.split()[1] for line in status.splitlines() if line.startswith(("SigPnd:", "ShdPnd:"))]
        return any(int(mask, 16) & _KILLED for mask in pending)

    def is_alive(self, pid: int) -> bool:
        """Whether there is such a process inside; a zombie counts, as it holds its PID."""
        return self.state(pid) is not None

    def is_over(self, pid: int) -> bool:
        """Whether the process is gone, or dead and left to a parent outside, which may be stopped itself.

        ``nsenter`` stops itself when what it has started was stopped, and nobody lets it go on when its agent
        was killed: a zombie is left, which holds nothing but its PID.
        """
        found = self._stat(pid)
        return found is None or found == ("Z", 0)

    def is_stopped(self, pid: int) -> bool:
        """Whether the process is there and stopped by a signal."""
        return self.state(pid) == "T"

    def processes(self) -> list[ContainedProcess]:
        """All processes inside except init, sorted by PID."""
        found = []
        for entry in self.path("/proc").iterdir():
            if entry.name.isdigit() and entry.name != "1":
                state = self.state(int(entry.name))
                with contextlib.suppress(OSError):  # it ended while we looked
                    argv = (entry / "cmdline").read_text().split("\0")[:-1]
                    if state is not None:
                        found.append(ContainedProcess(int(entry.name), state, argv))
        return sorted(found)

    def descendants(self, pid: int) -> list[int]:
        """The PIDs of a process's children, of theirs, and so on: parents before their children."""
        parent_of = self.parents()
        found, parents = [], [pid]
        while parents:
            parents = [each for each, parent in parent_of.items() if parent in parents]
            found += parents
        return found

    def parents(self) -> dict[int, int]:
        """The PID of the parent of each process inside but init, in the order of PIDs.

        1 is that of an orphan, which init has adopted, and of what init has started; 0 of what came from
        outside.
        """
        pids = sorted(int(entry.name) for entry in self.path("/proc").iterdir() if entry.name.isdigit())
        found = ((pid, self._stat(pid)) for pid in pids if pid != 1)
        return {pid: state_and_parent[1] for pid, state_and_parent in found if state_and_parent is not None}

    def open_files(self, pid: int, under: str = "/run/") -> list[str]:
        """Regular files under that directory, as they see it, which a process and its descendants hold open.

        Paths inside (``place_of``), sorted.
        """
        found = set()
        for owner in (pid, *self.descendants(pid)):
            with contextlib.suppress(FileNotFoundError):  # a child that has ended
                for _, target in descriptors_in(self.path(f"/proc/{owner}")):
                    place = self.place_of(target)
                    with contextlib.suppress(OSError):  # it was removed while we looked
                        if target.startswith(under) and stat.S_ISREG(self.path(place).lstat().st_mode):
                            found.add(place)
        return sorted(found)

    # what is run there

    def command(self, argv: Sequence[str]) -> list[str]:
        """The argument vector that runs ``argv`` inside this container's namespaces."""
        enter = ["nsenter", "-t", str(self._init_pid), "-n", "-m", "-p", "--"]
        # nsenter has a child in the namespace: killing the one must not leave the other running
        return [*enter, "setpriv", "--pdeathsig", "KILL", *argv]

    async def begin(
        self, argv: Sequence[str], *, descriptors: Sequence[int] = ()
    ) -> asyncio.subprocess.Process:
        """Start a program inside, without output, that runs on until it ends or is killed.

        The process that is returned is one outside, the program its only child.
        """
        return await asyncio.create_subprocess_exec(
            *self.command(argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=descriptors,
        )

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 60.0,
        descriptors: Sequence[int] = (),
        let_go_on: bool = False,
    ) -> Completed:
        """Run a program inside to its end. Raises ``MigrationError`` when that takes longer.

        One that takes longer is killed, or with ``let_go_on`` left to itself.
        It has ``descriptors`` of this process under the same numbers. Output goes through pipes that
        are read to their end, so a daemon that keeps them open would be waited for: redirect it inside.
        """
        process = await self._spawn(self.command(argv), asyncio.subprocess.DEVNULL, descriptors)
        return await self._end_of(process, argv, timeout_s, let_go_on=let_go_on)

    async def hold(
        self,
        argv: Sequence[str],
        *,
        descriptors: Sequence[int] = (),
        started: tuple[Sequence[str], str] | None = None,
    ) -> HeldProgram:
        """As ``run``, but the program does not begin before ``run_held``: only its namespaces are entered.

        It ends by itself when this process does, or by ``HeldProgram.close``. ``started``: the arguments with
        which it can be started at once, as it then reads its stdin to the end and does nothing without a word
        there, and that word; it is ``argv`` in another form.
        """
        words, word = started if started is not None else ([*GATE, *argv], "")
        process = await self._spawn(self.command(words), asyncio.subprocess.PIPE, descriptors)
        return HeldProgram(list(argv), process, word)

    async def run_held(self, held: HeldProgram, *, timeout_s: float, let_go_on: bool = False) -> Completed:
        """Let a held program begin, and see it to its end as ``run`` does. Raises ``MigrationError``."""
        process = held.take()
        assert process.stdin is not None
        process.stdin.write(held.word.encode() + b"\n")
        process.stdin.close()
        return await self._end_of(process, held.argv, timeout_s, let_go_on=let_go_on)

    async def _spawn(
        self, words: Sequence[str], stdin: int, descriptors: Sequence[int]
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=descriptors,
        )

    async def _end_of(
        self, process: asyncio.subprocess.Process, argv: Sequence[str], timeout_s: float, *, let_go_on: bool
    ) -> Completed:
        """Wait for the end of a program; see ``run``."""
        try:
            stdout, stderr = await asyncio.wait_for(process.communicate(), timeout_s)
        except TimeoutError as error:
            raise MigrationError(f"{argv[0]} on {self.edge} still ran after {timeout_s} s") from error
        finally:
            if process.returncode is None and let_go_on:
                # it ends when it ends; a process object that nobody holds would take it along
                task = asyncio.create_task(process.wait())
                self._left_to_itself.add(task)
                task.add_done_callback(self._left_to_itself.discard)
            elif process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        assert process.returncode is not None
        return Completed(
            list(argv), process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace")
        )


class HeldProgram:
    """A program in a container that waits for the word to begin. ``ContainerNamespaces.hold`` makes it."""

    def __init__(self, argv: list[str], process: asyncio.subprocess.Process, word: str = "") -> None:
        self.argv = argv
        self.word = word  # with which it begins
        self._process: asyncio.subprocess.Process | None = process

    @property
    def waits(self) -> bool:
        """Whether it is there and has not begun."""
        return self._process is not None and self._process.returncode is None

    def take(self) -> asyncio.subprocess.Process:
        """The process that waits; whoever takes it sees to its end."""
        assert self._process is not None
        process, self._process = self._process, None
        return process

    async def close(self) -> None:
        """End it if it has not begun."""
        if self._process is not None:
            process = self.take()
            assert process.stdin is not None
            process.stdin.close()  # it ends without a word
            await process.communicate()


def only_child(pid: int) -> int:
    """The PID of the one child of a process with one thread. Raises ``ValueError`` when there is none."""
    (child,) = children_of(pid)
    return child
