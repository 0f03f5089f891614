"""Defines what each kind of fault does: ``KINDS`` is the table, its rows hold all that a kind needs.

An action is done to real processes, links and files of the run, while the agent that told of the point
stands still. It returns how to mend what it did, for a kind that lasts a while, or None.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import psutil

from quicferry.errors import FerryError
from quicferry.experiment.context import Program, RunContext
from quicferry.migration.engines.registry import criu_engines
from quicferry.model import Topology
from quicferry.process import run
from quicferry.spec import Fault, FaultKind, FaultPoint

SOURCE, DESTINATION, ORCHESTRATOR, CLIENT = "source", "destination", "orchestrator", "client"
RESTART_S = 0.3  # after this long a killed agent or orchestrator is started again
FILL_TRIES = 50
PAGE_BYTES = 4096
WRITTEN_S = 10.0  # for a destination to write what has come
SETTLED_S = 0.1  # it writes something within that time, else it has written all
CRIU = "criu"  # the program
STATE = "run/state"  # in a container: where a destination keeps what it received


class RunProcesses(Protocol):
    """The processes of a run, by part: source, destination, orchestrator, client."""

    def program(self, part: str) -> Program:
        """The process that plays that part now. Raises ``FerryError`` when none does."""

    def expect_end(self, part: str) -> None:
        """That process is about to be killed: do not take its end for a failure of the run."""

    def start_again(self, part: str) -> None:
        """Start the process of that part once more and wait until it is ready."""

    def container_pid(self, part: str) -> int:
        """The PID of the init of that edge's container."""


class Injection(NamedTuple):
    """A fault at the point where it belongs; ``part`` is the agent that told of the point."""

    fault: Fault
    part: str
    context: RunContext
    processes: RunProcesses


class Mend(NamedTuple):
    """How to undo a fault, and what is well again then."""

    what: str
    act: Callable[[], None]


Action = Callable[[Injection], Mend | None]


def _nothing(_: Injection) -> None:
    """Do nothing: a process was configured to do it when it was started."""


def _fill_destination(injection: Injection) -> None:
    """Leave no page free in the container's tmpfs, by making it as small as what is in it."""
    pid = injection.processes.container_pid(DESTINATION)
    directory = Path(f"/proc/{pid}/root/run")
    for left in reversed(range(FILL_TRIES)):
        used = shutil.disk_usage(directory).used
        pages = max(1, -(-used // PAGE_BYTES))
        options = f"remount,size={pages * PAGE_BYTES}"
        done = run(
            ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--", "mount", "-o", options, "/run"],
            check=not left,  # refused while something is being written there: more is used by then
        )
        if done.status == 0:
            return


def _fill_disk(injection: Injection) -> None:
    """Let no file of the agents and the orchestrator grow any more: journals, logs, received state.

    By their limit of a file's size (setrlimit(2), RLIMIT_FSIZE): a write fails as on a disk that is full.
    """
    for part in (SOURCE, DESTINATION, ORCHESTRATOR):
        with contextlib.suppress(psutil.NoSuchProcess):  # another fault may have killed it
            process = psutil.Process(injection.processes.program(part).process.pid)
            process.rlimit(psutil.RLIMIT_FSIZE, (0, psutil.RLIM_INFINITY))


def _remove_received(injection: Injection) -> None:
    if injection.fault.point is FaultPoint.PAGES:
        # the server runs: when it has all of its memory, the destination has removed the rest itself
        for path in _sizes(_state(injection)):
            path.unlink(missing_ok=True)
        return
    for path in _received(injection):
        path.unlink()


def _damage_received(injection: Injection) -> None:
    """Change one byte of the largest file; before ``restore`` the source does it on the way.

    It is tried with the memory that the destination's agent has received, too, which the kernel refuses where
    that is sealed: a byte that could be changed there would have to be found as well.
    """
    if injection.fault.point is not FaultPoint.RESTORE:
        return
    for memory in _received_memory(injection.processes.program(DESTINATION).process.pid):
        with contextlib.suppress(PermissionError):
            _change_byte(memory)
    _change_byte(max(_received(injection), key=lambda path: path.stat().st_size))


def _change_byte(path: Path) -> None:
    """Change one byte in the middle of a file. Raises ``OSError``."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        middle = os.fstat(descriptor).st_size // 2
        byte = os.pread(descriptor, 1, middle)
        if byte:
            os.pwrite(descriptor, bytes([byte[0] ^ 0x01]), middle)
    finally:
        os.close(descriptor)


def _received_memory(pid: int) -> list[Path]:
    """The memory without a name in a file system (memfd_create(2)) that a process has open."""
    with contextlib.suppress(FileNotFoundError):  # it has just ended
        found = (entry for entry in Path(f"/proc/{pid}/fd").iterdir())
        return [entry for entry in found if str(entry.readlink()).startswith("/memfd:")]
    return []


def _cut_link(injection: Injection) -> Mend:
    link = inter_edge_link(injection.context.topology)
    assert link is not None, "a request for such a fault is refused"
    emulator = injection.context.emulator
    emulator.set_link(link, up=False)
    return Mend(f"{link} is up again", lambda: emulator.set_link(link, up=True))


def _kill(part: str) -> Action:
    def act(injection: Injection) -> Mend:
        processes = injection.processes
        processes.expect_end(part)
        process = processes.program(part).process
        process.kill()
        process.wait()
        return Mend(f"the {part}'s process is back", lambda: processes.start_again(part))

    return act


def _kill_criu(injection: Injection) -> None:
    found = criu_processes(injection.processes, injection.part)
    if not found:
        raise FerryError("CRIU had ended already")
    for pid in found:
        os.kill(pid, signal.SIGKILL)


def _silence_client(injection: Injection) -> Mend:
    client = injection.processes.program(CLIENT)

    def go_on() -> None:
        client.process.send_signal(signal.SIGCONT)
        client.is_held = False

    client.is_held = True
    client.process.send_signal(signal.SIGSTOP)
    return Mend("the client goes on", go_on)


class KindRow(NamedTuple):
    """How a kind of fault is done, and for how many seconds unless told otherwise (None: for good)."""

    how: str
    seconds: float | None
    act: Action
    engines: Callable[[], frozenset[str]] | None = (
        None  # with which it can happen; None: all that have its point
    )
    on_the_link: bool = False  # done to the link between the edges: there must be one
    within_criu: bool = False  # at a moment in the work of CRIU, for which the agent goes on first
    source_damages: bool = False  # the source agent is told to change a byte of what it sends
    client_refuses: bool = False  # the client is told to refuse every move


KINDS: dict[FaultKind, KindRow] = {
    FaultKind.DESTINATION_FULL: KindRow(
        "the file system of the destination's container is made as small as what is in it",
        None, _fill_destination,
    ),
    FaultKind.DISK_FULL: KindRow(
        "no file of the agents and the orchestrator can grow any more, journals among them", None, _fill_disk
    ),
    FaultKind.RESTORE_FAILS: KindRow(
        "the state that the destination has received is removed under its hands", None, _remove_received
    ),
    FaultKind.IMAGE_CORRUPTED: KindRow(
        "one byte is changed: where the destination keeps it at `restore`, else on its way",
        None, _damage_received, source_damages=True,
    ),
    FaultKind.LINK_CUT: KindRow(
        "both ends of the link between the edges go down, and up again later",
        1.0, _cut_link, on_the_link=True,
    ),
    FaultKind.LINK_LOST: KindRow(
        "both ends of the link between the edges go down", None, _cut_link, on_the_link=True
    ),
    FaultKind.SOURCE_AGENT_KILLED: KindRow("SIGKILL; started again later", RESTART_S, _kill(SOURCE)),
    FaultKind.DESTINATION_AGENT_KILLED: KindRow(
        "SIGKILL; started again later", RESTART_S, _kill(DESTINATION)
    ),
    FaultKind.ORCHESTRATOR_KILLED: KindRow("SIGKILL; started again later", RESTART_S, _kill(ORCHESTRATOR)),
    FaultKind.CRIU_KILLED: KindRow(
        "SIGKILL for CRIU, which the agent has started", None, _kill_criu,
        engines=criu_engines, within_criu=True,
    ),
    FaultKind.CLIENT_SILENT: KindRow("SIGSTOP for the client; it goes on later", 1.5, _silence_client),
    FaultKind.CLIENT_REFUSING: KindRow(
        "the client is configured to refuse every move", None, _nothing, client_refuses=True
    ),
}  # fmt: skip


def inter_edge_link(topology: Topology) -> str | None:
    """The name of the link between source and destination; None where they have none of their own."""
    ends = {topology.parts.get(SOURCE), topology.parts.get(DESTINATION)}
    return next((link.name for link in topology.links if {link.a, link.b} == ends), None)


def criu_processes(processes: RunProcesses, part: str) -> list[int]:
    """The PIDs, as seen from here, of CRIU in the container of that edge."""
    return list(_running_in_namespace_of(processes.container_pid(part), CRIU))


def count_criu(processes: RunProcesses, part: str) -> int:
    """How many processes of CRIU there are in the container of that edge; quicker than to list them."""
    count = 0
    for entry in Path(f"/proc/{processes.container_pid(part)}/root/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                count += _runs(entry, CRIU)
    return count


def _runs(proc: Path, program: str) -> bool:
    """Whether the process with that directory runs a program of that name. Raises ``OSError``."""
    words = (proc / "cmdline").read_bytes().split(b"\0")
    return any(word.endswith(b"/" + program.encode()) for word in words)


def _running_in_namespace_of(init_pid: int, program: str) -> Iterator[int]:
    """Processes in the PID namespace of a container's init that run a program of that name."""
    namespace = Path(f"/proc/{init_pid}/ns/pid").readlink()
    # no psutil.Process for each: this is asked again and again in the milliseconds that a restore takes
    for pid in psutil.pids():
        try:
            if Path(f"/proc/{pid}/ns/pid").readlink() == namespace and _runs(Path(f"/proc/{pid}"), program):
                yield pid
        except OSError:  # it has ended meanwhile
            continue


def _received(injection: Injection) -> list[Path]:
    """The files of the state that the destination has received, when it has written what has come.

    The source, which stands still or has nothing left to say, knows only what it has sent.
    """
    root = _state(injection)
    deadline = time.monotonic() + WRITTEN_S
    found: dict[Path, int] = {}
    while time.monotonic() < deadline:
        before, found = found, _sizes(root)
        if found and found == before:
            return list(found)
        time.sleep(SETTLED_S)
    raise FerryError("the destination has no state" if not found else "the destination goes on writing")


def _state(injection: Injection) -> Path:
    """The directory with the state that the destination has received."""
    return Path(f"/proc/{injection.processes.container_pid(DESTINATION)}/root") / STATE


def _sizes(root: Path) -> dict[Path, int]:
    """All files below a folder, and how large they are."""
    found = {}
    with contextlib.suppress(FileNotFoundError):  # a folder is being removed
        for path in root.rglob("*"):
            with contextlib.suppress(FileNotFoundError):  # it has another name by now
                if path.is_file():
                    found[path] = path.stat().st_size
    return found
