"""The node agents on the edges and the orchestrator, as services of a deployment.

Writes their configurations, starts them, and gives them their commands.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from apps.config import SERVER_NAME, ServerConfig
from apps.deployment.client_service import strategies_in
from apps.deployment.replies import Replies, Restarts
from quicferry.errors import FerryError, MigrationError
from quicferry.experiment.context import SERVICE_PORT, Program, RunContext, Service
from quicferry.experiment.faults import DESTINATION, SOURCE
from quicferry.experiment.itinerary import onward, stops
from quicferry.migration.agent.config import CONFIG_INSIDE, AgentConfig, LocalMove, ServerCommand
from quicferry.migration.agent.failpoints import Failpoints
from quicferry.migration.container import volumes
from quicferry.migration.container.oci_container import can_leave_memory_out
from quicferry.migration.container.volumes import ContainerFiles
from quicferry.migration.datagrams.moving_address import MovingAddressConfig
from quicferry.migration.engines.registry import (
    is_as_published,
    is_by_podman,
    runs_in_oci,
    takes_base_image,
)
from quicferry.migration.memory.base_image import ALIKE, environment, is_possible
from quicferry.migration.orchestrator import EndCommand, MoveCommand, OrchestratorConfig, StartCommand
from quicferry.migration.order import deadlines_over
from quicferry.migration.rpc.credentials import Authority, TlsFiles
from quicferry.migration.rpc.messages import Files
from quicferry.model import Endpoint, NodeKind, Topology
from quicferry.quic import Congestion
from quicferry.slowness import longer, slowness
from quicferry.spec import RunSpec
from quicferry.strategies import Carrier, StrategyName, rules_of

CONTROL = Endpoint("127.0.0.1", SERVICE_PORT + 1)
RPC_PORT = SERVICE_PORT + 2
WAITING_ROOM_PORT = SERVICE_PORT + 3
REQUESTS = Endpoint("127.0.0.1", SERVICE_PORT + 4)
SERVER_EVENTS = "/run/server.jsonl"  # inside the container
SERVER_LOGS = "/run/service-*.log"  # what a server wrote to stderr
SERVER_FENCE = "/run/server.fence"
MOVE_S = 480.0  # longer than all deadlines of a move together
ASK_S = 40.0
#: Directory of the credentials of the server whose memory is the base image.
TWIN = "base-image"
#: For a server's environment: one heap for all its threads, as agents have (docs/orchestration.md).
ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}


def uses_base_image(spec: RunSpec) -> bool:
    """Whether servers are started alike, and what equals the base image does not cross."""
    # what an image or a command starts is no twin, and may forbid what makes servers alike
    if not spec.base_image or spec.image is not None or spec.command is not None:
        return False
    dumps_without_memory = not runs_in_oci(spec.engine) or can_leave_memory_out()
    return takes_base_image(spec.engine) and dumps_without_memory and is_possible()


class AgentService:
    """The node agent of one edge, with the commands for a server and a standby there.

    ``module`` is the server's. With ``plain`` the server offers no pool, and no datagram is forwarded or
    kept waiting, as in a move without the extension. ``peers`` are the other edges, that to which the server
    goes first. With ``moves_alone`` it can move the server without an orchestrator, by ``move``. ``address``
    moves with the server, which then listens only there; with ``keep_tcp`` its TCP connections move too.
    """

    def __init__(
        self,
        context: RunContext,
        edge: str,
        peers: Sequence[str],
        tls: TlsFiles,
        server_tls: TlsFiles,
        *,
        module: str = "apps.server.server",
        plain: bool = False,
        moves_alone: bool = False,
        tickets: bool = False,
        failpoints: Failpoints | None = None,
        address: MovingAddressConfig | None = None,
        keep_tcp: bool = False,
    ) -> None:
        self.name = f"agent-{edge}"
        self.edge = edge
        self._context = context
        self._peers = peers
        self._tls = tls
        self._server_tls = server_tls
        self._module = module
        self._plain = plain
        self._moves_alone = moves_alone
        self._tickets = tickets
        self._failpoints = failpoints
        self._address = address
        self._keep_tcp = keep_tcp
        self.replies = Replies(context)
        self.program: Program | None = None
        self.container_pid = 0
        self.restarts = Restarts()

    def start(self) -> None:
        name = self.restarts.name(self.name)
        argv = self._context.module("apps.agent", self._context.write_config(name, self._config()))
        self.program = self._context.start(name, self.edge, argv, self.replies.line, dict(os.environ))

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        ready = self.replies.wait(self.program, {"ready"}, timeout_s)
        self.container_pid = int(ready["init_pid"])
        self._context.containers.add(self.edge, self.container_pid)

    def move(self) -> dict[str, Any]:
        """Have the agent move the server away without an orchestrator; returns the outcome."""
        program = self.program
        assert program is not None
        self.replies.forget()
        program.process.send_signal(signal.SIGUSR1)
        return self.outcome()

    def outcome(self) -> dict[str, Any]:
        """Wait for the end of the move that the agent itself has decided on; returns the outcome."""
        program = self.program
        assert program is not None
        kinds = {"outcome", "recovered"}
        return self.replies.wait(program, kinds, longer(MOVE_S), replaced=lambda: self.restarts.is_replaced)

    def ask_to_stop(self) -> None:
        """Let it end, without waiting for that."""
        if self.program is not None:
            self.program.ask_to_end()

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
        onwards = onward(stops(topology, context.spec), self.edge) or self._peers[:1]
        decides = self._moves_alone or context.spec.trigger == "client"
        local_moves = [
            LocalMove(
                strategy=context.spec.strategy,
                engine=context.spec.engine,
                destination=peer,
                service=context.service_endpoint(peer),
                server_first=context.spec.server_first,
                forwarding=context.spec.forwarding and not is_as_published(context.spec.engine),
                compression=context.spec.compression,
                memory_by=context.spec.memory_by,
                deadlines=deadlines_over(context.longest_rtt_ms / 1e3, slowness(), context.spec.clients),
            )
            for peer in (onwards if decides else ())
        ]
        any_address = every_address(context)
        # whoever calls by one of several ways is told the address at which he called
        room = any_address if len(self._peers) > 1 else between_edges(context, self.edge, self._peers[0])
        return AgentConfig(
            edge=self.edge,
            listen=Endpoint(any_address, RPC_PORT),
            peers={peer: Endpoint(between_edges(context, peer, self.edge), RPC_PORT) for peer in self._peers},
            detours={peer: Endpoint(topology.service_addresses[peer], RPC_PORT) for peer in self._peers},
            orchestrators=[context.part("orchestrator")],
            detour_rtt_ms=2 * context.longest_rtt_ms,  # by way of the core network, to and fro
            tls=self._tls,
            service=self._server("server", standby=False),
            standby=self._server("standby", standby=True),
            # where the orchestrator is going to order it
            start_ahead=self.edge == context.part(SOURCE) and not self.restarts.number,
            base_image=self._idle_twin() if self._uses_base_image else None,
            server_ready=SERVER_EVENTS,
            control=CONTROL,
            service_address=context.service_endpoint(self.edge),
            client_interfaces=[] if self._plain else facing_clients,
            early_visitors=self._prefers_destination and self.edge == context.part(DESTINATION),
            waiting_room=Endpoint(room, WAITING_ROOM_PORT),
            collect=[SERVER_EVENTS, SERVER_LOGS],
            on_signal=local_moves[0] if self._moves_alone else None,
            on_request=local_moves[0] if context.spec.trigger == "client" else None,
            requests=REQUESTS,
            later=local_moves[1:],
            journal=str(state / f"{self.edge}.journal"),
            container_record=str(state / f"{self.edge}.container"),
            oci_readable=(
                [str(context.configs), str(Path(self._server_tls.key).parent), *self._keys_of_twin()]
                if runs_in_oci(context.spec.engine)
                else None
            ),
            oci_by_podman=is_by_podman(context.spec.engine),
            oci_files=container_files(context.spec),
            # an agent that was started again does not fail once more
            failpoints=self._failpoints if self._failpoints and not self.restarts.number else Failpoints(),
            moving_address=self._address,
            keep_tcp=self._keep_tcp,
        )

    @property
    def _prefers_destination(self) -> bool:
        """Whether clients are told in the handshake that the server prefers the destination."""
        spec = self._context.spec
        if self._plain:
            return False
        # beside others, clients without the extension are told to connect again instead
        by_some = spec.mixed_strategies and not spec.plain_clients
        return by_some or rules_of(spec.strategy).carrier is Carrier.PREFERRED_ADDRESS

    @property
    def _uses_base_image(self) -> bool:
        return uses_base_image(self._context.spec)

    def _keys_of_twin(self) -> list[str]:
        """The directory with the key of the twin, if there is one."""
        return [str(self._context.credentials / TWIN)] if self._uses_base_image else []

    def _idle_twin(self) -> ServerCommand:
        """The server whose memory is the base image. Its key is nobody's: the image stays on the disk."""
        tls = Authority().issue(SERVER_NAME).save(self._context.credentials / TWIN, SERVER_NAME)
        config = msgspec.structs.replace(
            self._server_config(standby=False),
            listen=Endpoint(every_address(self._context), SERVICE_PORT),  # a moving address is elsewhere
            certificate=tls.certificate,
            key=tls.key,
            memory_mib=0,
            dirty_mib_s=0.0,
        )
        return self._command(self._context.write_config(f"base-image-{self.edge}", config))

    def _server(self, kind: str, *, standby: bool) -> ServerCommand:
        """The command for a server of this edge."""
        return self._command(
            self._context.write_config(f"{kind}-{self.edge}", self._server_config(standby=standby))
        )

    def _command(self, path: Path) -> ServerCommand:
        spec = self._context.spec
        if not self._uses_base_image:
            return ServerCommand(
                argv=command_of(spec.command, self._context.module(self._module, path), path)
            )
        argv = [*ALIKE, *self._context.module(self._module, Path(CONFIG_INSIDE))]
        return ServerCommand(argv=argv, env=environment({**os.environ, **ONE_HEAP}), config=str(path))

    def _server_config(self, *, standby: bool) -> ServerConfig:
        context, spec = self._context, self._context.spec
        pool = (rules_of(spec.strategy).pool or spec.mixed_strategies) and not self._plain
        return ServerConfig(
            edge=self.edge,
            listen=Endpoint(self._address.address if self._address else every_address(context), SERVICE_PORT),
            control=CONTROL,
            events=SERVER_EVENTS,
            fence=SERVER_FENCE,
            certificate=self._server_tls.certificate,
            key=self._server_tls.key,
            pool=[context.service_endpoint(edge) for edge in pool_at(context, self.edge)] if pool else [],
            preferred_address=(
                context.service_endpoint(context.part(DESTINATION)) if self._prefers_destination else None
            ),
            requests=REQUESTS if spec.trigger == "client" else None,
            strategies=strategies_in(spec),
            congestion=Congestion(spec.congestion),
            tickets=self._tickets,
            standby=standby,
            expected_connections=spec.clients,
            address_moves=self._address is not None,
            response_bytes=spec.response_bytes,
            memory_mib=spec.memory_mib,
            dirty_mib_s=spec.dirty_mib_s,
        )


def container_files(spec: RunSpec) -> ContainerFiles | None:
    """What the server's container is given of files, and may write; None: nothing but the system's."""
    if not runs_in_oci(spec.engine) or not (spec.image or spec.volumes or spec.disk_mib):
        return None
    return ContainerFiles(image=spec.image, volumes=volumes.parse(spec.volumes), disk_mib=spec.disk_mib)


def command_of(command: str | None, packaged: list[str], config: Path) -> list[str]:
    """The argument vector of the server: the packaged one, or a container's own command."""
    if command is None:
        return packaged
    words = shlex.split(command)
    if "{server}" not in words:
        return [*words, "--config", str(config)]
    return [part for word in words for part in (packaged if word == "{server}" else [word])]


def between_edges(context: RunContext, edge: str, other: str) -> str:
    """The address of ``edge`` on its own link to ``other``; where there is none, its service address."""
    for link in context.topology.links_of(edge):
        if other in (link.a, link.b):
            address = link.a_address if link.a == edge else link.b_address
            if address is not None:
                return address.partition("/")[0]
    return context.topology.service_addresses[edge]


def every_address(context: RunContext) -> str:
    """What a process listens on to be reached at all addresses of its host; :: is both IP versions."""
    return "0.0.0.0" if context.spec.ip == "4" and not _in_ipv6(context.topology) else "::"


def _in_ipv6(topology: Topology) -> bool:
    return any(":" in address for address in topology.service_addresses.values())


def pool_at(context: RunContext, edge: str) -> tuple[str, ...]:
    """The candidates that a server at an edge names: those of the topology, or all others that it visits."""
    route = stops(context.topology, context.spec)
    if context.spec.route == "to-and-fro":
        return context.topology.pool
    return tuple(dict.fromkeys(stop for stop in route if stop != edge))


def journals(context: RunContext) -> Path:
    """The folder of the journals of agents and orchestrator; each reads its own only."""
    folder = context.paths.root / "journals"
    folder.mkdir(exist_ok=True)
    return folder


class StopsWhenAsked(Service, Protocol):
    """A service that can be asked to stop before somebody waits for its end."""

    def ask_to_stop(self) -> None:
        """Let it end, without waiting for that."""


class Together:
    """Services that need nothing of each other: all are started, or asked to stop, and then waited for."""

    name = "agents"

    def __init__(self, services: Sequence[StopsWhenAsked]) -> None:
        self._services = services

    def start(self) -> None:
        for service in self._services:
            service.start()

    def wait_ready(self, timeout_s: float) -> None:
        for service in self._services:
            service.wait_ready(timeout_s)

    def stop(self) -> None:
        """End all, the last first, also when one will not; raises what was raised first."""
        problems: list[FerryError] = []
        for service in self._services:
            service.ask_to_stop()
        for service in reversed(self._services):
            try:
                service.stop()
            except FerryError as error:
                problems.append(error)
        if problems:
            raise problems[0]


class OrchestratorService:
    """The orchestrator, and through it the server's start and end."""

    name = "orchestrator"

    def __init__(self, context: RunContext, edges: list[str], tls: TlsFiles) -> None:
        self._context = context
        self._edges = edges
        self._tls = tls
        self.replies = Replies(context)
        self.program: Program | None = None
        self.restarts = Restarts()

    def start(self) -> None:
        context = self._context
        host = context.part("orchestrator")
        agents = {edge: Endpoint(context.topology.service_addresses[edge], RPC_PORT) for edge in self._edges}
        journal = str(journals(context) / f"{host}.journal")
        config = OrchestratorConfig(
            name=host, agents=agents, tls=self._tls, journal=journal, rtt_ms=context.longest_rtt_ms
        )
        name = self.restarts.name(self.name)
        argv = context.module("apps.orchestrator", context.write_config(name, config))
        self.program = context.start(name, host, argv, self.replies.line)

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        self.replies.wait(self.program, {"ready"}, timeout_s)
        if self.restarts.number:
            return  # the orchestrator before this one has started the server
        self.command(StartCommand(edge=self._context.part("source")), "started", timeout_s)

    def command(self, command: msgspec.Struct, answer: str, timeout_s: float) -> dict[str, Any]:
        """Give a command and wait for its answer. Raises ``MigrationError``."""
        assert self.program is not None
        self.replies.forget()
        self.program.tell(msgspec.json.encode(command))
        return self.replies.wait(
            self.program, {answer}, timeout_s, replaced=lambda: self.restarts.is_replaced
        )

    def stop(self) -> None:
        if self.program is None:
            return
        try:
            if self.program.process.poll() is None:
                ended = self.command(EndCommand(edges=self._edges), "ended", self._context.patience_s(ASK_S))
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


def order_move(
    context: RunContext,
    orchestrator: OrchestratorService,
    strategy: StrategyName,
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
        engine=context.spec.engine,
        source=source or context.part(SOURCE),
        destination=destination,
        service=context.service_endpoint(destination),
        server_first=context.spec.server_first,
        forwarding=forwarding,
        compression=context.spec.compression,
        memory_by=context.spec.memory_by,
        deadlines=deadlines_over(context.longest_rtt_ms / 1e3, slowness(), context.spec.clients),
    )
    return orchestrator.command(command, "outcome", longer(MOVE_S))


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
