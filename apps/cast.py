"""The cast of a QUIC run: agents on the edges, the orchestrator, the server, the client.

Writes their configurations, starts them in order, moves the server, and gathers what they know.
"""

from __future__ import annotations

import queue
import signal
from pathlib import Path
from typing import Any

import msgspec

from apps.config import SERVER_NAME, ClientConfig, ServerConfig
from quicferry.errors import MigrationError
from quicferry.events import Event
from quicferry.experiment.context import SERVICE_PORT, Program, RunContext, Service
from quicferry.migration.certificates import Authority, TlsFiles
from quicferry.migration.node_agent import AgentConfig, Command, LocalMove
from quicferry.migration.orchestrator import EndCommand, MoveCommand, OrchestratorConfig, StartCommand
from quicferry.migration.orders import Files
from quicferry.model import Endpoint, NodeKind
from quicferry.process import TimeoutExpired
from quicferry.strategies import RULES, Strategy
from quicferry.units import BYTES_PER_MIB

CONTROL = Endpoint("127.0.0.1", SERVICE_PORT + 1)
RPC_PORT = SERVICE_PORT + 2
WAITING_ROOM_PORT = SERVICE_PORT + 3
SERVER_EVENTS = "/run/server.jsonl"  # inside the container
SERVER_LOGS = "/run/service-*.log"  # what a server wrote to stderr
SERVER_FENCE = "/run/server.fence"
MOVE_S = 240.0  # longer than all deadlines of a move together
ASK_S = 40.0
CLIENT_END_S = 25.0  # longer than the client's own patience


class Replies:
    """The lines of an agent or the orchestrator: events are collected, answers are waited for."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()

    def line(self, line: bytes) -> None:
        """Take in one line: ``{kind: value}``."""
        try:
            (kind, value), *_ = msgspec.json.decode(line, type=dict[str, Any]).items()
        except (msgspec.DecodeError, ValueError):
            return  # a library's print
        if kind == "event":
            self._context.collect(msgspec.convert(value, Event))
        else:
            self._queue.put((kind, value))

    def wait(self, program: Program, kinds: set[str], timeout_s: float) -> dict[str, Any]:
        """The next answer of one of these kinds.

        Raises ``MigrationError`` when the program ends, refuses, or is silent for too long.
        """
        waited_s = 0.0
        while waited_s < timeout_s:
            try:
                kind, value = self._queue.get(timeout=0.1)
            except queue.Empty:
                waited_s += 0.1
                if program.process.poll() is None:
                    continue
                raise MigrationError(
                    f"{program.name} ended: {program.last_words()}", hint=f"see {program.log.name}"
                ) from None
            if kind in kinds:
                return dict(value)
            if kind == "outcome":
                raise MigrationError(f"{program.name}: {value.get('error')}", hint=value.get("hint"))
        raise MigrationError(f"{program.name} was silent for {timeout_s:g} s", hint=f"see {program.log.name}")


class Agent:
    """The node agent of one edge, with the commands for a server and a standby there.

    ``module`` is the server's. With ``plain`` the server offers no pool, and no
    datagram is forwarded or kept waiting: what a move is without us.
    """

    def __init__(
        self,
        context: RunContext,
        edge: str,
        peer: str,
        tls: TlsFiles,
        server_tls: TlsFiles,
        *,
        module: str = "apps.server",
        plain: bool = False,
        tickets: bool = False,
    ) -> None:
        self.name = f"agent-{edge}"
        self.edge = edge
        self._context = context
        self._peer = peer
        self._tls = tls
        self._server_tls = server_tls
        self._module = module
        self._plain = plain
        self._tickets = tickets
        self.replies = Replies(context)
        self.program: Program | None = None

    def start(self) -> None:
        config = self._context.write_config(self.name, self._config())
        argv = self._context.module("apps.agent", config)
        self.program = self._context.start(self.name, self.edge, argv, self.replies.line)

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        self.replies.wait(self.program, {"ready"}, timeout_s)

    def stop(self) -> None:
        if self.program is not None:
            self.program.end()

    def _config(self) -> AgentConfig:
        context, topology = self._context, self._context.topology
        facing_clients = [
            context.emulator.interface(self.edge, link.name)
            for link in topology.links_of(self.edge)
            if topology.node(link.b if link.a == self.edge else link.a).kind is not NodeKind.EDGE
        ]
        destination = context.part("destination")
        local_move = LocalMove(
            strategy=context.asked.strategy,
            engine=context.asked.engine,
            destination=destination,
            service=context.service_endpoint(destination),
            server_first=context.asked.server_first,
            forwarding=context.asked.forwarding,
        )
        return AgentConfig(
            edge=self.edge,
            listen=Endpoint("0.0.0.0", RPC_PORT),
            peers={self._peer: Endpoint(between_edges(context, self._peer, self.edge), RPC_PORT)},
            tls=self._tls,
            service=self._server("server", standby=False),
            standby=self._server("standby", standby=True),
            control=CONTROL,
            service_address=context.service_endpoint(self.edge),
            client_interfaces=[] if self._plain else facing_clients,
            waiting_room=Endpoint(between_edges(context, self.edge, self._peer), WAITING_ROOM_PORT),
            collect=[SERVER_EVENTS, SERVER_LOGS],
            on_signal=local_move if self.edge == context.part("source") else None,
        )

    def _server(self, kind: str, *, standby: bool) -> Command:
        context, asked = self._context, self._context.asked
        pool = RULES[asked.strategy].pool and not self._plain
        config = ServerConfig(
            edge=self.edge,
            listen=Endpoint("0.0.0.0", SERVICE_PORT),
            control=CONTROL,
            events=SERVER_EVENTS,
            fence=SERVER_FENCE,
            certificate=self._server_tls.certificate,
            key=self._server_tls.key,
            pool=[context.service_endpoint(edge) for edge in context.topology.pool] if pool else [],
            tickets=self._tickets,
            standby=standby,
            response_bytes=asked.response_bytes,
            memory_mib=asked.memory_mib,
        )
        path = context.write_config(f"{kind}-{self.edge}", config)
        return Command(argv=context.module(self._module, path))


def between_edges(context: RunContext, edge: str, other: str) -> str:
    """The address of ``edge`` on its own link to ``other``; where there is none, its service address."""
    for link in context.topology.links_of(edge):
        if other in (link.a, link.b):
            address = link.a_address if link.a == edge else link.b_address
            if address is not None:
                return address.partition("/")[0]
    return context.topology.service_addresses[edge]


class Orchestra:
    """The orchestrator, and through it the server's start and end."""

    name = "orchestrator"

    def __init__(self, context: RunContext, edges: list[str], tls: TlsFiles) -> None:
        self._context = context
        self._edges = edges
        self._tls = tls
        self.replies = Replies(context)
        self.program: Program | None = None

    def start(self) -> None:
        context = self._context
        host = context.part("orchestrator")
        agents = {edge: Endpoint(context.topology.service_addresses[edge], RPC_PORT) for edge in self._edges}
        config = OrchestratorConfig(name=host, agents=agents, tls=self._tls)
        argv = context.module("apps.orchestrator", context.write_config(self.name, config))
        self.program = context.start(self.name, host, argv, self.replies.line)

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        self.replies.wait(self.program, {"ready"}, timeout_s)
        self.command(StartCommand(edge=self._context.part("source")), "started", timeout_s)

    def command(self, command: msgspec.Struct, answer: str, timeout_s: float) -> dict[str, Any]:
        """Give a command and wait for its answer. Raises ``MigrationError``."""
        assert self.program is not None
        self.program.tell(msgspec.json.encode(command))
        return self.replies.wait(self.program, {answer}, timeout_s)

    def stop(self) -> None:
        if self.program is None:
            return
        try:
            if self.program.process.poll() is None:
                ended = self.command(EndCommand(edges=self._edges), "ended", ASK_S)
                for edge, collected in msgspec.convert(ended, dict[str, Files]).items():
                    self._take_in(edge, collected.files)
        finally:
            self.program.end()

    def _take_in(self, edge: str, files: dict[str, bytes]) -> None:
        for name, content in files.items():
            if name == SERVER_EVENTS:
                for line in content.splitlines():
                    self._context.collect_line(line)
            elif content:
                (self._context.paths.logs / f"{edge}-{Path(name).name}").write_bytes(content)


def client_config(context: RunContext, authority: str) -> ClientConfig:
    """What every client of a run is told; the file for its secrets is made."""
    asked = context.asked
    context.paths.keys.touch(mode=0o600)
    return ClientConfig(
        server=context.service_endpoint(context.part("source")),
        authority=authority,
        keys=str(context.paths.keys),
        summary=str(context.paths.client),
        interval_ms=asked.interval_ms,
        request_bytes=asked.request_bytes,
        download_bytes=round(asked.download_mib * BYTES_PER_MIB),
        upload_bytes=round(asked.upload_mib * BYTES_PER_MIB),
        seed=asked.seed,
    )


class LoadClient:
    """The client and its load. ``end_s`` is longer than the client's own patience."""

    name = "client"

    def __init__(
        self,
        context: RunContext,
        config: ClientConfig,
        *,
        module: str = "apps.client",
        end_s: float = CLIENT_END_S,
    ) -> None:
        self._context = context
        self._config = config
        self._module = module
        self._end_s = end_s
        self._connected: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.program: Program | None = None

    def start(self) -> None:
        context = self._context
        argv = context.module(self._module, context.write_config(self.name, self._config))
        self.program = context.start(self.name, context.part("client"), argv, self._line)

    def _line(self, line: bytes) -> None:
        event = self._context.collect_line(line)
        if event is not None and event.name == "client.connected":
            self._connected.put(None)

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        try:
            self._connected.get(timeout=timeout_s)
        except queue.Empty:
            raise MigrationError(
                f"the client did not connect: {self.program.last_words()}",
                hint=f"see {self.program.log.name} in the run directory",
            ) from None

    def stop(self) -> None:
        """Let it wait for what is open and write its summary."""
        if self.program is None:
            return
        self.program.tell(b"stop")
        try:
            status = self.program.wait(self._end_s)
        except TimeoutExpired:
            self.program.end()
            raise MigrationError("the client did not end in good order", hint="see client.log") from None
        if status != 0:
            raise MigrationError(f"the client failed: {self.program.last_words()}", hint="see client.log")


class Credentials:
    """The certificates of one run, all of one authority."""

    def __init__(self, context: RunContext) -> None:
        self._authority = Authority()
        self._folder = context.credentials

    def issue(self, name: str) -> TlsFiles:
        """A certificate and its key, as files that live as long as the run."""
        return self._authority.issue(name).save(self._folder, name)


def order_move(
    context: RunContext, orchestra: Orchestra, strategy: Strategy, *, forwarding: bool
) -> dict[str, Any]:
    """Let the orchestrator move the server; returns what it says at the end. Raises ``MigrationError``."""
    destination = context.part("destination")
    command = MoveCommand(
        strategy=strategy,
        engine=context.asked.engine,
        source=context.part("source"),
        destination=destination,
        service=context.service_endpoint(destination),
        server_first=context.asked.server_first,
        forwarding=forwarding,
    )
    return orchestra.command(command, "outcome", MOVE_S)


def moved(outcome: dict[str, Any]) -> dict[str, Any]:
    """What of an outcome is kept. Raises ``MigrationError`` when the server is not at the destination."""
    if outcome.get("outcome") != "moved":
        raise MigrationError(
            f"the server did not move ({outcome.get('outcome')}): {outcome.get('error')}",
            hint=outcome.get("hint"),
        )
    return {
        "transferred_bytes": outcome.get("transferred_bytes"),
        "forwarded_datagrams": outcome.get("forwarded_datagrams"),
    }


class QuicCast:
    """See ``quicferry.experiment.context.Cast``."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        source, destination = context.part("source"), context.part("destination")
        issue = Credentials(context).issue
        server = issue(SERVER_NAME)
        self._source = Agent(context, source, destination, issue(source), server)
        self._destination = Agent(context, destination, source, issue(destination), server)
        self._orchestra = Orchestra(context, [source, destination], issue(context.part("orchestrator")))
        client = LoadClient(context, client_config(context, server.authority))
        self.services: list[Service] = [self._source, self._destination, self._orchestra, client]

    def move(self) -> dict[str, Any]:
        """Move the server: by the orchestrator, or by the source host alone where none is needed."""
        asked = self._context.asked
        if RULES[asked.strategy].notice:
            return moved(
                order_move(self._context, self._orchestra, asked.strategy, forwarding=asked.forwarding)
            )
        program = self._source.program
        assert program is not None
        program.process.send_signal(signal.SIGUSR1)
        return moved(self._source.replies.wait(program, {"outcome"}, MOVE_S))


def make_cast(context: RunContext) -> QuicCast:
    """The cast of a QUIC run."""
    return QuicCast(context)
