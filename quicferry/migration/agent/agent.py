"""The node agent: one per edge host, serves orchestrator and other agents, keeps the host's container.

It runs in the edge host's namespaces and owns what is there: the container with the server, the
engines, the tap and the waiting room. Which side of a move it is on depends on the order.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Protocol

from quicferry.errors import CommandFailed, FerryError, InvalidInput, MigrationError, Unsupported
from quicferry.events import EventLog
from quicferry.migration import control
from quicferry.migration.agent.config import CONFIG_INSIDE, AgentConfig, LocalMove, ServerCommand
from quicferry.migration.agent.context import Host
from quicferry.migration.agent.destination import DestinationSide
from quicferry.migration.agent.failpoints import DamagingClient, DamagingSender, stopping
from quicferry.migration.agent.source import SourceSide
from quicferry.migration.container.beneath import (
    directory_beneath,
    names_beneath,
    read_beneath,
    write_beneath,
)
from quicferry.migration.datagrams.forwarder import Forwarder
from quicferry.migration.datagrams.icmp import hold_back_port_unreachable
from quicferry.migration.datagrams.moving_address import MovingAddress
from quicferry.migration.datagrams.waiting_room import WaitingRoom
from quicferry.migration.engines.base import (
    INLINE_BYTES,
    Engine,
    EngineContext,
    ServesPages,
    ServesTunnel,
    ServiceContainer,
)
from quicferry.migration.engines.registry import create, implementation_of
from quicferry.migration.journal import Journal
from quicferry.migration.memory.page_messages import PageRun, ToPageSource
from quicferry.migration.order import MoveOrder
from quicferry.migration.rpc.channel import DuplexCall, RpcClient, RpcServer
from quicferry.migration.rpc.messages import (
    ABORT,
    COLLECT_FILES,
    COMMIT,
    MOVE,
    PAGES,
    PREPARE_DESTINATION,
    RECEIVE,
    START_SERVICE,
    STATUS,
    STOP_SERVICE,
    TUNNEL,
    AbortMove,
    AgentStatus,
    CollectFiles,
    Commit,
    Files,
    MoveRequest,
    Outcome,
    Prepared,
    PrepareDestination,
    Started,
    StartService,
    StatusQuery,
    Stopped,
    StopService,
    Verdict,
)
from quicferry.migration.rpc.peer import PeerClient
from quicferry.migration.rpc.tunnel_messages import TunnelMessage
from quicferry.slowness import longer
from quicferry.units import now_ns
from quicferry.urgency import Urgency

if TYPE_CHECKING:
    from quicferry.migration.memory.base_image import BaseImage

END_POLL_S = 0.01
START_REPEAT_S = 0.01  # each question costs the processor that is to start the server
STATE_DIR = Path("/run/state")  # inside the container
#: Of what a server leaves, at most so much is collected: it may have been taken over.
COLLECTED_BYTES = 64 << 20
COLLECTED_FILES = 16


class OwnedContainer(ServiceContainer, Protocol):
    """A container that the agent also ends."""

    def outside_pid(self, pid: int) -> int | None:
        """The PID by which the agent knows a process of the container; None when it is gone."""

    async def close(self) -> None:
        """End the container with everything in it."""


class NodeAgent:
    """One edge host's agent. ``await start()``, then it serves until ``await close()``.

    ``container`` and ``make_engine`` are for tests; the agent makes the real ones itself.
    """

    def __init__(
        self,
        config: AgentConfig,
        events: EventLog,
        *,
        container: OwnedContainer | None = None,
        make_engine: Callable[[str, EngineContext], Engine] = create,
    ) -> None:
        self.config = config
        self.events = events
        if config.failpoints.stop_at and events.sink is not None:
            events.sink = stopping(events.sink, config.failpoints.stop_at)
        self._given_container = container
        self._make_engine = make_engine
        self._identity = config.tls.load()
        self._engines: dict[str, Engine] = {}
        self._peers: dict[str, RpcClient] = {}
        self._starting = asyncio.Lock()
        self._ahead: asyncio.Future[dict[str, object]] | None = None  # the server, before anybody ordered it
        self._damaging = DamagingSender() if "pages" in config.failpoints.damage else None
        self.rpc = RpcServer(self._identity, config.listen, config.detour_rtt_ms / 1e3)

    async def start(self) -> None:
        """Make the container and serve. Raises ``MigrationError`` or ``Unsupported``."""
        config = self.config
        if self._given_container is not None:
            self.container: OwnedContainer = self._given_container
        else:
            # not at the top: a test on a fake container must not need what a real one needs
            from quicferry.migration.container.container import Container
            from quicferry.migration.container.oci_container import OciContainer
            from quicferry.migration.container.podman_container import PodmanContainer

            record = Path(config.container_record) if config.container_record is not None else None
            if config.oci_readable is None:
                self.container = await Container.create(config.edge, record=record)
            else:
                kind = PodmanContainer if config.oci_by_podman else OciContainer
                self.container = await kind.make(
                    config.edge, config.oci_readable, record=record, given=config.oci_files
                )
        # what an earlier agent's container holds may have been put there by the server in it
        with directory_beneath(self.container.path("/"), PurePosixPath(STATE_DIR), make=True):
            pass
        self.control = await control.ControlClient.open(config.control)
        if config.start_ahead and config.moving_address is None:  # with one, it listens there only
            self._ahead = asyncio.ensure_future(self._start(config.service, longer(config.start_timeout_s)))
        self._forwarder, self._room = self._datagram_helpers()
        if self._room is not None and config.service_address is not None:
            try:
                await asyncio.to_thread(hold_back_port_unreachable, config.service_address.port)
            except (CommandFailed, Unsupported) as error:
                # clients here use unconnected sockets, which do not hear of ICMP errors
                sys.stderr.write(f"agent {config.edge}: ICMP errors are not held back: {error}\n")
        self._address: MovingAddress | None = None
        if config.moving_address is not None:
            self._address = MovingAddress(config.edge, config.moving_address, self.events)
            await self._address.start()
        host = self.host = Host(
            edge=config.edge,
            events=self.events,
            control=self.control,
            container=self.container,
            engine=self._engine,
            peer=self._peer,
            journal=Journal(Path(config.journal) if config.journal is not None else None),
            forwarder=self._forwarder,
            room=self._room,
            address=self._address,
            linger_s=config.linger_s,
            urgency=Urgency(self._server_outside if self._given_container is None else None),
        )
        if config.early_visitors and self._room is not None:
            self._room.prepare_early()
        self.source = SourceSide(host)
        self.destination = DestinationSide(host)
        host.urgency.take_back()
        await self.destination.recover()
        self._serve_methods()
        await self.rpc.start()

    async def recover(self) -> Outcome | None:
        """Finish a move away from here that an earlier agent was killed in; None when there was none."""
        return await self.source.recover()

    def _server_outside(self) -> int | None:
        """The server's process as this one knows it."""
        pid = self.container.service_pid
        return self.container.outside_pid(pid) if pid is not None else None

    def _datagram_helpers(self) -> tuple[Forwarder | None, WaitingRoom | None]:
        """The forwarder and the waiting room of this host; None, None without client interfaces."""
        config = self.config
        if not config.client_interfaces:
            return None, None
        if config.service_address is None:
            raise InvalidInput(
                f"the agent of {config.edge} has client_interfaces but no service_address",
                hint="give both or neither",
            )
        sources = config.forward_from or [endpoint.host for endpoint in config.peers.values()]
        service = config.service_address
        forwarder = Forwarder(config.client_interfaces, service.port, ipv6=service.is_ipv6)
        room = WaitingRoom(
            config.waiting_room,
            sources,
            config.service_address,
            config.client_interfaces,
            capacity=config.waiting_room_capacity,
            hand_on=forwarder.hand_on,
        )
        return forwarder, room

    def _serve_methods(self) -> None:
        """Register a handler for every method of ``rpc.messages``, with those who may call it.

        Handlers narrow it further where a method belongs to one move: its source, its destination.
        """
        orchestrators, edges = self.config.orchestrators, list(self.config.peers)
        self.rpc.unary(STATUS, self._status, [*orchestrators, *edges])
        self.rpc.unary(START_SERVICE, self._start_service, orchestrators)
        self.rpc.unary(STOP_SERVICE, self._stop_service, orchestrators)
        self.rpc.unary(PREPARE_DESTINATION, self._prepare_destination, [*orchestrators, *edges])
        self.rpc.unary(MOVE, self._move, orchestrators)
        self.rpc.unary(ABORT, self._abort, [*orchestrators, *edges])
        self.rpc.unary(COMMIT, self._commit, edges)
        self.rpc.unary(COLLECT_FILES, self._collect_files, orchestrators)
        self.rpc.duplex(RECEIVE, self.destination.receive, edges)
        self.rpc.duplex(PAGES, self._pages, edges)
        self.rpc.duplex(TUNNEL, self._tunnel, edges)

    def _check_party(self, caller: str, source: str | None) -> None:
        """Raise ``MigrationError`` when an edge speaks about a move of which it is not the source."""
        if caller not in self.config.orchestrators and source is not None and caller != source:
            raise MigrationError(f"{caller} has no say in a move away from {source}")

    # --- what the sides look up ----------------------------------------------------------------

    def _engine(self, name: str) -> Engine:
        """The engine of that name on this host; one object for all moves."""
        if name not in self._engines:
            context = EngineContext(
                edge=self.config.edge,
                container=self.container,
                control=self.control,
                events=self.events,
                state_dir=STATE_DIR,
                standby=self,
                before_resume=self._let_in,
                after_freeze=self._leave_address,
                lease_of=self.destination.lease_of,
                address_of=lambda edge: self._peer(edge).endpoint.host,
                keep_tcp=self.config.keep_tcp,
                base_image=self._base_image if self.config.base_image is not None else None,
                open_pages=self._open_pages,
                open_tunnel=self._open_tunnel,
                inline_bytes=0 if self.config.failpoints.state_in_files else INLINE_BYTES,
            )
            self._engines[name] = self._make_engine(name, context)
        return self._engines[name]

    async def _base_image(self) -> BaseImage:
        """The base image of this version's servers. Raises ``MigrationError``."""
        # not at the top, see ``start``
        from quicferry.migration.container.oci_container import OciContainer
        from quicferry.migration.memory.twin import NAME, OWN_NETWORK, base_of, in_a_container

        command = self.config.base_image
        assert command is not None
        files = _files_of(command)
        readable = self.config.oci_readable

        def in_oci() -> Awaitable[OciContainer]:
            return OciContainer.make(NAME, readable or (), enter=OWN_NETWORK)

        make, kind = (in_a_container, "") if readable is None else (in_oci, "oci")
        ready = self.config.server_ready
        return await base_of(command.argv, command.env or {}, files, ready, make, kind)

    def _open_pages(self, edge: str, timeout_s: float, detour: bool) -> DuplexCall[ToPageSource, PageRun]:
        """Open a stream for pages to that edge's engine, over the detour if told so."""
        peer = self._peer(edge)
        if detour and isinstance(peer, PeerClient):
            return peer.open_detour(PAGES, timeout_s=timeout_s)
        return peer.open(PAGES, timeout_s=timeout_s)

    def _order_of(self, caller: str) -> MoveOrder:
        """The move whose memory ``caller`` may read: its destination. Raises ``MigrationError``."""
        order = self.source.order
        if order is None or caller != order.destination:
            raise MigrationError(f"{self.config.edge} has no memory that {caller} may have")
        return order

    async def _pages(
        self,
        requests: AsyncIterator[ToPageSource],
        send: Callable[[PageRun], Awaitable[None]],
        caller: str,
    ) -> None:
        """Serve one stream for memory that stayed here (method ``Pages``)."""
        order = self._order_of(caller)
        engine = self._engine(implementation_of(order))
        if not isinstance(engine, ServesPages):
            raise MigrationError(f"the engine {implementation_of(order)} leaves no memory behind")
        if self._damaging is not None:
            send = self._damaging.around(send)
        await engine.serve_pages(order.epoch, requests, send)

    def _open_tunnel(self, edge: str, timeout_s: float) -> DuplexCall[TunnelMessage, TunnelMessage]:
        """Open a stream for the bytes of CRIU's page server to that edge's engine."""
        return self._peer(edge).open(TUNNEL, timeout_s=timeout_s)

    async def _tunnel(
        self,
        requests: AsyncIterator[TunnelMessage],
        send: Callable[[TunnelMessage], Awaitable[None]],
        caller: str,
    ) -> None:
        """Serve one stream for the bytes of CRIU's page server (method ``Tunnel``)."""
        order = self._order_of(caller)
        engine = self._engine(implementation_of(order))
        if not isinstance(engine, ServesTunnel):
            raise MigrationError(f"the engine {implementation_of(order)} has no page server")
        await engine.serve_tunnel(order.epoch, requests, send)

    async def _leave_address(self) -> None:
        """Take the moving address off this host; the engine calls it directly after the freeze."""
        # what reached the kernel until now is in the process's sockets and moves with them; what came
        # later would be acknowledged here, and its copy at the destination would never see it
        if self.host.address is not None:
            await self.host.address.leave()

    def _let_in(self) -> None:
        """Ask for the commit, announce the moving address and replay waiting datagrams.

        The engine calls it directly before the server resumes.
        """
        self.destination.ask_for_commit()
        if self._address is not None and self.destination.order is not None:
            self._address.announce(2 * self.destination.order.epoch)
        if self._room is not None:
            self._room.open()

    def _peer(self, name: str) -> RpcClient:
        """The channel to another edge's agent, opened when it is first asked for. Raises ``InvalidInput``."""
        if name not in self._peers:
            if name not in self.config.peers:
                raise InvalidInput(
                    f"the agent of {self.config.edge} knows no edge {name!r}",
                    hint="it knows " + ", ".join(self.config.peers),
                )
            damage = frozenset(self.config.failpoints.damage)
            kind = DamagingClient if damage else PeerClient
            peer = kind(
                self._identity,
                name,
                self.config.peers[name],
                self.config.detours.get(name),
                self.config.detour_rtt_ms / 1e3,
            )
            if isinstance(peer, DamagingClient):
                peer.damage = damage
            peer.connect()
            self._peers[name] = peer
        return self._peers[name]

    # --- the server's process ------------------------------------------------------------------

    async def start_standby(self, timeout_s: float) -> None:
        """Start the standby server and wait until it answers as one; see ``base.StandbyHooks``."""
        if self.config.standby is None:
            raise InvalidInput(
                f"the agent of {self.config.edge} has no command for a standby server",
                hint="set `standby` in its configuration",
            )
        if self.container.service_pid is not None:
            status = await self.control.ask(control.Status(), timeout_s)
            if not status.get("standby"):
                raise MigrationError(f"a server already serves at {self.config.edge}")
            return
        status = await self._start(self.config.standby, timeout_s)
        if not status.get("standby"):
            raise MigrationError(f"the standby server at {self.config.edge} serves already")

    async def _start(self, command: ServerCommand, timeout_s: float) -> dict[str, object]:
        """Start a server; returns its answer to ``Status``. Raises ``MigrationError`` if it ends at once."""
        async with self._starting:
            if self.container.service_pid is not None:
                raise MigrationError(f"a server already runs at {self.config.edge}")
            files = {self.container.place_of(name): data for name, data in _files_of(command).items()}
            write_beneath(self.container.path("/"), files)
            await self.container.start(command.argv, env=command.env)
            asking = asyncio.ensure_future(
                self.control.ask(control.Status(), timeout_s, repeat_s=START_REPEAT_S)
            )
            while not asking.done():
                await asyncio.wait([asking], timeout=0.1)
                if not asking.done() and self.container.service_pid is None:
                    asking.cancel()
                    await asyncio.wait([asking])
                    raise MigrationError(
                        f"the server at {self.config.edge} ended at once",
                        hint="look at its log: run its command by hand",
                    )
            return asking.result()

    async def _start_service(self, request: StartService, caller: str) -> Started:
        """Start the server, or wait for one that is being started (method ``StartService``)."""
        starting, self._ahead = self._ahead, None
        if starting is not None:
            server = await starting
        else:
            server = await self._start(self.config.service, longer(self.config.start_timeout_s))
        return Started(pid=self.container.service_pid or 0, t_ns=now_ns(), server=server)

    async def _stop_service(self, request: StopService, caller: str) -> Stopped:
        """Stop the server and return its closing summary (method ``StopService``)."""
        summary: dict[str, object] = {}
        timeout_s = longer(request.timeout_s)
        if self.container.service_pid is not None:
            try:
                summary = await self.control.ask(control.Stop(), timeout_s)
            except FerryError as error:
                summary = {"error": str(error)}
            await self._let_it_end(timeout_s / 4)
            await self.container.stop_service(grace_s=timeout_s)
        return Stopped(summary=summary)

    async def _let_it_end(self, within_s: float) -> None:
        """Give a server that was told to stop the time to write its closing event before any signal."""
        for _ in range(round(within_s / END_POLL_S)):
            if self.container.service_pid is None:
                return
            await asyncio.sleep(END_POLL_S)

    # --- the other methods ---------------------------------------------------------------------

    async def _status(self, request: StatusQuery, caller: str) -> AgentStatus:
        """Answer with this agent's view of its latest move (method ``Status``)."""
        journal = self.host.journal
        latest = journal.latest
        machine = self.destination.machine if latest and latest.part == "destination" else self.source.machine
        server: dict[str, object] = {}
        if request.ask_server:
            try:
                server = await self.control.ask(control.Status(), 0.5)
            except FerryError as error:
                server = {"error": str(error)}
        return AgentStatus(
            edge=self.config.edge,
            service_pid=self.container.service_pid,
            epoch=journal.epoch,
            part=latest.part if latest is not None else None,
            step=machine.step,
            server=server,
            as_source=journal.step_in(request.epoch or 0, "source"),
            as_destination=journal.step_in(request.epoch or 0, "destination"),
        )

    async def _prepare_destination(self, request: PrepareDestination, caller: str) -> Prepared:
        """Prepare this host as the destination (method ``PrepareDestination``)."""
        self._check_party(caller, request.order.source)
        self.source.check_over()
        return await self.destination.prepare(request.order)

    async def _move(self, request: MoveRequest, caller: str) -> Outcome:
        """Move the server away from this host (method ``Move``)."""
        return await self.source.move(request.order)

    async def move_locally(self, move: LocalMove) -> Outcome:
        """Move the server by this host's own decision, without an orchestrator."""
        order = move.order(self.config.edge, self.host.journal.epoch + 1)
        self.events.emit(
            "migration.ordered",
            epoch=order.epoch,
            strategy=order.strategy,
            engine=order.engine,
            source=order.source,
            destination=order.destination,
        )
        return await self.source.move(order)

    @property
    def is_moving(self) -> bool:
        """Whether a move goes on in which this host takes part."""
        return not (self.source.machine.is_over and self.destination.machine.is_over)

    async def _abort(self, request: AbortMove, caller: str) -> Verdict:
        """Give up as the destination, and answer with the verdict (method ``AbortMove``)."""
        self._check_party(caller, self.destination.source_of(request.epoch))
        return await self.destination.abort(request.epoch, request.reason)

    async def _commit(self, request: Commit, caller: str) -> Verdict:
        """Learn that the source gives up, and answer with the verdict (method ``Commit``)."""
        self._check_party(caller, self.destination.source_of(request.epoch))
        return await self.destination.commit(request.epoch)

    async def _collect_files(self, request: CollectFiles, caller: str) -> Files:
        """Read the configured files of the container (method ``CollectFiles``)."""
        files: dict[str, bytes] = {}
        root = self.container.path("/")
        for pattern in self.config.collect:
            try:
                found = names_beneath(root, PurePosixPath(self.container.place_of(pattern)))
                for path in found[:COLLECTED_FILES]:
                    known_as = str(PurePosixPath(pattern).parent / path.name)
                    files[known_as] = read_beneath(root, path, COLLECTED_BYTES)
            except (OSError, MigrationError) as error:
                sys.stderr.write(f"agent {self.config.edge}: {pattern} is not collected: {error}\n")
        return Files(files=files)

    async def close(self) -> None:
        """End everything: moves, RPC, the container with the server."""
        if self._ahead is not None:
            self._ahead.cancel()
            await asyncio.gather(self._ahead, return_exceptions=True)
        await self.source.close()
        await self.destination.close()
        # without a grace: gRPC would first ask every caller for a sign of life, a round trip each
        await self.rpc.stop(grace_s=0.0)
        for peer in self._peers.values():
            await peer.close()
        if self._forwarder is not None:
            self._forwarder.close()
        if self._room is not None:
            self._room.close()
        self.control.close()
        if self._address is not None:
            await self._address.close()
        await self.container.close()


def _files_of(command: ServerCommand) -> dict[str, bytes]:
    """What is put into the container before the server starts, by path."""
    return {} if command.config is None else {CONFIG_INSIDE: Path(command.config).read_bytes()}
