"""The cast of a QUIC run: agents on the edges, the orchestrator, the server, the client.

Writes their configurations, starts them in order, moves the server, and gathers what they know.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from apps.config import SERVER_NAME, ClientConfig, ServerConfig
from quicferry.errors import FerryError, MigrationError
from quicferry.events import Event
from quicferry.experiment.context import SERVICE_PORT, Program, RunContext, Service
from quicferry.experiment.fault_injector import FaultInjector
from quicferry.experiment.faults import DESTINATION, SOURCE
from quicferry.experiment.usage import children
from quicferry.migration.address import MovingAddressConfig
from quicferry.migration.certificates import Authority, TlsFiles
from quicferry.migration.engines.base import runs_in_oci
from quicferry.migration.mishaps import Mishaps
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
MOVE_S = 480.0  # longer than all deadlines of a move together
ASK_S = 40.0
CLIENT_END_S = 25.0  # longer than the client's own patience


class Replies:
    """The lines of an agent or the orchestrator: events are collected, answers are waited for."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._answers: list[tuple[str, Any]] = []
        self._come = threading.Condition()

    def line(self, line: bytes) -> None:
        """Take in one line: ``{kind: value}``."""
        try:
            (kind, value), *_ = msgspec.json.decode(line, type=dict[str, Any]).items()
        except (msgspec.DecodeError, ValueError):
            return  # a library's print
        if kind == "event":
            self._context.collect(msgspec.convert(value, Event))
            return
        with self._come:
            self._answers.append((kind, value))
            self._come.notify_all()

    def forget(self) -> None:
        """What has come and nobody has waited for does not matter any more."""
        with self._come:
            self._answers.clear()

    def wait(
        self,
        program: Program,
        kinds: set[str],
        timeout_s: float,
        *,
        replaced: Callable[[], bool] = lambda: False,
    ) -> dict[str, Any]:
        """The next answer of one of these kinds; others are left for those who wait for them.

        Raises ``MigrationError`` when the program ends, refuses, or is silent for too long. Its end
        is no failure while ``replaced`` says that another process takes or has taken its place.
        """
        waited_s = 0.0
        with self._come:
            while waited_s < timeout_s:
                for place, (kind, value) in enumerate(self._answers):
                    if kind in kinds:
                        del self._answers[place]
                        return dict(value)
                    if kind == "outcome" and kinds.isdisjoint({"ready"}):
                        del self._answers[place]
                        raise MigrationError(f"{program.name}: {value.get('error')}", hint=value.get("hint"))
                if self._come.wait(0.1):
                    continue
                waited_s += 0.1
                if program.process.poll() is not None and not replaced() and not self._answers:
                    raise MigrationError(
                        f"{program.name} ended: {program.last_words()}", hint=f"see {program.log.name}"
                    )
        raise MigrationError(f"{program.name} was silent for {timeout_s:g} s", hint=f"see {program.log.name}")


class Life:
    """How often a process of the cast was started; more than once when a fault has killed it."""

    def __init__(self) -> None:
        self.number = 0
        self._ending = False

    def name(self, name: str) -> str:
        """The name of the present process: each has its own log."""
        return f"{name}-{self.number + 1}" if self.number else name

    def end(self) -> None:
        """The present process is about to be killed."""
        self._ending = True

    def begin(self) -> None:
        """The next one is about to start."""
        self.number += 1

    @property
    def is_replaced(self) -> bool:
        """Whether the end of a process is nothing to worry about."""
        return self._ending or self.number > 0


class Agent:
    """The node agent of one edge, with the commands for a server and a standby there.

    ``module`` is the server's. With ``plain`` the server offers no pool, and no
    datagram is forwarded or kept waiting: what a move is without us. ``address`` moves with the
    server, which then listens only there; with ``keep_tcp`` its TCP connections move too.
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
        mishaps: Mishaps | None = None,
        address: MovingAddressConfig | None = None,
        keep_tcp: bool = False,
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
        self._mishaps = mishaps
        self._address = address
        self._keep_tcp = keep_tcp
        self.replies = Replies(context)
        self.program: Program | None = None
        self.container_pid = 0
        self.life = Life()

    def start(self) -> None:
        config = self._context.write_config(self.life.name(self.name), self._config())
        argv = self._context.module("apps.agent", config)
        self.program = self._context.start(self.life.name(self.name), self.edge, argv, self.replies.line)

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        ready = self.replies.wait(self.program, {"ready"}, timeout_s)
        self.container_pid = int(ready["init_pid"])

    def move(self) -> dict[str, Any]:
        """Have it move the server away by its own decision; returns how that ended."""
        program = self.program
        assert program is not None
        self.replies.forget()
        program.process.send_signal(signal.SIGUSR1)
        kinds = {"outcome", "recovered"}
        return self.replies.wait(program, kinds, MOVE_S, replaced=lambda: self.life.is_replaced)

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
        state = journals(context)
        local_move = LocalMove(
            strategy=context.asked.strategy,
            engine=context.asked.engine,
            destination=self._peer,
            service=context.service_endpoint(self._peer),
            server_first=context.asked.server_first,
            forwarding=context.asked.forwarding,
            compression=context.asked.compression,
            memory_by=context.asked.memory_by,
        )
        return AgentConfig(
            edge=self.edge,
            listen=Endpoint("0.0.0.0", RPC_PORT),
            peers={self._peer: Endpoint(between_edges(context, self._peer, self.edge), RPC_PORT)},
            detours={self._peer: Endpoint(topology.service_addresses[self._peer], RPC_PORT)},
            tls=self._tls,
            service=self._server("server", standby=False),
            standby=self._server("standby", standby=True),
            control=CONTROL,
            service_address=context.service_endpoint(self.edge),
            client_interfaces=[] if self._plain else facing_clients,
            waiting_room=Endpoint(between_edges(context, self.edge, self._peer), WAITING_ROOM_PORT),
            collect=[SERVER_EVENTS, SERVER_LOGS],
            on_signal=local_move,
            journal=str(state / f"{self.edge}.journal"),
            container_record=str(state / f"{self.edge}.container"),
            oci_readable=(
                [str(context.configs), str(context.credentials)]
                if runs_in_oci(context.asked.engine)
                else None
            ),
            # what an agent does wrong, it does once: not again when it was started again
            mishaps=self._mishaps if self._mishaps and not self.life.number else Mishaps(),
            moving_address=self._address,
            keep_tcp=self._keep_tcp,
        )

    def _server(self, kind: str, *, standby: bool) -> Command:
        context, asked = self._context, self._context.asked
        pool = (RULES[asked.strategy].pool or asked.mixed_strategies) and not self._plain
        config = ServerConfig(
            edge=self.edge,
            listen=Endpoint(self._address.address if self._address else "0.0.0.0", SERVICE_PORT),
            control=CONTROL,
            events=SERVER_EVENTS,
            fence=SERVER_FENCE,
            certificate=self._server_tls.certificate,
            key=self._server_tls.key,
            pool=[context.service_endpoint(edge) for edge in context.topology.pool] if pool else [],
            tickets=self._tickets,
            standby=standby,
            expected_connections=asked.clients,
            address_moves=self._address is not None,
            response_bytes=asked.response_bytes,
            memory_mib=asked.memory_mib,
            dirty_mib_s=asked.dirty_mib_s,
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


def journals(context: RunContext) -> Path:
    """Where agents and orchestrator keep their journals; each reads its own alone."""
    folder = context.paths.root / "journals"
    folder.mkdir(exist_ok=True)
    return folder


class Orchestra:
    """The orchestrator, and through it the server's start and end."""

    name = "orchestrator"

    def __init__(self, context: RunContext, edges: list[str], tls: TlsFiles) -> None:
        self._context = context
        self._edges = edges
        self._tls = tls
        self.replies = Replies(context)
        self.program: Program | None = None
        self.life = Life()

    def start(self) -> None:
        context = self._context
        host = context.part("orchestrator")
        agents = {edge: Endpoint(context.topology.service_addresses[edge], RPC_PORT) for edge in self._edges}
        journal = str(journals(context) / f"{host}.journal")
        config = OrchestratorConfig(name=host, agents=agents, tls=self._tls, journal=journal)
        name = self.life.name(self.name)
        argv = context.module("apps.orchestrator", context.write_config(name, config))
        self.program = context.start(name, host, argv, self.replies.line)

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        self.replies.wait(self.program, {"ready"}, timeout_s)
        if self.life.number:
            return  # the server was started by the one before
        self.command(StartCommand(edge=self._context.part("source")), "started", timeout_s)

    def command(self, command: msgspec.Struct, answer: str, timeout_s: float) -> dict[str, Any]:
        """Give a command and wait for its answer. Raises ``MigrationError``."""
        assert self.program is not None
        self.replies.forget()
        self.program.tell(msgspec.json.encode(command))
        return self.replies.wait(self.program, {answer}, timeout_s, replaced=lambda: self.life.is_replaced)

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
        clients=asked.clients,
        plain_clients=asked.plain_clients,
        mixed_strategies=asked.mixed_strategies,
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
        connections: int = 1,
        end_s: float = CLIENT_END_S,
    ) -> None:
        self._context = context
        self._config = config
        self._module = module
        self._end_s = end_s
        self._connections = connections
        self._connected: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.program: Program | None = None

    def start(self) -> None:
        context = self._context
        argv = context.module(self._module, context.write_config(self.name, self._config))
        self.program = context.start(self.name, context.part("client"), argv, self._line)

    def _line(self, line: bytes) -> None:
        event = self._context.collect_line(line)
        if event is not None:
            self._heard(event)

    def _heard(self, event: Event) -> None:
        if event.name == "client.connected":
            self._connected.put(None)

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        try:
            for _ in range(self._connections):
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
    context: RunContext,
    orchestra: Orchestra,
    strategy: Strategy,
    *,
    forwarding: bool,
    source: str | None = None,
    destination: str | None = None,
) -> dict[str, Any]:
    """Let the orchestrator move the server; returns what it says at the end. Raises ``MigrationError``.

    Edges are the parts source and destination unless given.
    """
    destination = destination or context.part(DESTINATION)
    command = MoveCommand(
        strategy=strategy,
        engine=context.asked.engine,
        source=source or context.part(SOURCE),
        destination=destination,
        service=context.service_endpoint(destination),
        server_first=context.asked.server_first,
        forwarding=forwarding,
        compression=context.asked.compression,
        memory_by=context.asked.memory_by,
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
    """See ``quicferry.experiment.context.Cast``; also the ``Stage`` on which faults happen."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        source, destination = context.part(SOURCE), context.part(DESTINATION)
        issue = Credentials(context).issue
        server = issue(SERVER_NAME)
        faults = FaultInjector(context, self)
        self._agents = {
            edge: Agent(context, edge, peer, issue(edge), server, mishaps=faults.mishaps(edge))
            for edge, peer in ((source, destination), (destination, source))
        }
        self._orchestra = Orchestra(context, [source, destination], issue(context.part("orchestrator")))
        config = client_config(context, server.authority)
        if faults.client_refuses:
            config = msgspec.structs.replace(config, accept_moves=False)
        crowd = context.asked.clients > 1 or context.asked.plain_clients > 0 or context.asked.mixed_strategies
        self._client = LoadClient(
            context,
            config,
            module="apps.many" if crowd else "apps.client",
            connections=context.asked.clients,
        )
        self.services: list[Service] = [*self._agents.values(), self._orchestra, faults, self._client]
        self._at, self._next = source, destination
        context.watched["server"] = self._server_pid

    def _server_pid(self) -> int | None:
        """The server's process, seen from here."""
        return next(iter(children(self._agents[self._at].container_pid)), None)

    def move(self) -> dict[str, Any]:
        """Move the server to the other edge, by the orchestrator or by the host alone."""
        asked = self._context.asked
        if RULES[asked.strategy].notice:
            outcome = order_move(
                self._context,
                self._orchestra,
                asked.strategy,
                forwarding=asked.forwarding,
                source=self._at,
                destination=self._next,
            )
        else:
            outcome = self._agents[self._at].move()
        if not asked.faults:
            detail = moved(outcome)
            self._at, self._next = self._next, self._at
            return detail
        # where the server is then is for the captures to tell
        return {key: outcome.get(key) for key in ("outcome", "error", "transferred_bytes")}

    # --- faults ------------------------------------------------------------------------------

    def _player(self, part: str) -> Agent | Orchestra:
        return self._orchestra if part == "orchestrator" else self._agents[self._context.part(part)]

    def program(self, part: str) -> Program:
        """See ``quicferry.experiment.fault_injector.Stage``."""
        program = self._client.program if part == "client" else self._player(part).program
        if program is None:
            raise FerryError(f"the {part} does not run")
        return program

    def expect_end(self, part: str) -> None:
        """See ``Stage``."""
        self._player(part).life.end()

    def start_again(self, part: str) -> None:
        """See ``Stage``."""
        player = self._player(part)
        player.life.begin()
        player.start()
        player.wait_ready(ASK_S)

    def container_pid(self, part: str) -> int:
        """See ``Stage``."""
        return self._agents[self._context.part(part)].container_pid


def make_cast(context: RunContext) -> QuicCast:
    """The cast of a QUIC run."""
    return QuicCast(context)
