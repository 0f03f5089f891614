"""The deployment of baselines whose server moves, whose name is updated, and whose client comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from apps.client import workloads
from apps.config import SERVER_NAME, ClientConfig
from apps.deployment.client_service import client_config, clients_of
from apps.deployment.quic import Credentials
from apps.deployment.services import AgentService, OrchestratorService, Together, moved, order_move
from baselines.dns.services import NameServer, NameUpdater, make_key
from quicferry.errors import MigrationError
from quicferry.events import Event
from quicferry.experiment.context import RunContext, Service
from quicferry.experiment.itinerary import stops
from quicferry.strategies import Strategy

#: A move order has a strategy: this is the one in which clients are told nothing beforehand.
UNANNOUNCED = Strategy.SYMMETRIC
#: How long attempts, time-outs and answers may take at the end, besides the life of the name's old record.
PATIENCE_S = 15.0
ClientConfigMaker = Callable[[RunContext, ClientConfig], ClientConfig]


def patience_s(context: RunContext) -> float:
    """How long a client waits at the end for what is open: an old record must be able to run out."""
    spec = context.spec
    return PATIENCE_S + spec.dns_ttl_s + 4 * spec.request_timeout_ms / 1e3


class DnsDeployment:
    """Agents, an orchestrator, a name server with its updater, a client that resolves the name.

    ``server`` and ``client`` are modules to run; ``config`` makes the client's configuration.
    """

    def __init__(
        self,
        context: RunContext,
        *,
        server: str,
        client: str,
        config: ClientConfigMaker,
        tickets: bool = False,
    ) -> None:
        self._context = context
        source, destination = context.part("source"), context.part("destination")
        self._route = stops(context.topology, context.spec)
        self._done = 0  # moves
        self._served_at = ""  # the server's address that the latest answer came from
        if context.spec.moves > 1:
            context.listeners.append(self._listen)
        edges = list(dict.fromkeys([source, destination, *self._route]))
        issue = Credentials(context).issue
        tls = issue(SERVER_NAME)
        key = make_key(context)

        def agent(edge: str) -> AgentService:
            peers = [peer for peer in edges if peer != edge]
            return AgentService(
                context, edge, peers, issue(edge), tls, module=server, plain=True, tickets=tickets
            )

        self._updater = NameUpdater(context, key)
        self._orchestrator = OrchestratorService(context, edges, issue(context.part("orchestrator")))
        self.services: list[Service] = [
            NameServer(context, key),
            self._updater,
            Together([*map(agent, edges)]),
            self._orchestrator,
            clients_of(
                context,
                config(context, client_config(context, tls.authority)),
                module=client,
            ),
        ]

    def move(self) -> dict[str, Any]:
        """Move the server by the orchestrator's order, then tell the name server.

        If another move follows, return when a client is served at the new place.
        """
        context = self._context
        here, destination = self._route[self._done : self._done + 2]
        detail = moved(
            order_move(
                context,
                self._orchestrator,
                UNANNOUNCED,
                forwarding=False,
                source=here,
                destination=destination,
            )
        )
        self._done += 1
        other = context.topology.other_service_addresses.get(destination, "")
        self._updater.update(context.service_endpoint(destination).host, other)
        if self._done < context.spec.moves:
            self._await_service(str(context.service_endpoint(destination)))
        return detail

    def _listen(self, event: Event) -> None:
        if event.name == "client.response.received":
            self._served_at = str(event.detail.get("server"))

    def _await_service(self, address: str) -> None:
        """Wait until an answer comes from there: a move before that would not be this client's second."""
        spec = self._context.spec
        asks_within_s = workloads.longest_pause_s(spec.workload, spec.interval_ms)
        deadline_s = time.monotonic() + patience_s(self._context) + asks_within_s
        while self._served_at != address:
            if time.monotonic() > deadline_s:
                raise MigrationError(
                    f"no client was served at {address} after the move",
                    hint="see client.log and the captures",
                )
            time.sleep(0.01)
