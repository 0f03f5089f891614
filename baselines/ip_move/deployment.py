"""The deployment when the service's address moves: a QUIC or a TCP server, agents, and the routers."""

from __future__ import annotations

from typing import Any

from apps.config import SERVER_NAME
from apps.deployment.client_service import client_config, clients_of
from apps.deployment.quic import Credentials
from apps.deployment.replies import Replies
from apps.deployment.services import AgentService, OrchestratorService, Together, moved, order_move
from baselines.addresses import first_hops
from baselines.dns.deployment import UNANNOUNCED, ClientConfigMaker
from baselines.ip_move.router import RouterConfig
from quicferry.experiment.context import SERVICE_PORT, Program, RunContext, Service
from quicferry.migration.datagrams.moving_address import MovingAddressConfig
from quicferry.model import Endpoint, Topology
from quicferry.record import PLACE_BY_TIME

#: in no network of any topology: of TEST-NET-1 (RFC 5737), of the documentation's prefix (RFC 3849)
SERVICE_ADDRESS, SERVICE_ADDRESS_IPV6 = "192.0.2.1", "2001:db8::1"
ROUTE_PORT = SERVICE_PORT + 4


def service_address(topology: Topology) -> str:
    """The address that moves, of the IP version of the topology's services."""
    in_ipv6 = any(":" in address for address in topology.service_addresses.values())
    return SERVICE_ADDRESS_IPV6 if in_ipv6 else SERVICE_ADDRESS


def router_configs(topology: Topology, source: str, destination: str) -> list[RouterConfig]:
    """The configuration of the process on each node that must know where the service is."""
    return [
        RouterConfig(
            vantage=node,
            listen=Endpoint(topology.addresses_of(node)[0].partition("/")[0], ROUTE_PORT),
            address=service_address(topology),
            edge=source,
            gateways=ways,
        )
        for node, ways in first_hops(topology, [source, destination]).items()
    ]


class RouterService:
    """The process on one router."""

    def __init__(self, context: RunContext, config: RouterConfig) -> None:
        self.name = f"routes-{config.vantage}"
        self._context = context
        self._config = config
        self.replies = Replies(context)
        self.program: Program | None = None

    def start(self) -> None:
        context = self._context
        argv = context.module("baselines.ip_move.router", context.write_config(self.name, self._config))
        self.program = context.start(self.name, self._config.vantage, argv, self.replies.line)

    def wait_ready(self, timeout_s: float) -> None:
        assert self.program is not None
        self.replies.wait(self.program, {"ready"}, timeout_s)

    def stop(self) -> None:
        if self.program is not None:
            self.program.end()


class IpMoveDeployment:
    """Agents, an orchestrator, a process on each router that must know where the address is, a client.

    ``server`` and ``client`` are modules to run; ``config`` makes the client's configuration. With
    ``keep_tcp`` CRIU takes the server's TCP connections along.
    """

    def __init__(
        self,
        context: RunContext,
        *,
        server: str,
        client: str,
        config: ClientConfigMaker,
        keep_tcp: bool = False,
    ) -> None:
        self._context = context
        source, destination = context.part("source"), context.part("destination")
        edges = [source, destination]
        context.endpoints = dict.fromkeys(edges, Endpoint(service_address(context.topology), SERVICE_PORT))
        context.place_by = PLACE_BY_TIME
        issue = Credentials(context).issue
        tls = issue(SERVER_NAME)
        routers = router_configs(context.topology, source, destination)
        # a node that reaches both edges by the same neighbour needs no update
        told = [config.listen for config in routers if len(set(config.gateways.values())) > 1]

        def agent(edge: str, peer: str) -> AgentService:
            address = MovingAddressConfig(
                address=service_address(context.topology), routers=told, here=edge == source
            )
            return AgentService(
                context,
                edge,
                [peer],
                issue(edge),
                tls,
                module=server,
                plain=True,
                address=address,
                keep_tcp=keep_tcp,
            )

        self._orchestrator = OrchestratorService(context, edges, issue(context.part("orchestrator")))
        self.services: list[Service] = [
            *(RouterService(context, config) for config in routers),
            Together([agent(source, destination), agent(destination, source)]),
            self._orchestrator,
            clients_of(context, config(context, client_config(context, tls.authority)), module=client),
        ]

    def move(self) -> dict[str, Any]:
        """Move the server by the orchestrator's order; its address goes with it."""
        return moved(order_move(self._context, self._orchestrator, UNANNOUNCED, forwarding=False))
