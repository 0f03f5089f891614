"""Makes the faults of a run happen: at an exact point, from outside, to real things.

Theory of operation. Every point has an event and the agent that tells of it. That agent is configured
to stop itself (SIGSTOP) directly after the event, so the move stands still at that point; the run does
what the kind wants (kills a process, cuts a link, takes the room away, …) and lets the agent go on. All
of that is done to real processes, links and files; the exceptions are bytes that the sending agent
itself changes, and a client that is told to refuse. At the point ``dump``, and where CRIU is
to be killed, the agent goes on first: what is wanted there is a moment in the work of CRIU.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from quicferry.errors import FerryError
from quicferry.events import Event
from quicferry.experiment.context import Program, RunContext
from quicferry.experiment.faults import DESTINATION, MOMENTS, SOURCE, inter_edge_link
from quicferry.migration.agent.failpoints import Failpoints
from quicferry.process import run
from quicferry.spec import Fault
from quicferry.spec import FaultKind as Kind
from quicferry.spec import FaultPoint as Point

STOP_S = 5.0  # for an agent that has told of its event to stop itself
FILL_TRIES = 50
CRIU_S = 5.0  # for CRIU to begin
DUMP_S = 0.06  # a dump takes at least as long
PAGE_BYTES = 4096
WRITTEN_S = 10.0  # for a destination to write what has come
SETTLED_S = 0.1  # it writes something within that time, else it has written all
STATE = "run/state"  # in a container: where a destination keeps what it received


class RunProcesses(Protocol):
    """What the fault injector sees of a deployment: its processes, by part.

    Parts are source, destination, orchestrator and client.
    """

    def program(self, part: str) -> Program:
        """The process that plays that part now. Raises ``FerryError`` when none does."""

    def expect_end(self, part: str) -> None:
        """That process is about to be killed: do not take its end for a failure of the run."""

    def start_again(self, part: str) -> None:
        """Start the process of that part once more and wait until it is ready."""

    def container_pid(self, part: str) -> int:
        """The PID of the init of that edge's container."""


class FaultInjector:
    """Makes the faults of one run happen. Hears events by ``heard``; ``stop`` ends what still lasts."""

    def __init__(self, context: RunContext, processes: RunProcesses) -> None:
        self._context = context
        self._processes = processes
        self.faults = context.spec.faults
        self._left = list(self.faults)
        self._mending: list[threading.Thread] = []
        self._over = threading.Event()
        if self.faults:
            context.listeners.append(self.heard)

    def failpoints(self, edge: str) -> Failpoints:
        """What the agent of an edge is told to do wrong itself."""
        parts = {part for part in (SOURCE, DESTINATION) if self._context.part(part) == edge}
        moments = [MOMENTS[fault.point] for fault in self.faults]
        return Failpoints(
            stop_at=sorted({moment.event for moment in moments if moment.part in parts}),
            damage=sorted(
                fault.point for fault in self.faults if SOURCE in parts and fault.kind is Kind.IMAGE_CORRUPTED
            ),
        )

    @property
    def client_refuses(self) -> bool:
        """Whether the client is to refuse."""
        return any(fault.kind is Kind.CLIENT_REFUSING for fault in self.faults)

    def heard(self, event: Event) -> None:
        """An event was told; its agent stands still if a fault belongs here."""
        here = [fault for fault in self._left if self._is_moment(fault, event)]
        if not here:
            return
        moment = MOMENTS[here[0].point]
        held = self._processes.program(moment.part).process
        try:
            # it tells first and stops then: what is done too early would be undone by its stop
            _await_stop(held.pid)
            for fault in here:
                self._left.remove(fault)
                if fault.point is Point.DUMP or fault.kind is Kind.CRIU_KILLED:
                    self._in_the_background(fault, self._inject_within)
                else:
                    self._inject(fault)
        except (FerryError, OSError) as error:
            self._context.warnings.append(f"the fault {here[0].name} could not be injected: {error}")
        finally:
            held.send_signal(signal.SIGCONT)  # nothing happens when it was killed

    def _is_moment(self, fault: Fault, event: Event) -> bool:
        moment = MOMENTS[fault.point]
        return event.name == moment.event and event.vantage == self._context.part(moment.part)

    # a ``Service``: it ends, with all that lasts, before the processes that it does something to

    name = "faults"

    def start(self) -> None:
        """Nothing: it only listens."""

    def wait_ready(self, timeout_s: float) -> None:
        """Nothing to wait for."""

    def stop(self) -> None:
        """End all that lasts, and wait until it is ended."""
        self._over.set()
        for thread in self._mending:
            thread.join()

    def _later(self, fault: Fault, what: str, mend: Callable[[str], None], subject: str) -> None:
        """After the fault's time, mend what it did to a subject."""

        def wait_and_mend(fault: Fault) -> None:
            self._over.wait(fault.seconds)
            try:
                mend(subject)
                self._context.events.emit("fault.mended", fault=fault.name, what=what)
            except (FerryError, OSError) as error:
                self._context.warnings.append(f"{fault.name}: {what}: {error}")

        self._in_the_background(fault, wait_and_mend)

    def _in_the_background(self, fault: Fault, work: Callable[[Fault], None]) -> None:
        thread = threading.Thread(target=work, args=(fault,), name=fault.name, daemon=True)
        thread.start()
        self._mending.append(thread)

    def _inject_within(self, fault: Fault) -> None:
        """At a moment within the work of CRIU that the seed of the run decides."""
        drawn_s = random.Random(f"{self._context.spec.seed} {fault.name}").uniform(0, DUMP_S)
        try:
            self._await_criu(MOMENTS[fault.point].part)
            time.sleep(drawn_s)
            self._inject(fault)
        except (FerryError, OSError) as error:
            self._context.warnings.append(f"the fault {fault.name} could not be injected: {error}")

    def _inject(self, fault: Fault) -> None:
        self._make_happen(fault)
        self._context.events.emit("fault.injected", fault=fault.name, seconds=fault.seconds)

    def _make_happen(self, fault: Fault) -> None:
        kind = fault.kind
        if kind is Kind.DESTINATION_FULL:
            self._fill(Path(f"/proc/{self._processes.container_pid(DESTINATION)}/root/run"))
        elif kind is Kind.RESTORE_FAILS:
            for path in self._received():
                path.unlink()
        elif kind is Kind.IMAGE_CORRUPTED and fault.point is Point.RESTORE:
            _change_one_byte(max(self._received(), key=lambda path: path.stat().st_size))
        elif kind in (Kind.LINK_CUT, Kind.LINK_LOST):
            link = self._inter_edge_link()
            self._context.emulator.set_link(link, up=False)
            if kind is Kind.LINK_CUT:
                self._later(fault, f"{link} is up again", self._mend_link, link)
        elif kind is Kind.CRIU_KILLED:
            part = MOMENTS[fault.point].part
            found = self._criu(part)
            if not found:
                raise FerryError("CRIU had ended already")
            for pid in found:
                os.kill(pid, signal.SIGKILL)
        elif kind is Kind.CLIENT_SILENT:
            self._processes.program("client").process.send_signal(signal.SIGSTOP)
            self._later(fault, "the client goes on", self._wake, "client")
        elif kind in _KILLED:
            part = _KILLED[kind]
            self._processes.expect_end(part)
            process = self._processes.program(part).process
            process.kill()
            process.wait()
            self._later(fault, f"the {part}'s process is back", self._start_again, part)

    def _mend_link(self, link: str) -> None:
        self._context.emulator.set_link(link, up=True)

    def _wake(self, part: str) -> None:
        self._processes.program(part).process.send_signal(signal.SIGCONT)

    def _start_again(self, part: str) -> None:
        self._processes.start_again(part)

    def _criu(self, part: str) -> list[int]:
        """The processes of CRIU in the container of that edge, seen from here."""
        return list(_named_in_namespace_of(self._processes.container_pid(part), "criu"))

    def _await_criu(self, part: str) -> int:
        deadline = time.monotonic() + CRIU_S
        while time.monotonic() < deadline:
            if found := self._criu(part):
                return found[0]
            time.sleep(0.001)
        raise FerryError(f"CRIU did not run at the {part}")

    def _inter_edge_link(self) -> str:
        link = inter_edge_link(self._context.topology)
        assert link is not None, "a request for such a fault is refused"
        return link

    def _received(self) -> list[Path]:
        """The files of the state that the destination has received, when it has written what has come.

        The source, which stands still or has nothing left to say, knows only what it has sent.
        """
        root = Path(f"/proc/{self._processes.container_pid(DESTINATION)}/root") / STATE
        deadline = time.monotonic() + WRITTEN_S
        found: dict[Path, int] = {}
        while time.monotonic() < deadline:
            before, found = found, _files(root)
            if found and found == before:
                return list(found)
            time.sleep(SETTLED_S)
        raise FerryError("the destination has no state" if not found else "the destination goes on writing")

    def _fill(self, directory: Path) -> None:
        """Leave no page free in the container's tmpfs, by making it as small as what is in it."""
        pid = self._processes.container_pid(DESTINATION)
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


_KILLED = {
    Kind.SOURCE_AGENT_KILLED: SOURCE,
    Kind.DESTINATION_AGENT_KILLED: DESTINATION,
    Kind.ORCHESTRATOR_KILLED: "orchestrator",
}


def _named_in_namespace_of(init_pid: int, word: str) -> Iterator[int]:
    """Processes in the PID namespace of a container's init that run a program of that name."""
    namespace = Path(f"/proc/{init_pid}/ns/pid").readlink()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_text().split("\0")
                if (entry / "ns/pid").readlink() == namespace and any(w.endswith(f"/{word}") for w in words):
                    yield int(entry.name)
            except OSError:  # it has ended meanwhile
                continue


def _files(root: Path) -> dict[Path, int]:
    """All files below a folder, and how large they are."""
    found = {}
    for path in root.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has another name by now
            if path.is_file():
                found[path] = path.stat().st_size
    return found


def _await_stop(pid: int) -> None:
    """Wait until a process stands still. Raises ``FerryError`` when it does not."""
    deadline = time.monotonic() + STOP_S
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError as error:
            raise FerryError(f"process {pid} is gone: {error}") from error
        if state == "T":
            return
        time.sleep(0.0005)
    raise FerryError(f"process {pid} did not stop within {STOP_S:g} s")


def _change_one_byte(path: Path) -> None:
    with path.open("r+b") as file:
        middle = os.fstat(file.fileno()).st_size // 2
        file.seek(middle)
        byte = file.read(1)
        file.seek(middle)
        file.write(bytes([byte[0] ^ 0x01]))
