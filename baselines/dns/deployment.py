"""The deployment of baselines whose server moves, whose name is updated, and whose client comes back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apps.config import SERVER_NAME, ClientConfig
from apps.deployment.client_service import LoadClient, client_config
from apps.deployment.quic import Credentials
from apps.deployment.services import AgentService, OrchestratorService, moved, order_move
from baselines.dns.services import NameServer, NameUpdater, make_key
from quicferry.experiment.context import RunContext, Service
from quicferry.strategies import Strategy

#: A move order has a strategy: this is the one in which clients are told nothing beforehand.
UNANNOUNCED = Strategy.SYMMETRIC
#: How long attempts, time-outs and answers may take at the end, besides the life of the name's old record.
PATIENCE_S = 15.0
ClientConfigMaker = Callable[[RunContext, ClientConfig], ClientConfig]
END_S = 10.0  # a client's time from its last answer to its exit


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
        issue = Credentials(context).issue
        tls = issue(SERVER_NAME)
        key = make_key(context)

        def agent(edge: str, peer: str) -> AgentService:
            return AgentService(
                context, edge, [peer], issue(edge), tls, module=server, plain=True, tickets=tickets
            )

        self._updater = NameUpdater(context, key)
        self._orchestrator = OrchestratorService(
            context, [source, destination], issue(context.part("orchestrator"))
        )
        self.services: list[Service] = [
            NameServer(context, key),
            self._updater,
            agent(source, destination),
            agent(destination, source),
            self._orchestrator,
            LoadClient(
                context,
                config(context, client_config(context, tls.authority)),
                module=client,
                end_s=patience_s(context) + END_S,
            ),
        ]

    def move(self) -> dict[str, Any]:
        """Move the server by the orchestrator's order, then tell the name server."""
        context = self._context
        detail = moved(order_move(context, self._orchestrator, UNANNOUNCED, forwarding=False))
        destination = context.part("destination")
        other = context.topology.other_service_addresses.get(destination, "")
        self._updater.update(context.service_endpoint(destination).host, other)
        return detail
