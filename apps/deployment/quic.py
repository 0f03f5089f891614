"""The deployment of a run with a strategy: agents on the edges, the orchestrator, the server, the client.

Says which services there are and in which order they start, orders the moves, and shows the fault
injector the processes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from apps.config import SERVER_NAME
from apps.deployment.client_service import ClientsApart, LoadClient, client_config
from apps.deployment.mobility import Mobility
from apps.deployment.services import ASK_S, AgentService, OrchestratorService, Together, moved, order_move
from quicferry.errors import FerryError
from quicferry.experiment.context import Program, RunContext, Service
from quicferry.experiment.fault_injector import FaultInjector
from quicferry.experiment.faults import DESTINATION, SOURCE
from quicferry.experiment.itinerary import stops
from quicferry.migration.engines.registry import is_as_published
from quicferry.migration.rpc.credentials import Authority, TlsFiles
from quicferry.process import children_of
from quicferry.spec import RunSpec
from quicferry.strategies import rules_of


def decided_by(spec: RunSpec) -> str:
    """Who decides that the server moves: ``orchestrator``, ``server`` or ``client``."""
    if spec.trigger != "auto":
        return spec.trigger
    return "orchestrator" if rules_of(spec.strategy).notice else "server"


class Credentials:
    """The certificates of one run, of two authorities: what serves clients may not call agents."""

    def __init__(self, context: RunContext) -> None:
        self._agents, self._service = Authority(), Authority()
        self._folder = context.credentials

    def issue(self, name: str) -> TlsFiles:
        """A certificate and its key, as files that live as long as the run."""
        if name == SERVER_NAME:
            # in a folder of its own: a server in an OCI container may read this one and no other
            return self._service.issue(name).save(self._folder / "service", name)
        return self._agents.issue(name).save(self._folder, name)


class QuicDeployment:
    """A ``quicferry.experiment.context.Deployment``, and the ``RunProcesses`` of its fault injector."""

    server_moves: ClassVar[bool] = True

    def __init__(self, context: RunContext) -> None:
        self._context = context
        source, destination = context.part(SOURCE), context.part(DESTINATION)
        self._route = stops(context.topology, context.spec)
        edges = list(dict.fromkeys([source, destination, *self._route]))
        issue = Credentials(context).issue
        server = issue(SERVER_NAME)
        faults = FaultInjector(context, self)
        self._agents = {
            edge: AgentService(
                context,
                edge,
                [peer for peer in edges if peer != edge],
                issue(edge),
                server,
                moves_alone=self.server_moves,
                failpoints=faults.failpoints(edge),
            )
            for edge in edges
        }
        self._orchestrator = OrchestratorService(context, edges, issue(context.part("orchestrator")))
        config = client_config(context, server.authority)
        if faults.client_refuses:
            config = msgspec.structs.replace(config, accept_moves=False)
        crowd = context.spec.clients > 1 or context.spec.plain_clients > 0 or context.spec.mixed_strategies
        self._client: LoadClient | ClientsApart
        if len(context.topology.clients) > 1:
            self._client = ClientsApart(context, config)
        else:
            self._client = LoadClient(
                context,
                config,
                module="apps.client.multi_client" if crowd else "apps.client.client",
                connections=context.spec.clients,
            )
        self.services: list[Service] = [
            Together(list(self._agents.values())),
            # when its agents listen: a connection that is refused is tried again after a pause
            self._orchestrator,
            faults,
            self._client,
        ]
        self._done = 0  # moves
        self._mobility = Mobility(context, self._client)
        context.watched["server"] = self._server_pid

    def _server_pid(self) -> int | None:
        """The server's process, seen from here."""
        return next(iter(children_of(self._agents[self._route[self._done]].container_pid)), None)

    def move(self) -> dict[str, Any]:
        """Move the server to the next edge of its route; who decides is the axis ``trigger``."""
        spec = self._context.spec
        self._mobility.before_move()
        if self._mobility.server_stays:
            return {}
        here, there = self._route[self._done : self._done + 2]
        trigger = decided_by(spec)
        if trigger == "orchestrator":
            outcome = order_move(
                self._context,
                self._orchestrator,
                spec.strategy,
                forwarding=spec.forwarding and not is_as_published(spec.engine),
                source=here,
                destination=there,
            )
        elif trigger == "client":
            agent = self._agents[here]
            agent.replies.forget()
            self._client.ask_for_move()
            outcome = agent.outcome()
        else:
            outcome = self._agents[here].move()
        self._mobility.after_move()
        if not spec.faults:
            detail = moved(outcome)
            self._done += 1
            return detail
        # where the server is after a fault is read from the captures, not from who was told what
        return {key: outcome.get(key) for key in ("outcome", "error", "transferred_bytes")}

    # --- faults ------------------------------------------------------------------------------

    def _service_of(self, part: str) -> AgentService | OrchestratorService:
        return self._orchestrator if part == "orchestrator" else self._agents[self._context.part(part)]

    def program(self, part: str) -> Program:
        """See ``quicferry.experiment.fault_kinds.RunProcesses``."""
        program = self._client.program if part == "client" else self._service_of(part).program
        if program is None:
            raise FerryError(f"the {part} does not run")
        return program

    def expect_end(self, part: str) -> None:
        """See ``RunProcesses``."""
        self._service_of(part).restarts.end()
        self.program(part).is_to_end = True

    def start_again(self, part: str) -> None:
        """See ``RunProcesses``."""
        service = self._service_of(part)
        service.restarts.begin()
        service.start()
        service.wait_ready(ASK_S)

    def container_pid(self, part: str) -> int:
        """See ``RunProcesses``."""
        return self._agents[self._context.part(part)].container_pid
