"""Faults: what can be made to go wrong in a move, when, and where the server must be afterwards.

Theory of operation. A fault is a *point* of the move and a *kind*. Every point has an event and the
agent that tells of it. That agent is configured to stop itself (SIGSTOP) directly after the event,
so the move stands still at that point; the run does what the kind wants (kills a process, cuts a
link, takes the room away, …) and lets the agent go on. All of that is done from outside, to real
processes, links and files; the exceptions are one byte that the sending agent itself changes, and a
client that is told to refuse.

``ROWS`` is the whole table. Whatever happens, the server must run at one place of the row, nothing
may be lost, and the connections go on: the analysis judges that from the captures.
"""

from __future__ import annotations

import enum
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from quicferry.errors import FerryError, InvalidInput
from quicferry.events import Event
from quicferry.experiment.context import Program, RunContext
from quicferry.migration.mishaps import Mishaps
from quicferry.process import run
from quicferry.record import Asked
from quicferry.strategies import RULES

SOURCE, DESTINATION = "source", "destination"
STOP_S = 5.0  # for an agent that has told of its event to stop itself
RESTART_S = 0.3  # after this long a killed agent or orchestrator is started again
PAGE_BYTES = 4096
STATE = "run/state"  # in a container: where a destination keeps what it received


class Point(enum.StrEnum):
    """A point of a move."""

    PREPARE = "prepare"
    NOTICE = "notice"
    CHECKPOINT = "checkpoint"
    TRANSFER = "transfer"
    RESTORE = "restore"
    COMMIT = "commit"


class Kind(enum.StrEnum):
    """What goes wrong."""

    DESTINATION_FULL = "destination-full"
    RESTORE_FAILS = "restore-fails"
    IMAGE_CORRUPTED = "image-corrupted"
    LINK_CUT = "link-cut"
    SOURCE_AGENT_KILLED = "source-agent-killed"
    DESTINATION_AGENT_KILLED = "destination-agent-killed"
    ORCHESTRATOR_KILLED = "orchestrator-killed"
    CLIENT_SILENT = "client-silent"
    CLIENT_REFUSING = "client-refusing"


class Moment(NamedTuple):
    """When a point is reached: this event, told by the agent of that part."""

    event: str
    part: str
    meaning: str


MOMENTS: dict[Point, Moment] = {
    Point.PREPARE: Moment("migration.prepare.started", DESTINATION, "the destination begins to get ready"),
    Point.NOTICE: Moment("migration.notice.started", SOURCE, "both are ready, the clients are about to hear"),
    Point.CHECKPOINT: Moment("migration.checkpoint.started", SOURCE, "the server is about to be frozen"),
    Point.TRANSFER: Moment(
        "migration.transfer.started", SOURCE, "the server is frozen, nothing was sent yet"
    ),
    Point.RESTORE: Moment(
        "migration.restore.started", DESTINATION, "all of the state is there, the server is about to resume"
    ),
    Point.COMMIT: Moment("migration.commit.started", SOURCE, "the source knows that the destination serves"),
}

#: kind -> how it is done, and the seconds it lasts unless told otherwise (None: for good)
MEANS: dict[Kind, tuple[str, float | None]] = {
    Kind.DESTINATION_FULL: (
        "the file system of the destination's container is made as small as what is in it", None,
    ),
    Kind.RESTORE_FAILS: ("the state that the destination has received is removed under its hands", None),
    Kind.IMAGE_CORRUPTED: (
        "one byte is changed: on its way at `transfer`, where the destination keeps it at `restore`", None,
    ),
    Kind.LINK_CUT: ("both ends of the link between the edges go down, and up again later", 1.0),
    Kind.SOURCE_AGENT_KILLED: ("SIGKILL; started again later", RESTART_S),
    Kind.DESTINATION_AGENT_KILLED: ("SIGKILL; started again later", RESTART_S),
    Kind.ORCHESTRATOR_KILLED: ("SIGKILL; started again later", RESTART_S),
    Kind.CLIENT_SILENT: ("SIGSTOP for the client; it goes on later", 1.5),
    Kind.CLIENT_REFUSING: ("the client is configured to refuse every move", None),
}  # fmt: skip


class Row(NamedTuple):
    """One line of the table: where the server may be afterwards, and why there."""

    point: Point
    kind: Kind
    places: tuple[str, ...]
    why: str

    @property
    def name(self) -> str:
        """As on the command line."""
        return f"{self.point}:{self.kind}"


_P, _K = Point, Kind
_HERE, _THERE, _EITHER = (SOURCE,), (DESTINATION,), (SOURCE, DESTINATION)
_NO_DIGEST = "without the end of the state and its digest the destination cannot resume"
_NOT_ON_THE_PATH = "the two agents finish the move between themselves; it asks them when it is back"
_IN_TIME = "the move waits, or is called off when a deadline comes before the link"

ROWS: tuple[Row, ...] = (
    *(
        Row(point, _K.DESTINATION_FULL, _HERE, "what cannot be kept cannot be resumed")
        for point in (_P.PREPARE, _P.NOTICE, _P.CHECKPOINT, _P.TRANSFER)
    ),
    Row(_P.RESTORE, _K.DESTINATION_FULL, _EITHER, "the state is there already; an engine may need more room"),
    Row(_P.RESTORE, _K.RESTORE_FAILS, _HERE, "the destination says: never in this epoch"),
    Row(_P.TRANSFER, _K.IMAGE_CORRUPTED, _HERE, "the digest at the end of the transfer does not match"),
    Row(_P.RESTORE, _K.IMAGE_CORRUPTED, _HERE, "whoever reads the state checks it once more"),
    *(
        Row(point, _K.LINK_CUT, _EITHER, _IN_TIME)
        for point in (_P.PREPARE, _P.NOTICE, _P.CHECKPOINT, _P.TRANSFER)
    ),
    Row(_P.RESTORE, _K.LINK_CUT, _THERE, "the source asks by the detour and hears that it serves"),
    Row(_P.COMMIT, _K.LINK_CUT, _THERE, "the commit takes the detour"),
    Row(_P.PREPARE, _K.SOURCE_AGENT_KILLED, _EITHER, "the order is repeated, or nothing has happened"),
    *(
        Row(point, _K.SOURCE_AGENT_KILLED, _HERE, f"it finds its container and its journal; {_NO_DIGEST}")
        for point in (_P.NOTICE, _P.CHECKPOINT, _P.TRANSFER)
    ),
    *(
        Row(point, _K.SOURCE_AGENT_KILLED, _THERE, "it asks the destination before it does anything")
        for point in (_P.RESTORE, _P.COMMIT)
    ),
    *(
        Row(point, _K.DESTINATION_AGENT_KILLED, _HERE, "what had not resumed is thrown away")
        for point in (_P.PREPARE, _P.NOTICE, _P.CHECKPOINT, _P.TRANSFER, _P.RESTORE)
    ),
    Row(
        _P.COMMIT, _K.DESTINATION_AGENT_KILLED, _THERE,
        "its container serves on; the source asks until the agent is back",
    ),
    Row(_P.PREPARE, _K.ORCHESTRATOR_KILLED, _EITHER, "it calls off what it had not ordered yet"),
    *(
        Row(point, _K.ORCHESTRATOR_KILLED, _THERE, _NOT_ON_THE_PATH)
        for point in (_P.NOTICE, _P.CHECKPOINT, _P.TRANSFER, _P.RESTORE, _P.COMMIT)
    ),
    *(
        Row(point, _K.CLIENT_SILENT, _THERE, "no client holds a move up; it follows when it is back")
        for point in Point
    ),
    Row(_P.NOTICE, _K.CLIENT_REFUSING, _HERE, "when no client will follow, the move is called off"),
)  # fmt: skip

_BY_NAME = {row.name: row for row in ROWS}


class Fault(NamedTuple):
    """A fault of a run."""

    row: Row
    seconds: float | None  # how long it lasts; None: for good

    @property
    def name(self) -> str:
        """As on the command line, without its duration."""
        return self.row.name


def parse(words: str) -> Fault:
    """Read ``<point>:<kind>`` or ``<point>:<kind>=<seconds>``. Raises ``InvalidInput``."""
    name, given, duration = words.partition("=")
    row = _BY_NAME.get(name)
    if row is None:
        point = name.partition(":")[0]
        near = [known for known in _BY_NAME if known.startswith(f"{point}:")] or list(_BY_NAME)
        raise InvalidInput(f"there is no fault {words!r}", hint="there are " + ", ".join(near))
    seconds = MEANS[row.kind][1]
    if given:
        if seconds is None or not re.fullmatch(r"\d+(\.\d+)?", duration) or not 0 < float(duration) <= 60:
            raise InvalidInput(
                f"the fault {name} cannot last {duration!r} seconds",
                hint="it lasts for good" if seconds is None else "give more than 0, at most 60",
            )
        seconds = float(duration)
    return Fault(row, seconds)


def check(asked: Asked) -> list[Fault]:
    """The faults of a run. Raises ``InvalidInput`` for unknown ones and those its strategy cannot have."""
    faults = [parse(words) for words in asked.faults]
    if faults and asked.baseline is not None:
        raise InvalidInput("a baseline takes no faults", hint="leave out --baseline or --fault")
    if asked.moves > 1 and (faults or asked.baseline is not None):
        raise InvalidInput("a fault or a baseline goes with one move only", hint="leave out --moves")
    for fault in faults:
        if fault.row.point is Point.NOTICE and not RULES[asked.strategy].notice:
            raise InvalidInput(
                f"{fault.name} cannot happen: {asked.strategy} tells its clients nothing",
                hint="choose a strategy with notice, such as proactive-explicit",
            )
    return faults


def places(faults: Sequence[Fault]) -> list[str]:
    """Where the server may be after all of these faults; empty without any."""
    allowed = [set(fault.row.places) for fault in faults]
    if not allowed:
        return []
    # of faults that contradict each other, whichever comes first decides
    return sorted(set.intersection(*allowed) or set.union(*allowed))


class Stage(Protocol):
    """The processes of a run, by part: source, destination, orchestrator, client."""

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

    def __init__(self, context: RunContext, stage: Stage) -> None:
        self._context = context
        self._stage = stage
        self.faults = check(context.asked)
        self._left = list(self.faults)
        self._mending: list[threading.Thread] = []
        self._over = threading.Event()
        if self.faults:
            context.listeners.append(self.heard)

    def mishaps(self, edge: str) -> Mishaps:
        """What the agent of an edge is told to do wrong itself."""
        parts = {part for part in (SOURCE, DESTINATION) if self._context.part(part) == edge}
        moments = [MOMENTS[fault.row.point] for fault in self.faults]
        return Mishaps(
            stop_at=sorted({moment.event for moment in moments if moment.part in parts}),
            damage_transfer=SOURCE in parts
            and any(fault.row[:2] == (Point.TRANSFER, Kind.IMAGE_CORRUPTED) for fault in self.faults),
        )

    @property
    def client_refuses(self) -> bool:
        """Whether the client is to refuse."""
        return any(fault.row.kind is Kind.CLIENT_REFUSING for fault in self.faults)

    def heard(self, event: Event) -> None:
        """An event was told; its agent stands still if a fault belongs here."""
        here = [fault for fault in self._left if self._is_moment(fault, event)]
        if not here:
            return
        moment = MOMENTS[here[0].row.point]
        held = self._stage.program(moment.part).process
        try:
            # it tells first and stops then: what is done too early would be undone by its stop
            _await_stop(held.pid)
            for fault in here:
                self._left.remove(fault)
                self._inject(fault)
                self._context.events.emit("fault.injected", fault=fault.name, seconds=fault.seconds)
        except (FerryError, OSError) as error:
            self._context.warnings.append(f"the fault {here[0].name} could not be injected: {error}")
        finally:
            held.send_signal(signal.SIGCONT)  # nothing happens when it was killed

    def _is_moment(self, fault: Fault, event: Event) -> bool:
        moment = MOMENTS[fault.row.point]
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

    def _later(self, fault: Fault, what: str, action: str, subject: str) -> None:
        """After the fault's time, call a method of this class with a subject."""

        def wait_and_mend() -> None:
            self._over.wait(fault.seconds)
            try:
                getattr(self, action)(subject)
                self._context.events.emit("fault.mended", fault=fault.name, what=what)
            except (FerryError, OSError) as error:
                self._context.warnings.append(f"{fault.name}: {what}: {error}")

        thread = threading.Thread(target=wait_and_mend, name=f"mend-{fault.name}", daemon=True)
        thread.start()
        self._mending.append(thread)

    def _inject(self, fault: Fault) -> None:
        kind = fault.row.kind
        if kind is Kind.DESTINATION_FULL:
            self._fill(Path(f"/proc/{self._stage.container_pid(DESTINATION)}/root/run"))
        elif kind is Kind.RESTORE_FAILS:
            for path in self._received():
                path.unlink()
        elif kind is Kind.IMAGE_CORRUPTED and fault.row.point is Point.RESTORE:
            _change_one_byte(max(self._received(), key=lambda path: path.stat().st_size))
        elif kind is Kind.LINK_CUT:
            link = self._inter_edge_link()
            self._context.emulator.set_link(link, up=False)
            self._later(fault, f"{link} is up again", "_mend_link", link)
        elif kind is Kind.CLIENT_SILENT:
            self._stage.program("client").process.send_signal(signal.SIGSTOP)
            self._later(fault, "the client goes on", "_wake", "client")
        elif kind in _KILLED:
            part = _KILLED[kind]
            self._stage.expect_end(part)
            process = self._stage.program(part).process
            process.kill()
            process.wait()
            self._later(fault, f"the {part}'s process is back", "_start_again", part)

    def _mend_link(self, link: str) -> None:
        self._context.emulator.set_link(link, up=True)

    def _wake(self, part: str) -> None:
        self._stage.program(part).process.send_signal(signal.SIGCONT)

    def _start_again(self, part: str) -> None:
        self._stage.start_again(part)

    def _inter_edge_link(self) -> str:
        ends = {self._context.part(SOURCE), self._context.part(DESTINATION)}
        for link in self._context.topology.links:
            if {link.a, link.b} == ends:
                return link.name
        raise InvalidInput("the edges have no link of their own", hint="choose the topology two_edges")

    def _received(self) -> list[Path]:
        """The files of the state that the destination has received."""
        root = Path(f"/proc/{self._stage.container_pid(DESTINATION)}/root") / STATE
        found = [path for path in root.rglob("*") if path.is_file()]
        if not found:
            raise FerryError("the destination has no state")
        return found

    def _fill(self, directory: Path) -> None:
        """Leave no page free in the container's tmpfs, by making it as small as what is in it."""
        used = shutil.disk_usage(directory).used
        pages = max(1, -(-used // PAGE_BYTES))
        pid = self._stage.container_pid(DESTINATION)
        options = f"remount,size={pages * PAGE_BYTES}"
        run(["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--", "mount", "-o", options, "/run"])


_KILLED = {
    Kind.SOURCE_AGENT_KILLED: SOURCE,
    Kind.DESTINATION_AGENT_KILLED: DESTINATION,
    Kind.ORCHESTRATOR_KILLED: "orchestrator",
}


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
