"""The orchestrator: decides on moves, tells the agents, and knows in the end where the server is.

It is not on the critical path: once the source agent has its order, the two agents work directly
with each other. When the source agent falls silent, the orchestrator asks both.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

import msgspec

from quicferry.errors import FerryError, InvalidInput, MigrationError
from quicferry.events import EventLog
from quicferry.migration.engines.registry import long_engines
from quicferry.migration.journal import Journal
from quicferry.migration.order import MoveOrder, PlannedMove
from quicferry.migration.rpc.channel import RpcClient, TooLate, Unreachable
from quicferry.migration.rpc.credentials import TlsFiles
from quicferry.migration.rpc.messages import (
    ABORT,
    COLLECT_FILES,
    MOVE,
    PREPARE_DESTINATION,
    START_SERVICE,
    STATUS,
    STOP_SERVICE,
    AbortMove,
    AgentStatus,
    CollectFiles,
    Files,
    MoveRequest,
    Outcome,
    PrepareDestination,
    Started,
    StartService,
    StatusQuery,
    StopService,
)
from quicferry.migration.states import ORCHESTRATOR, MoveMachine, Signal, Step
from quicferry.model import Endpoint

CONNECT_S = 25.0
ASK_S = 1.0
START_S = 30.0
STOP_S = 5.0
ASK_AGAIN_S = 0.2


class OrchestratorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All an orchestrator is told, as a JSON file."""

    name: str  # this host's name, also the name in its certificate
    agents: dict[str, Endpoint]  # edge name -> RPC endpoint
    tls: TlsFiles
    events: str | None = None  # its event file; None: JSON lines on stdout
    journal: str | None = None  # None: what it began is forgotten when it ends


class MoveCommand(PlannedMove, frozen=True, kw_only=True, tag="move"):
    """A move, as one JSON line on the orchestrator's stdin. ``epoch`` None: the next one."""

    source: str
    epoch: int | None = None


class StartCommand(msgspec.Struct, frozen=True, kw_only=True, tag="start"):
    """Start the server at an edge."""

    edge: str


class EndCommand(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """Stop the servers at these edges, and send what the agents collect of them."""

    edges: list[str]


Command = MoveCommand | StartCommand | EndCommand


class Orchestrator:
    """Carries out moves by calling the agents. ``connect`` opens a channel to each in advance."""

    def __init__(self, config: OrchestratorConfig, events: EventLog) -> None:
        self._config = config
        self._events = events
        identity = config.tls.load()
        self._agents = {edge: RpcClient(identity, edge, endpoint) for edge, endpoint in config.agents.items()}
        self._epoch = 0
        self._journal = Journal(Path(config.journal) if config.journal is not None else None)
        self.machine = MoveMachine(ORCHESTRATOR, "orchestrator")

    async def connect(self) -> None:
        """Wait until every agent is reached. Raises ``MigrationError``."""
        await asyncio.gather(*(agent.ready(CONNECT_S) for agent in self._agents.values()))

    async def close(self) -> None:
        """Close the channels."""
        await asyncio.gather(*(agent.close() for agent in self._agents.values()))

    def agent(self, edge: str) -> RpcClient:
        """The channel to an edge's agent. Raises ``InvalidInput``."""
        if edge not in self._agents:
            raise InvalidInput(f"no agent on {edge!r}", hint="there are: " + ", ".join(self._agents))
        return self._agents[edge]

    async def start_service(self, command: StartCommand) -> Started:
        """Start the server at an edge and wait until it answers. Raises ``MigrationError``."""
        return await self.agent(command.edge).call(START_SERVICE, StartService(), timeout_s=START_S)

    async def end_services(self, command: EndCommand) -> dict[str, Files]:
        """Stop the servers; returns what the agents collected, by edge. Agents that are gone are left out."""
        collected: dict[str, Files] = {}
        for edge in command.edges:
            try:
                await self.agent(edge).call(STOP_SERVICE, StopService(), timeout_s=STOP_S)
                collected[edge] = await self.agent(edge).call(COLLECT_FILES, CollectFiles(), timeout_s=STOP_S)
            except (TooLate, Unreachable):
                continue
        return collected

    async def move(self, command: MoveCommand) -> Outcome:
        """Carry out one move; returns how it ended. Raises ``MigrationError`` when it cannot begin."""
        source, destination = self.agent(command.source), self.agent(command.destination)
        if source is destination:
            raise InvalidInput("source and destination are the same edge", hint="name two edges")
        self.machine.take(Signal.ORDERED)
        order: MoveOrder | None = None
        try:
            order = await self._order(command)
            self._note(order)
            self._events.emit(
                "migration.ordered",
                epoch=order.epoch,
                strategy=order.strategy,
                engine=order.engine,
                source=order.source,
                destination=order.destination,
            )
            # the destination first: a standby takes its time, and the source finds it ready
            await destination.call(
                PREPARE_DESTINATION,
                PrepareDestination(order=order),
                timeout_s=order.deadlines.prepare_s,
                wait=True,
            )
            self.machine.take(Signal.PREPARED)
        except FerryError:
            self.machine.take(Signal.FAILED)
            self.machine.take(Signal.SETTLED)
            if order is not None:
                self._note(order)
            raise
        self.machine.take(Signal.GO)
        self._note(order)
        outcome = await self._follow(order)
        self._note(order)
        return outcome

    def _note(self, order: MoveOrder) -> None:
        """Journal the present step of a move."""
        self._journal.note(order.epoch, "orchestrator", self.machine.step, order)

    async def recover(self) -> Outcome | None:
        """Find out how the move ended in which an earlier orchestrator was killed; None without one.

        What had not been ordered yet is called off. All else the agents do without it: it asks them.
        """
        entry = self._journal.latest
        if entry is None:
            return None
        self._epoch, self.machine.step = self._journal.epoch, entry.step
        order = entry.order
        if self.machine.is_over or order is None:
            return None
        error = MigrationError("the orchestrator was killed in the middle of the move")
        if entry.step is Step.RESTORE:
            outcome = await self._find_out(order, error, self._deadline(order))
        else:
            self.machine.take(Signal.FAILED)
            outcome = await self._call_off(order, error)
            self.machine.take(Signal.SETTLED)
        self._note(order)
        return outcome

    async def _call_off(self, order: MoveOrder, error: FerryError) -> Outcome:
        """Free what the destination prepared: the source was not told, or has refused."""
        with suppress(FerryError):
            abort = AbortMove(epoch=order.epoch, reason=str(error))
            await self.agent(order.destination).call(ABORT, abort, timeout_s=order.deadlines.commit_s)
        return Outcome(
            epoch=order.epoch,
            outcome=Step.STAYED.value,
            serves_at=order.source,
            error=str(error),
            hint=error.hint,
        )

    async def _order(self, command: MoveCommand) -> MoveOrder:
        """The order for a command, with the next epoch unless it names one."""
        epoch = command.epoch
        if epoch is None:
            answers = await asyncio.gather(
                *(
                    self.agent(edge).call(STATUS, StatusQuery(), timeout_s=ASK_S, wait=True)
                    for edge in (command.source, command.destination)
                )
            )
            epoch = max(self._epoch, *(answer.epoch for answer in answers)) + 1
        self._epoch = max(self._epoch, epoch)
        return command.order(command.source, epoch)

    def _deadline(self, order: MoveOrder) -> float:
        """When a move that is ordered now must be over, by the loop's clock."""
        limits = order.deadlines
        longest_s = (
            limits.prepare_s
            + limits.notice_s
            + limits.checkpoint_s
            + limits.transfer_s
            + 2 * limits.restore_s
            + 3 * limits.commit_s
        )
        if order.engine in long_engines():
            longest_s += limits.precopy_s + limits.pages_s
        return asyncio.get_running_loop().time() + longest_s

    async def _follow(self, order: MoveOrder) -> Outcome:
        """Order the move and wait for its outcome, asking around if the source falls silent."""
        deadline = self._deadline(order)
        longest_s = deadline - asyncio.get_running_loop().time()
        try:
            return await self._order_source(order, longest_s)
        except (TooLate, Unreachable) as error:
            return await self._find_out(order, error, deadline)

    async def _order_source(self, order: MoveOrder, timeout_s: float) -> Outcome:
        """Give the source its order and return the outcome. Raises ``TooLate``, ``Unreachable``."""
        try:
            outcome = await self.agent(order.source).call(MOVE, MoveRequest(order=order), timeout_s=timeout_s)
        except (TooLate, Unreachable):
            raise
        except FerryError as error:
            # the source agent refused: the server was not touched
            self.machine.take(Signal.ABORTED)
            return await self._call_off(order, error)
        return self._heard(outcome)

    def _heard(self, outcome: Outcome) -> Outcome:
        """Advance the state machine by an outcome."""
        signals = {Step.MOVED.value: Signal.RESUMED, Step.STAYED.value: Signal.ABORTED}
        self.machine.take(signals.get(outcome.outcome, Signal.EXPIRED))
        return outcome

    async def _find_out(self, order: MoveOrder, error: MigrationError, deadline: float) -> Outcome:
        """Ask both agents until one knows how the move ended, or the time is over.

        An order that never came to the source is repeated.
        """
        found: tuple[Signal, Step, str | None] = (Signal.EXPIRED, Step.LOST, None)
        while asyncio.get_running_loop().time() < deadline:
            answers = [await self._step_of(edge, order.epoch) for edge in (order.destination, order.source)]
            if Step.MOVED.value in answers:
                found = (Signal.RESUMED, Step.MOVED, order.destination)
                break
            if answers[1] == Step.STAYED.value:
                found = (Signal.ABORTED, Step.STAYED, order.source)
                break
            if answers[1] == Step.LOST.value:
                break
            if answers[1] == Step.IDLE.value:
                left_s = deadline - asyncio.get_running_loop().time()
                with suppress(TooLate, Unreachable):
                    return await self._order_source(order, left_s)
            await asyncio.sleep(ASK_AGAIN_S)
        signal, step, edge = found
        self.machine.take(signal)
        return Outcome(
            epoch=order.epoch,
            outcome=step.value if edge is not None else "unknown",
            serves_at=edge,
            error=str(error),
            hint=error.hint,
        )

    async def _step_of(self, edge: str, epoch: int) -> str | None:
        """An agent's step in that move: ``idle`` when it has not heard of it, None when it does not tell."""
        try:
            status: AgentStatus = await self.agent(edge).call(STATUS, StatusQuery(), timeout_s=ASK_S)
        except FerryError:
            return None
        if status.epoch == epoch:
            return status.step
        return Step.IDLE.value if status.epoch < epoch else None
