"""``mptcp`` for the registry: which services there are, and how the server's namespace moves.

CRIU cannot move an MPTCP socket. So the server has a network namespace of its own, and that moves,
process, sockets and all: it is unplugged at the source, stands still for as long as an engine would
need to move the process, and is plugged in at the destination. No state crosses the network and the
process never changes its host; what is real is what the network and the client see of it.

* make before break: the new address is plugged in and announced, and the clients' subflows to it
  stand, before the server is frozen;
* break before make: the namespace is unplugged first. The old address lives on inside, without a
  plug, until the new subflows stand, for ADD_ADDR must be sent from an address that the client knows.
"""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
from pyroute2 import IPRoute

from apps.config import SERVER_NAME, ServerConfig
from apps.deployment.client_service import client_config, clients_of
from apps.deployment.quic import Credentials
from apps.deployment.services import CONTROL, every_address
from baselines.addresses import first_hops, free_address
from baselines.mptcp import path_manager
from baselines.mptcp.orders import Orders
from baselines.mptcp.pod import Plug, Pod, netlink_in, start_argv, wait_for_namespace
from baselines.registry import MANY_CLIENTS, Baseline
from baselines.tcp_dns.config import TcpClientConfig
from quicferry.errors import FerryError, InvalidInput, MigrationError
from quicferry.events import EventLog, read_events
from quicferry.experiment.context import SERVICE_PORT, Program, RunContext, Service
from quicferry.experiment.service_probes import IPPROTO_MPTCP
from quicferry.migration import control
from quicferry.model import Endpoint
from quicferry.process import Popen
from quicferry.record import PLACE_BY_TIME
from quicferry.strategies import Strategy
from quicferry.units import NS_PER_MS, NS_PER_S, now_ns

JOIN_S = 5.0  # until the clients' subflows stand
ORDER_S = 5.0
#: Plugging in takes 1 to 4 ms; it is begun that much before the server is to go on.
PLUG_LEAD_NS = 5 * NS_PER_MS
#: The connection is to outlive the move: neither end gives it up by itself.
REQUEST_TIMEOUT_MS = 60_000.0


class PodServer:
    """The server in its namespace, plugged in at the source."""

    name = "server"

    def __init__(self, context: RunContext, plugs: dict[str, Plug], config: ServerConfig) -> None:
        self._context = context
        self._plugs = plugs
        self._config = config
        self._config_file = context.write_config(self.name, config)
        self._holder: Popen[bytes] | None = None
        self._opened = contextlib.ExitStack()
        self.program: Program | None = None

    def start(self) -> None:
        context = self._context
        source = context.part("source")
        pid = context.emulator.pid(source)
        for host in context.topology.clients:
            path_manager.prepare(context.emulator.pid(host))
        self._holder = context.emulator.spawn(source, start_argv())
        wait_for_namespace(self._holder, pid)
        path_manager.prepare(self._holder.pid)
        self.pod = Pod(self._holder.pid)
        self.manager = path_manager.PathManager(self._holder.pid)
        for edge, plug in self._plugs.items():
            self.pod.add(plug, context.emulator.pid(edge))
            self._route(edge, plug)
        self.pod.attach(self._plugs[source])
        self.subflows = path_manager.Subflows(self._holder.pid)
        self.orders = Orders(self._holder.pid, CONTROL)
        for opened in (self.pod, self.manager, self.subflows, self.orders):
            self._opened.callback(opened.close)
        enter = ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--"]
        argv = [*enter, *context.module("baselines.mptcp.server", self._config_file)]
        self.program = context.start(self.name, source, argv, lambda _: None)

    def _route(self, edge: str, plug: Plug) -> None:
        """Make the neighbours of an edge forward what is for the server's address there to the edge."""
        context = self._context
        address = context.topology.service_addresses[edge]
        for node, ways in first_hops(context.topology, [edge]).items():
            if ways[edge] != address:
                continue  # further away: it has a route to the edge's network, in which the address is
            netlink: IPRoute = netlink_in(context.emulator.pid(node))
            try:
                netlink.route(
                    "replace", family=plug.family, dst=f"{plug.address}/{plug.bits}", gateway=address
                )
            finally:
                netlink.close()

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        try:
            self.orders.ask(control.Status(), timeout_s)
        except MigrationError as error:
            raise MigrationError(
                f"the server did not start: {self.program.last_words()}", hint=f"see {self.program.log.name}"
            ) from error

    def freeze(self) -> int:
        """The server stops serving, then the process stops; returns the moment (CLOCK_MONOTONIC ns)."""
        assert self.program is not None
        order = control.Freeze(epoch=1, strategy=Strategy.SYMMETRIC, server_first=False)
        frozen_ns = int(self.orders.ask(order, ORDER_S)["t_ns"])
        self.program.is_held = True
        self.program.process.send_signal(signal.SIGSTOP)
        return frozen_ns

    def resume(self, edge: str) -> None:
        """Let the process run again, and serve."""
        assert self.program is not None
        self.program.process.send_signal(signal.SIGCONT)
        self.program.is_held = False
        self.orders.ask(
            control.Resume(epoch=1, edge=edge, strategy=Strategy.SYMMETRIC, server_first=False), ORDER_S
        )

    def stop(self) -> None:
        if self.program is not None:
            with contextlib.suppress(FerryError):
                self.program.process.send_signal(signal.SIGCONT)
                self.orders.ask(control.Stop(), ORDER_S)
                self.program.wait(ORDER_S)
            self.program.end()
        with contextlib.suppress(OSError):  # a server that failed early has written no event
            for event in read_events(Path(self._config.events)):
                self._context.collect(event)
        self._opened.close()
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()


class MptcpDeployment:
    """A server in a namespace that moves, and a client. There are no agents and no orchestrator."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        spec = context.spec
        if spec.downtime_ms is None:
            raise InvalidInput(
                "it is not known how long the server is to stand still", hint="give --downtime-ms"
            )
        self._downtime_ns = round(spec.downtime_ms * NS_PER_MS)
        source, destination = context.part("source"), context.part("destination")
        plugs: dict[str, Plug] = {}
        for number, edge in enumerate((source, destination), 1):
            # in the edge's own network, so that only the edge's neighbours need a route
            taken = [plug.address for plug in plugs.values()]
            address = free_address(context.topology, edge, taken).partition("/")[0]
            plugs[edge] = Plug(edge, number, address)
        context.endpoints = {edge: Endpoint(plug.address, SERVICE_PORT) for edge, plug in plugs.items()}
        context.place_by = PLACE_BY_TIME
        self._old, self._new = plugs[source], plugs[destination]
        tls = Credentials(context).issue(SERVER_NAME)
        config = ServerConfig(
            edge=source,
            listen=Endpoint(every_address(context), SERVICE_PORT),
            control=CONTROL,
            events=str(context.paths.logs / "server.jsonl"),
            fence="",
            certificate=tls.certificate,
            key=tls.key,
            response_bytes=spec.response_bytes,
            memory_mib=spec.memory_mib,
            dirty_mib_s=spec.dirty_mib_s,
        )
        self._server = PodServer(context, plugs, config)
        load = msgspec.structs.asdict(client_config(context, tls.authority))
        client = TcpClientConfig(
            **load,
            protocol=IPPROTO_MPTCP,
            warm=True,
            tcp_user_timeout_ms=0.0,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        self.services: list[Service] = [
            self._server,
            clients_of(context, client, module="baselines.tcp_dns.client"),
        ]

    def move(self) -> dict[str, Any]:
        """Move the namespace. Raises ``MigrationError`` when the clients do not follow."""
        spec = self._context.spec
        self._emit(
            self._old,
            "migration.ordered",
            epoch=1,
            strategy=spec.baseline,
            engine=spec.engine,
            source=self._old.edge,
            destination=self._new.edge,
        )
        connections = self._server.subflows.count(self._old.address)
        if spec.mptcp_make_before_break:
            self._attach()
            self._announce()
            self._wait_joined(connections)
            self._withdraw()
            self._detach()
            self._stand_still(self._server.freeze())
            self._server.resume(self._new.edge)
        else:
            frozen_ns = self._server.freeze()
            self._server.pod.keep(self._old)
            self._detach()
            self._stand_still(frozen_ns - PLUG_LEAD_NS)
            self._attach()
            self._stand_still(frozen_ns)
            self._server.resume(self._new.edge)
            self._announce()
            self._wait_joined(connections)
            self._withdraw()
            self._server.pod.drop(self._old)
        self._emit(self._new, "migration.finished", outcome="moved", transferred_bytes=0)
        return {}

    def _emit(self, plug: Plug, name: str, **detail: Any) -> None:
        EventLog(plug.edge, sink=self._context.collect).emit(name, **detail)

    def _stand_still(self, since_ns: int) -> None:
        left_ns = since_ns + self._downtime_ns - now_ns()
        time.sleep(max(0, left_ns) / NS_PER_S)

    def _attach(self) -> None:
        self._server.pod.attach(self._new)
        self._emit(self._new, "address.attached", address=self._new.address, edge=self._new.edge)

    def _detach(self) -> None:
        self._server.pod.detach(self._old)
        self._emit(self._old, "address.detached", address=self._old.address, edge=self._old.edge)

    def _announce(self) -> None:
        self._server.manager.announce(self._new.address)
        self._emit(self._new, "address.announced", address=self._new.address)

    def _withdraw(self) -> None:
        self._server.manager.withdraw(self._old.address)
        self._emit(self._new, "address.withdrawn", address=self._old.address)

    def _wait_joined(self, wanted: int) -> None:
        found = self._server.subflows.wait(self._new.address, wanted, JOIN_S)
        if found < wanted:
            raise MigrationError(
                f"only {found} of {wanted} connections have a subflow to {self._new.address}",
                hint="the captures show whether ADD_ADDR came and MP_JOIN was sent",
            )
        self._emit(self._new, "address.joined", address=self._new.address, subflows=found)


BASELINE = Baseline(
    name="mptcp",
    title="Multipath TCP",
    summary=(
        "TLS 1.3 over the kernel's MPTCP; the server's namespace moves, sockets and all, "
        "so no state crosses the network."
    ),
    reads=frozenset({"mptcp_make_before_break", "downtime_ms"}),
    deployment=MptcpDeployment,
    needs=("mptcp",),
    honours=MANY_CLIENTS,
    borrows_downtime=True,
)
