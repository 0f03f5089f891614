"""What every part of one run is given, and the interfaces of the parts.

A run knows nothing of QUIC, DNS or MPTCP. It is given a *deployment*: services that are started in
order, the client last, and a way to move the server. ``apps.deployment`` and baselines have them.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from quicferry.emulation.emulator import Emulator
from quicferry.errors import FerryError, MigrationError, last_line
from quicferry.events import Event, EventLog
from quicferry.experiment.container_watch import ContainerWatch
from quicferry.model import Endpoint, Topology
from quicferry.process import PIPE, Popen, Stillness, ask_to_stop, how_ended, stop
from quicferry.record import PLACE_BY_SERVER, RunPaths
from quicferry.slowness import longer
from quicferry.spec import RunSpec

SERVICE_PORT = 4433
BROKEN_PATIENCE_S = 1.5
OnLine = Callable[[bytes], None]


class Service(Protocol):
    """A part of a deployment: one process or several that belong together."""

    name: str

    def start(self) -> None:
        """Start the processes and return at once. Raises ``FerryError``."""

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until others can rely on it. Raises ``FerryError`` when it ends or the time is over."""

    def stop(self) -> None:
        """End it in good order and gather what it knows. Called also after a failure."""


class Member(Protocol):
    """What a run stands on."""

    def ended(self) -> FerryError | None:
        """Why it does not do its work any more: it has ended or stands still. None while it does."""


class Deployment(Protocol):
    """What takes part in a run besides the network. ``services`` are started in order, the client last."""

    @property
    def services(self) -> Sequence[Service]:
        """All services, in the order of their start."""

    def move(self) -> dict[str, Any]:
        """Move the server once; returns when it serves at the destination or again at the source.

        Raises ``MigrationError`` when it did not come to the destination.
        """


class Program:
    """One process of a run: its stdin, its lines, and the end of its log when it fails."""

    def __init__(self, name: str, process: Popen[bytes], log: Path, on_line: OnLine) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.is_to_end = False  # somebody is ending it: that it ends is no failure
        self.is_held = False  # somebody has it stand still for a while
        self._stillness = Stillness()
        self._reader = threading.Thread(
            target=self._read, args=(process.stdout, on_line), name=f"read-{name}", daemon=True
        )
        self._reader.start()

    def _read(self, stream: IO[bytes] | None, on_line: OnLine) -> None:
        if stream is None:
            return
        with stream:
            for line in stream:
                on_line(line)

    def tell(self, line: bytes) -> None:
        """Write a line to its stdin; nothing happens when it has gone."""
        stdin = self.process.stdin
        if stdin is None:
            return
        try:
            stdin.write(line + b"\n")
            stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # it has ended: whoever waits for its answer finds that out

    def last_words(self) -> str:
        """The last line of its log."""
        try:
            printed = self.log.read_text(errors="replace")
        except OSError:
            printed = ""
        return last_line(printed, "it left no message")

    def wait(self, timeout_s: float) -> int:
        """Wait for its end and for its last line. Raises ``TimeoutExpired``."""
        status = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return status

    def ended(self) -> MigrationError | None:
        """The error of a process that has ended by itself, or stands still, in the middle of the run."""
        status = self.process.poll()
        if status == 0 or self.is_to_end:
            return None
        if status is not None:
            how, said = how_ended(status), f": {self.last_words()}" if status > 0 else ""
        elif self._stillness.is_for_good(self.process.pid) and not self.is_held:
            how, said = "stands still (SIGSTOP)", ""
        else:
            return None
        return MigrationError(
            f"{self.name} {how} in the middle of the run{said}", hint=f"see {self.log.name} in logs/"
        )

    def ask_to_end(self) -> None:
        """Send it the signal by which ``end`` ends it, and do not wait."""
        self.is_to_end = True
        ask_to_stop(self.process)

    def end(self, grace_s: float = 2.0) -> None:
        """End it by signal if it still runs."""
        self.is_to_end = True
        stop(self.process, grace_s=grace_s)
        self._reader.join(1.0)


class RunContext:
    """One run: what was asked, where it is written, and the emulated network it plays in."""

    def __init__(
        self,
        spec: RunSpec,
        topology: Topology,
        paths: RunPaths,
        emulator: Emulator,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.spec = spec
        self.topology = topology
        self.paths = paths
        self.emulator = emulator
        self.events = EventLog("run", sink=self.collect)
        self._on_event = on_event
        #: called with every event, in the thread that has read it; whoever listens must not wait long
        self.listeners: list[Callable[[Event], None]] = []
        self.warnings: list[str] = []
        #: where clients reach the server, where that is not the edge's own address; deployments set it
        self.endpoints: dict[str, Endpoint] = {}
        self.place_by = PLACE_BY_SERVER
        #: the addresses of a client that moves, one after another; deployments set it
        self.client_stops: list[str] = []
        #: whose file descriptors and memory are noted between moves: name -> PID, None while there is none
        self.watched: dict[str, Callable[[], int | None]] = {}
        #: all that was started; of those with one name the last
        self.programs: dict[str, Program] = {}
        #: the containers in which servers are moved. What a fault does to a server, the captures judge.
        self.containers = ContainerWatch(lambda: not self._is_frozen and not self.spec.faults)
        #: further parts that may end or stand still by themselves
        self.members: list[Member] = [self.containers]
        self._is_frozen = False  # the server, in a move that goes on
        self.is_broken = False  # something has ended: who is stopped now need not be waited for
        self.configs = paths.root / "configs"
        self.configs.mkdir(exist_ok=True)
        self.credentials = paths.credentials  # private keys; gone when the run is over
        self._collected: list[Event] = []
        self._lock = threading.Lock()

    def part(self, name: str) -> str:
        """The host that plays a part (client, source, destination, orchestrator, dns)."""
        try:
            return self.topology.parts[name]
        except KeyError as error:
            raise FerryError(
                f"the topology {self.topology.name} has no {name}",
                hint="choose one that has: `quicferry topo list`",
            ) from error

    def service_endpoint(self, edge: str) -> Endpoint:
        """Where clients reach a server at that edge."""
        return self.endpoints.get(edge) or Endpoint(self.topology.service_addresses[edge], SERVICE_PORT)

    def collect(self, event: Event) -> None:
        """Take in an event that a process has told."""
        # engines stop a server after they have told of it, and what is left of it when they have moved it
        self._is_frozen = self._is_frozen or event.name == "migration.checkpoint.started"
        with self._lock:
            self._collected.append(event)
            if self._on_event is not None:
                self._on_event(event)
        for listener in self.listeners:
            listener(event)

    def collect_line(self, line: bytes) -> Event | None:
        """Take in a line of a process if it is an event; returns it."""
        try:
            event = msgspec.json.decode(line, type=Event)
        except msgspec.DecodeError:
            return None
        self.collect(event)
        return event

    def collected(self) -> list[Event]:
        """All events so far, sorted by time."""
        with self._lock:
            return sorted(self._collected, key=lambda event: event.t_ns)

    def write_config(self, name: str, config: msgspec.Struct) -> Path:
        """Write the configuration of a process; returns its file."""
        path = self.configs / f"{name}.json"
        path.write_bytes(msgspec.json.format(msgspec.json.encode(config), indent=2))
        return path

    def module(self, module: str, config: Path) -> list[str]:
        """The argument vector that runs one of our modules with a configuration."""
        return [sys.executable, "-m", module, "--config", str(config)]

    def start(
        self,
        name: str,
        host: str,
        argv: Sequence[str],
        on_line: OnLine,
        env: Mapping[str, str] | None = None,
    ) -> Program:
        """Start a process on a host; its stdout is read line by line, its stderr kept as a log."""
        log = self.paths.logs / f"{name}.log"
        with log.open("wb") as stderr:
            process = self.emulator.spawn(host, list(argv), env=env, stdin=PIPE, stdout=PIPE, stderr=stderr)
        program = Program(name, process, log, on_line)
        self.watched[name] = lambda: process.pid if process.poll() is None else None
        self.programs[name] = program
        return program

    @contextmanager
    def moving(self) -> Iterator[None]:
        """The deployment moves the server meanwhile: from its freeze on, agents look after it."""
        try:
            yield
        finally:
            self._is_frozen = False

    def ended(self) -> FerryError | None:
        """The error of the first part that has ended by itself or stands still; None while all work."""
        members: list[Member] = [*list(self.programs.values()), self.emulator, *list(self.members)]
        for member in members:
            if (why := member.ended()) is not None:
                return why
        return None

    @property
    def longest_rtt_ms(self) -> float:
        """The longest round trip between a client and an edge, or between an edge and the core network."""
        return self.topology.longest_rtt_ms(self.spec.rtt_ms, self.spec.source_rtt_ms)

    def patience_s(self, usual_s: float) -> float:
        """How long to wait for whoever is told to end: not long once something is broken."""
        return longer(min(usual_s, BROKEN_PATIENCE_S) if self.is_broken else usual_s)
