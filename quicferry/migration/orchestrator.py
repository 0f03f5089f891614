"""The orchestrator: decides on moves, tells the agents, and knows in the end where the server is.

It is not on the critical path: once the source agent has its order, the two agents work directly
with each other. When the source agent falls silent, or refuses, the orchestrator asks both. What it says
of a move is what they have said, never what it takes for likely: *moved* and *stayed* are the words of a
side, and without one the outcome is *unknown*. Then its journal leaves the move open: whoever orders
the next, or starts the orchestrator again, has it ask again.
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
from quicferry.slowness import longer

CONNECT_S = 25.0
ASK_S = 1.0
START_S = 30.0
STOP_S = 5.0
ASK_AGAIN_S = 0.2
SILENCE_S = 10.0  # an agent that has answered nothing for so long, and is needed, is named in the outcome


class OrchestratorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """All an orchestrator is told, as a JSON file."""

    name: str  # this host's name, also the name in its certificate
    agents: dict[str, Endpoint]  # edge name -> RPC endpoint
    tls: TlsFiles
    events: str | None = None  # its event file; None: JSON lines on stdout
    journal: str | None = None  # None: what it began is forgotten when it ends
    rtt_ms: float = 0.0  # round trip to the agents, by which all deadlines are longer; 0: not worth a word


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
        self._agents = {
            edge: RpcClient(identity, edge, endpoint, config.rtt_ms / 1e3)
            for edge, endpoint in config.agents.items()
        }
        self._epoch = 0
        self._journal = Journal(Path(config.journal) if config.journal is not None else None)
        self.machine = MoveMachine(ORCHESTRATOR, "orchestrator")
        self._open: MoveOrder | None = None  # a move of which no side has said how it ended

    async def connect(self) -> None:
        """Wait until every agent is reached. Raises ``MigrationError``."""
        await asyncio.gather(*(agent.ready(longer(CONNECT_S)) for agent in self._agents.values()))

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
        return await self.agent(command.edge).call(START_SERVICE, StartService(), timeout_s=longer(START_S))

    async def end_services(self, command: EndCommand) -> dict[str, Files]:
        """Stop the servers; returns what the agents collected, by edge. Agents that are gone are left out."""

        async def end(edge: str) -> Files | None:
            try:
                await self.agent(edge).call(STOP_SERVICE, StopService(), timeout_s=longer(STOP_S))
                return await self.agent(edge).call(COLLECT_FILES, CollectFiles(), timeout_s=longer(STOP_S))
            except (TooLate, Unreachable):
                return None

        # all at once: each needs two round trips, or the whole time-out
        answers = await asyncio.gather(*map(end, command.edges))
        return {edge: files for edge, files in zip(command.edges, answers, strict=True) if files is not None}

    async def move(self, command: MoveCommand) -> Outcome:
        """Carry out one move; returns how it ended. Raises ``MigrationError`` when it cannot begin."""
        source, destination = self.agent(command.source), self.agent(command.destination)
        if source is destination:
            raise InvalidInput("source and destination are the same edge", hint="name two edges")
        await self._close_open()
        self.machine.take(Signal.ORDERED)
        order: MoveOrder | None = None
        try:
            order = await self._order(command)
            # the first line stands before anybody is told anything
            self._note(order, must=True)
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
        try:
            self._note(order, must=True)
        except MigrationError as error:
            # nobody has told the source: what is prepared is called off
            self.machine.step = Step.ABORT
            outcome = await self._call_off(order, error)
            self.machine.take(Signal.SETTLED)
            return outcome
        outcome = await self._follow(order)
        self._note(order)
        return outcome

    def _note(self, order: MoveOrder, *, must: bool = False) -> None:
        """Journal the present step of a move. Raises ``MigrationError`` when it ``must`` and cannot be."""
        try:
            self._journal.note(order.epoch, "orchestrator", self.machine.step, order)
        except OSError as error:
            if must:
                raise MigrationError(
                    f"the orchestrator's journal cannot be written: {error}",
                    hint="without a record of what is ordered, nothing is ordered; is the disk full?",
                ) from error
            self._journal.remember(order.epoch, "orchestrator", self.machine.step, order)

    async def _close_open(self) -> None:
        """Ask once more how the last move ended, if nobody knew. Raises ``MigrationError``."""
        order = self._open
        if order is None:
            return
        deadline = asyncio.get_running_loop().time() + ASK_S
        outcome = await self._find_out(order, MigrationError("nobody has said how it ended"), deadline)
        if outcome.serves_at is None:
            raise MigrationError(
                f"where the server is since epoch {order.epoch} is not known: {outcome.error}",
                hint="start the agent that does not answer again; it knows",
            )
        self._note(order)

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
        if self._journal.is_damaged:
            self.machine.step = Step.RESTORE  # the line that was lost may have said that the source is told
        if self.machine.step is Step.RESTORE:
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
        return self._outcome(order, Step.STAYED, order.source, error)

    def _outcome(self, order: MoveOrder, step: Step | None, edge: str | None, error: FerryError) -> Outcome:
        """An outcome in the orchestrator's own words; without a step it is unknown."""
        return Outcome(
            epoch=order.epoch,
            outcome=step.value if step is not None else "unknown",
            serves_at=edge,
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
            return await self._refused(order, error)
        return self._heard(outcome)

    async def _refused(self, order: MoveOrder, error: FerryError) -> Outcome:
        """The source agent has refused the order, or failed at it: what it says of the move counts."""
        status = await self._status_of(order.source, order.epoch)
        if status is not None and status.as_source in (Step.IDLE, Step.STAYED) and not _has_nothing(status):
            # not begun, or brought back: in either case its server is its own
            self.machine.take(Signal.ABORTED)
            return await self._call_off(order, error)
        return await self._find_out(order, error, self._deadline(order))

    def _heard(self, outcome: Outcome) -> Outcome:
        """Advance the state machine by an outcome."""
        signals = {Step.MOVED.value: Signal.RESUMED, Step.STAYED.value: Signal.ABORTED}
        self.machine.take(signals.get(outcome.outcome, Signal.EXPIRED))
        return outcome

    async def _find_out(self, order: MoveOrder, error: FerryError, deadline: float) -> Outcome:
        """Ask both agents until one knows how the move ended, or the one that must know stays silent.

        An order that never came to the source is repeated, unless there is no server there: such a host has
        lost its records together with the server (its power), and what it says of the move is worth nothing.
        """
        clock = asyncio.get_running_loop().time
        edges = (order.destination, order.source)
        heard = dict.fromkeys(edges, clock())  # when each has answered last
        while True:
            statuses = await asyncio.gather(*(self._status_of(edge, order.epoch) for edge in edges))
            for edge, status in zip(edges, statuses, strict=True):
                if status is not None:
                    heard[edge] = clock()
            there, here = statuses
            if here is not None and _has_nothing(here):
                signal, step, serves_at = await self._said_by_destination(order, there)
            else:
                signal, step, serves_at = said_by(order, there, here)
            if signal is not None:
                self.machine.take(signal)
                self._open = None
                return self._outcome(order, step, serves_at, error)
            now = clock()
            silent = [edge for edge in edges if now - heard[edge] >= SILENCE_S]
            if now >= deadline or silent:
                self._open = order
                return self._outcome(order, None, None, _unknown(error, silent))
            if here is not None and here.as_source == Step.IDLE and not _has_nothing(here):
                with suppress(TooLate, Unreachable):
                    return await self._order_source(order, deadline - now)
            await asyncio.sleep(ASK_AGAIN_S)

    async def _said_by_destination(self, order: MoveOrder, there: AgentStatus | None) -> Said:
        """How a move ended whose source has nothing left of it, by the destination's word alone.

        A destination that serves, or is about to, finds out by itself that it may stay.
        """
        if there is not None and there.as_destination == Step.MOVED:
            return said_by(order, there, None)
        question = AbortMove(epoch=order.epoch, reason=f"nothing is left of the server at {order.source}")
        try:
            verdict = await self.agent(order.destination).call(ABORT, question, timeout_s=ASK_S)
        except FerryError:
            return None, None, None
        return (Signal.EXPIRED, Step.LOST, None) if verdict.resumed is None else (None, None, None)

    async def _status_of(self, edge: str, epoch: int) -> AgentStatus | None:
        """What an agent says of that move; None when it does not answer."""
        try:
            return await self.agent(edge).call(STATUS, StatusQuery(epoch=epoch), timeout_s=ASK_S)
        except FerryError:
            return None


Said = tuple[Signal | None, Step | None, str | None]


def said_by(order: MoveOrder, destination: AgentStatus | None, source: AgentStatus | None) -> Said:
    """How a move ended, by the words of its two sides: signal, step and who serves; no signal: not yet."""
    if destination is not None and destination.as_destination == Step.MOVED:
        return Signal.RESUMED, Step.MOVED, order.destination  # its server has heard that it stays
    if source is None:
        return None, None, None
    answers: dict[str, Said] = {
        Step.MOVED.value: (Signal.RESUMED, Step.MOVED, order.destination),
        Step.STAYED.value: (Signal.ABORTED, Step.STAYED, order.source),
        Step.LOST.value: (Signal.EXPIRED, Step.LOST, None),
    }
    return answers.get(source.as_source, (None, None, None))


def _has_nothing(source: AgentStatus) -> bool:
    """Whether the source knows nothing of a move, and has no server that could have stayed."""
    return source.as_source == Step.IDLE and source.service_pid is None


def _unknown(error: FerryError, silent: list[str]) -> MigrationError:
    """The error of a move of which nobody knows how it ended, with who does not answer."""
    if not silent:
        return MigrationError(f"{error}; the two sides have not come to an end", hint=error.hint)
    names = " and ".join(silent)
    return MigrationError(
        f"the agent of {names} has not answered for {SILENCE_S:g} s; before that: {error}",
        hint=f"start the agent of {names} again: it knows, or finds out, where the server is",
    )
