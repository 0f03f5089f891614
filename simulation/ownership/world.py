"""The world of ownership: hosts with agents and servers, an orchestrator, a client, and the truth.

The truth is what nobody in the world can see: which server processes serve at this moment. A server
joins when it says so (started, resumed, aborted) and leaves when it is frozen or its process ends. Two
at a time is the one thing that must never be.
"""

from __future__ import annotations

import asyncio
import functools
import random
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization

from quicferry.errors import FerryError
from quicferry.events import Event, EventLog
from quicferry.model import Endpoint
from simulation.clock import VirtualLoop
from simulation.determinism import certificate
from simulation.disk import Disk, FaultyOs
from simulation.history import History
from simulation.network import DOWN, UP, Address, Wire
from simulation.network import Datagram as WireDatagram
from simulation.ownership.adapter import (
    AgentConfig,
    Deadlines,
    MoveCommand,
    NamedTls,
    NodeAgent,
    Orchestrator,
    OrchestratorConfig,
    Outcome,
    Server,
    ServerCommand,
    ServerConfig,
    StartCommand,
)
from simulation.ownership.client import SimulatedClient
from simulation.ownership.faults import ACTIONS
from simulation.ownership.machinery import Ports, SimulatedContainer, Sockets, caller_lives
from simulation.ownership.raw_sockets import CLIENT_INTERFACE, RawSockets, ip_datagram
from simulation.ownership.story import Fault, Story
from simulation.paths import Path as NetworkPath
from simulation.paths import Paths
from simulation.process import Process, current
from simulation.rpc import Network

RPC_PORT = 4437
CONTROL_PORT = 4434
ORCHESTRATOR = "orch"
CLIENT: Address = ("10.0.0.2", 40_000)
QUICK = Deadlines(prepare_s=2.0, notice_s=0.3, checkpoint_s=0.5, transfer_s=0.8, restore_s=0.5)
_NETS = {"10.1": "edge", "10.3": "detour", "10.2": "core"}
_SERVES = {"server.resumed", "server.aborted", "server.kept"}


class OwnershipWorld:
    """One play."""

    def __init__(self, loop: VirtualLoop, story: Story, history: History, directory: Path) -> None:
        self.loop = loop
        self.story = story
        self.history = history
        self.processes: list[Process] = []
        self.paths = Paths(loop)
        for name, rtt_s in (
            ("edge", story.edge_rtt_s),
            ("detour", story.core_rtt_s),
            ("core", story.core_rtt_s),
        ):
            self.paths.add(name, rtt_s / 2)
        self.rpc = Network(loop, self.paths, self._route)
        loop.kernel = Sockets(loop, self.rpc)
        self.ports = Ports(self._server_sends)
        self.raw = RawSockets(loop, self._route, _number_of, self._injected)
        self.clock_ahead_s = {
            f"edge-{number}": ahead_s for number, ahead_s in enumerate(story.clocks_ahead_s, 1)
        }
        loop.clock.skewed = any(story.clocks_ahead_s)
        self.edges = [f"edge-{number}" for number in range(1, story.edges + 1)]
        self.hosts = [*self.edges, ORCHESTRATOR]
        self.disks = {host: Disk(directory / host) for host in self.hosts}
        for host, disk in self.disks.items():
            disk.on_write = functools.partial(self._wrote, host)
        self.files = FaultyOs(self.disks)
        self.containers = {
            edge: SimulatedContainer(edge, self.disks[edge], self._launch_server) for edge in self.edges
        }
        self.agents: dict[str, Process] = {}
        self.ready: dict[str, bool] = {}
        self.outcomes: list[Outcome | str] = []
        self.serving: list[Process] = []
        self.wire = Wire(loop, random.Random(f"wire {story.seed}"), dict.fromkeys(self._addresses(), 0.0))
        self.wire.one_way_s = dict.fromkeys(self._addresses(), story.rtt_s / 2)
        self.client: SimulatedClient | None = None
        self.calm_at = loop.time()
        self.lost_server = False  # a fault has killed a server that had the connections
        self.gone: set[str] = set()
        self.next_move = 0
        self.connected = asyncio.Event()  # the client is: moves may begin
        self._anchors: dict[str, list[Fault]] = {}
        for fault in story.faults:
            self._anchors.setdefault(fault.anchor, []).append(fault)
        loop.set_exception_handler(self._raised)

    # ------------------------------------------------------------------ what is where

    def _addresses(self) -> list[Address]:
        return [(f"10.0.{number}.2", 4433) for number in range(1, self.story.edges + 1)]

    def _route(self, host: str, address: str) -> tuple[NetworkPath, str]:
        net, _, number = address.rpartition(".")[0], "", address.rpartition(".")[2]
        return self.paths.paths[_NETS[net.rpartition(".")[0]]], f"edge-{number}"

    def path_of(self, inside: str) -> Path:
        """A path as the server's process sees it."""
        process = current()
        assert process is not None
        return self.disks[process.host].path(inside)

    # ------------------------------------------------------------------ anchors and faults

    def mark(self, anchor: str, **detail: Any) -> None:
        """Something happened that faults may be anchored to."""
        self.history.note(anchor.partition(" ")[0], anchor.partition(" ")[2], **detail)
        for fault in self._anchors.pop(anchor, ()):
            self.calm(fault.delay_s + fault.seconds)
            if fault.delay_s:
                self.loop.physics(fault.delay_s, self._begin, fault)
            else:
                self._begin(fault)

    def calm(self, after_s: float = 0.0) -> None:
        """Nothing may be expected before now and so many seconds."""
        self.calm_at = max(self.calm_at, self.loop.time() + after_s)

    def _begin(self, fault: Fault) -> None:
        self.history.note("fault", fault.kind, at=fault.at, seconds=fault.seconds)
        end = ACTIONS[fault.kind](self, fault)
        if end is not None:
            self.loop.physics(fault.seconds, self._end, fault, end)

    def _end(self, fault: Fault, end: Callable[[], None]) -> None:
        self.history.note("fault", f"{fault.kind} over", at=fault.at)
        end()

    def _wrote(self, host: str, path: Path, data: bytes) -> None:
        if path.suffix != ".journal":
            return
        try:
            entry = msgspec.json.decode(data)
        except msgspec.DecodeError:
            self.mark(f"{host} wrote half a line")
            return
        self.mark(f"{host} wrote {entry['step']}", part=entry["part"], epoch=entry["epoch"])

    def _raised(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.history.violated(
            f"raised:{type(error).__name__ if error is not None else 'unknown'}",
            f"{context.get('message')}: {error}",
        )

    # ------------------------------------------------------------------ processes

    def _process(self, name: str, host: str) -> Process:
        process = Process(self.loop, name, host)
        process.ahead_s = self.clock_ahead_s.get(host, 0.0)
        self.processes.append(process)
        return process

    def pause(self, process: Process | None) -> Callable[[], None] | None:
        """SIGSTOP; what is returned is SIGCONT."""
        if process is None or not process.alive:
            return None
        process.stop()
        self.paths.stopped(process)
        return process.go_on

    def start_agent(self, name: str) -> None:
        """Start the agent of an edge, or the orchestrator."""
        known = self.agents.get(name)
        if known is not None and known.alive:
            return
        process = self.agents[name] = self._process(f"agent {name}", name)
        self.ready[name] = False
        process.spawn(
            self._main(process, self._orchestrate() if name == ORCHESTRATOR else self._serve_agent(name))
        )

    async def _main(self, process: Process, work: Coroutine[Any, Any, None]) -> None:
        """A process ends with a traceback when its main program raises."""
        try:
            await work
        except Exception as error:
            kind = "orchestrator" if process.host == ORCHESTRATOR else "agent"
            self.history.violated(f"crashed:{kind}:{type(error).__name__}", f"{process.name}: {error}")
            process.kill()

    def kill_agent(self, name: str) -> None:
        """SIGKILL."""
        process = self.agents.get(name)
        if process is not None:
            process.kill()
        self.ready[name] = False

    def tear_journal(self, name: str) -> None:
        """The last line of a journal was being written when the process died."""
        torn = self.disks[name].tear(self.disks[name].path("journal.journal"))
        self.history.note("fault", "journal torn", at=name, torn=torn)

    def server_killed(self, process: Process) -> None:
        """SIGKILL for a server: whatever it knew is lost, which is no fault of the move."""
        if process.alive:
            self.lost_server = True
            process.kill()

    def _sink(self, host: str, event: Event) -> None:
        if not caller_lives():
            return
        self.mark(
            f"{host} {event.name}",
            **{k: v for k, v in event.detail.items() if k in ("epoch", "outcome", "error", "reason")},
        )

    async def _serve_agent(self, edge: str) -> None:
        number = _number_of(edge)
        others = {other: _number_of(other) for other in self.edges if other != edge}
        config = AgentConfig(
            edge=edge,
            listen=Endpoint("0.0.0.0", RPC_PORT),
            peers={other: Endpoint(f"10.1.0.{n}", RPC_PORT) for other, n in others.items()},
            detours={other: Endpoint(f"10.3.0.{n}", RPC_PORT) for other, n in others.items()},
            orchestrators=[ORCHESTRATOR],
            detour_rtt_ms=self.story.core_rtt_s * 1000,
            tls=NamedTls.of(edge),
            service=ServerCommand(argv=["server"]),
            standby=ServerCommand(argv=["standby"]),
            control=Endpoint("127.0.0.1", CONTROL_PORT),
            service_address=Endpoint(f"10.0.{number}.2", 4433),
            client_interfaces=[CLIENT_INTERFACE] if self.story.forwarding else [],
            journal=str(self.disks[edge].path("journal.journal")),
        )
        events = EventLog(edge, None, functools.partial(self._sink, edge))
        agent = NodeAgent(config, events, container=self.containers[edge])
        await agent.start()
        self.ready[edge] = True
        recovered = await agent.recover()
        if recovered is not None:
            self.history.note(edge, "recovered", outcome=recovered.outcome)

    async def _orchestrate(self) -> None:
        config = OrchestratorConfig(
            name=ORCHESTRATOR,
            agents={
                edge: Endpoint(f"10.2.0.{number}", RPC_PORT) for number, edge in enumerate(self.edges, 1)
            },
            tls=NamedTls.of(ORCHESTRATOR),
            rtt_ms=self.story.core_rtt_s * 1000,
            journal=str(self.disks[ORCHESTRATOR].path("journal.journal")),
        )
        events = EventLog(ORCHESTRATOR, None, functools.partial(self._sink, ORCHESTRATOR))
        orchestrator = Orchestrator(config, events)
        await orchestrator.connect()
        self.ready[ORCHESTRATOR] = True
        unfinished = await orchestrator.recover()
        if unfinished is not None:
            self._ended(unfinished)
        if not self.serving and self.next_move == 0 and self.client is None:
            await orchestrator.start_service(StartCommand(edge="edge-1"))
        await self.connected.wait()
        while self.next_move < len(self.story.moves):
            move = self.story.moves[self.next_move]
            self.next_move += 1
            self.calm(move.after_s)
            await asyncio.sleep(move.after_s)
            source = self._where()
            if source is None or source == f"edge-{move.to}":
                continue
            await self._move(orchestrator, source, move)
        self.next_move = len(self.story.moves) + 1

    async def _move(self, orchestrator: Orchestrator, source: str, move: Any) -> None:
        command = MoveCommand(
            source=source,
            destination=f"edge-{move.to}",
            strategy=move.strategy,
            engine="handoff",
            service=Endpoint(f"10.0.{move.to}.2", 4433),
            server_first=move.server_first,
            downtime_ms=100,
            deadlines=msgspec.structs.replace(QUICK, commit_s=self.story.commit_s),
        )
        try:
            self._ended(await orchestrator.move(command))
        except FerryError as error:
            self.history.note(ORCHESTRATOR, "refused", error=str(error))
            self.outcomes.append("refused")
        self.calm()

    def _ended(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self.history.note(
            ORCHESTRATOR,
            "outcome",
            outcome=outcome.outcome,
            serves_at=outcome.serves_at,
            error=outcome.error or "",
        )

    def _where(self) -> str | None:
        """What whoever gives the orchestrator its commands believes."""
        for outcome in reversed(self.outcomes):
            if isinstance(outcome, Outcome) and outcome.serves_at is not None:
                return outcome.serves_at
            if isinstance(outcome, Outcome):
                return None  # lost or unknown: no more moves
        return "edge-1"

    # ------------------------------------------------------------------ servers

    def _launch_server(self, host: str, argv: Sequence[str]) -> Process:
        process = self._process(f"server {host}", host)
        process.at_death.append(functools.partial(self._left, process))
        process.spawn(self._serve(process, argv[0] == "standby"))
        return process

    async def _serve(self, process: Process, standby: bool) -> None:
        number = _number_of(process.host)
        files = _certificate_files()
        config = ServerConfig(
            edge=process.host,
            listen=Endpoint(f"10.0.{number}.2", 4433),
            control=Endpoint("127.0.0.1", CONTROL_PORT),
            events="/run/events.jsonl",
            fence="/run/fence",
            certificate=files[0],
            key=files[1],
            pool=[Endpoint(*address) for address in self._addresses()],
            standby=standby,
            idle_timeout_s=120.0,
        )
        self.disks[process.host].path("/run").mkdir(exist_ok=True)
        await Server(config).run()
        process.kill()

    def server_event_log(self, vantage: str, path: Path) -> EventLog:
        """What stands for ``EventLog`` in a server: what it says is the truth of this world."""
        process = current()
        assert process is not None
        return EventLog(vantage, None, functools.partial(self._server_event, process))

    def _server_event(self, process: Process, event: Event) -> None:
        if not process.alive:
            return
        if event.name in _SERVES or (event.name == "server.started" and not event.detail["standby"]):
            self._joined(process)
        elif event.name in ("server.frozen", "server.stopped", "server.held"):
            self._left(process)
        self._sink(process.host, event)

    def _joined(self, process: Process) -> None:
        if process not in self.serving:
            self.serving.append(process)
        self.calm()
        if len(self.serving) > 1:
            hosts = " and ".join(sorted(each.host for each in self.serving))
            self.history.violated(f"two-owners:{self.steps()}", f"{hosts} serve at the same time")

    def steps(self) -> str:
        """Where the agents' last journal lines leave the move: the source's step and the destination's."""
        last: dict[str, str] = {}
        for entry in self.history.entries:
            if entry.what.startswith("wrote ") and entry.who.startswith("edge") and "part" in entry.detail:
                last[entry.detail["part"]] = entry.what[6:]
        return "-".join(last.get(part, "none") for part in ("source", "destination"))

    def _left(self, process: Process) -> None:
        if process in self.serving:
            self.serving.remove(process)

    # ------------------------------------------------------------------ the client's wire

    def begin_client(self) -> None:
        """Let the client connect."""
        self.client = SimulatedClient(self.loop, self.history, ("10.0.1.2", 4433), self._client_sends)

    def _client_sends(self, data: bytes, address: Address) -> None:
        self.history.packet(UP, address, data)
        host = f"edge-{address[0].split('.')[2]}"
        self.wire.send(WireDatagram(data, UP, address), functools.partial(self._at_edge, host))

    def _at_edge(self, host: str, data: bytes) -> None:
        if self.raw.taps(host):
            self.raw.arrived(host, ip_datagram(CLIENT, (f"10.0.{_number_of(host)}.2", 4433), data))
        self._injected(host, data, CLIENT)

    def _injected(self, host: str, data: bytes, source: Address) -> None:
        """A datagram for a host's service, from the wire or out of its waiting room."""
        port = self.ports.bound.get(host)
        if port is not None:
            port.arrive(data, source)

    def _server_sends(self, listen: Endpoint, data: bytes, receiver: tuple[str, int]) -> None:
        at: Address = (listen.host, listen.port)
        self.history.packet(DOWN, at, data)
        if self.client is not None:
            client = self.client
            self.wire.send(WireDatagram(data, DOWN, at), lambda copy: client.receive(copy, at))


def _number_of(host: str) -> int:
    return int(host.rpartition("-")[2])


@cache
def _certificate_files() -> tuple[str, str]:
    """The server's certificate as files; the same for all worlds of this interpreter."""
    directory = Path(tempfile.mkdtemp(prefix="quicferry-simulation-"))
    made, key = certificate()
    names = directory / "certificate.pem", directory / "key.pem"
    names[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    names[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return str(names[0]), str(names[1])
