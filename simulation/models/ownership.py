"""The model of one move: source, destination, their agents, journals, messages and the clock.

Steps come from ``states.SOURCE`` and ``states.DESTINATION``. The clock is an order of moments, not a
number: the server may not begin any more, its lease is about to end, its lease has ended. The source goes
on by the clock after the last one only. What the server's process does by the clock (``_by_lease``), it
does whatever becomes of its agent.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from quicferry.migration.states import DESTINATION, ENDS, SOURCE, MoveMachine, Signal, Step, Table
from simulation.models.explorer import Edge, Model


class Faults(enum.Flag):
    """What may go wrong in an exploration."""

    NONE = 0
    LOSS = enum.auto()  # a message of the stream is lost: the stream breaks
    CRASH = enum.auto()  # SIGKILL of an agent, which is started again
    GONE = enum.auto()  # SIGKILL of an agent, and nobody starts it again before the fence is over
    PAUSE = enum.auto()  # an agent is stopped while the clock goes on
    TORN = enum.auto()  # a crash takes the last journal line with it
    UNWRITABLE = enum.auto()  # a journal line cannot be written


class Clock(enum.IntEnum):
    """What has passed."""

    LEASE_RUNS = 0
    LEASE_OVER = 1
    FENCE_DUE = 2
    FENCE_OVER = 3


class Agent(NamedTuple):
    """One agent: where it is, what its journal says, and what its machine's host does."""

    step: Step = Step.IDLE
    written: Step = Step.IDLE
    before: Step = Step.IDLE  # the journal line before the last
    up: bool = True
    serves: bool = False  # its server
    recovered: bool = False  # clocks decide nothing for a source that was killed
    working: bool = True  # False: its task has died of an error
    checked: bool = False  # destination: it has looked at the lease, and resumes next
    asked: bool = False  # destination: it has asked for the commit
    held: bool = False  # its server holds itself back: its lease is over
    kept: bool = False  # its server has heard of the commit: no lease any more
    torn: bool = False  # the end of its journal is damaged


class World(NamedTuple):
    """All of one moment."""

    source: Agent
    destination: Agent
    clock: Clock = Clock.LEASE_RUNS
    messages: frozenset[str] = frozenset()
    faults_left: int = 0


def model(faults: Faults, most: int = 2) -> Model[World]:
    """The model with these faults, at most so many of them in one story."""
    start = World(Agent(serves=True), Agent(), faults_left=most)
    return Model(
        name=f"ownership with {faults}",
        start=start,
        edges=lambda world: _edges(world, faults),
        wrong=_wrong,
        good=_good,
    )


def _wrong(world: World) -> str | None:
    if world.source.serves and world.destination.serves:
        return "two servers serve"
    if world.source.step is Step.MOVED and world.destination.step is Step.STAYED:
        return "a commit was taken back"
    return None


def _good(world: World) -> bool:
    """Exactly one server, and an agent that knows that it serves."""
    return (world.source.serves and world.source.step in (Step.STAYED, Step.IDLE)) or (
        world.destination.serves and world.destination.step is Step.MOVED
    )


def _take(agent: Agent, table: Table, *signals: Signal, written: bool = True) -> Agent:
    """Go on in the table, one journal line for each new step."""
    for signal in signals:
        machine = MoveMachine(table, "model", agent.step)
        step = machine.take(signal)
        if step is not agent.step:
            if written:
                agent = agent._replace(before=agent.written, written=step)
            agent = agent._replace(step=step)
    return agent


def _edges(world: World, faults: Faults) -> Iterator[Edge[World]]:
    if world.source.up and world.source.working:
        yield from _source(world)
    if world.destination.up and world.destination.working:
        yield from _destination(world)
    yield from _clock(world)
    yield from _restarts(world)
    if world.faults_left:
        yield from _faults(world._replace(faults_left=world.faults_left - 1), faults)


# --- the source: agent/source.py ---------------------------------------------------------------------


def _source(world: World) -> Iterator[Edge[World]]:
    source = world.source

    def to(label: str, agent: Agent, *sent: str, without: str = "") -> Edge[World]:
        messages = (world.messages - {without}) | set(sent)
        return Edge(f"source {label}", world._replace(source=agent, messages=frozenset(messages)))

    match source.step:
        case Step.IDLE:
            if world.destination.step is Step.READY:
                yield to("is ordered", _take(source, SOURCE, Signal.ORDERED, Signal.PREPARED))
        case Step.READY:
            frozen = _take(source, SOURCE, Signal.GO)._replace(serves=False)
            yield to("freezes its server", frozen)
        case Step.CHECKPOINT:
            yield to("sends the state", _take(source, SOURCE, Signal.TAKEN))
        case Step.TRANSFER:
            yield to("sends End", _take(source, SOURCE, Signal.SENT), "end")
        case Step.RESTORE:
            yield to("asks", source, "abort?")
            if "resuming" in world.messages:
                agent = _take(source, SOURCE, Signal.ASKED)
                yield to("is asked for the commit", agent, "commit", without="resuming")
            if "resumed" in world.messages:
                agent = _take(source, SOURCE, Signal.RESUMED)
                yield to("hears Resumed", agent, "commit", without="resumed")
            if world.clock is Clock.FENCE_OVER and not source.recovered:
                yield to("sees the fence pass", _take(source, SOURCE, Signal.EXPIRED))
        case Step.COMMIT:
            yield to("asks for the commit", source, "commit?")
            if "committed" in world.messages:
                yield to("hears Committed", _take(source, SOURCE, Signal.SETTLED), without="committed")
        case Step.ABORT:
            back = _take(source, SOURCE, Signal.SETTLED)._replace(serves=True)
            yield to("brings its server back", back)
    # an answer is heard by who waits for it: one to an earlier question is not
    question = {Step.RESTORE: "abort", Step.COMMIT: "commit"}.get(source.step)
    if f"{question}: never" in world.messages:
        yield to("hears: never", _take(source, SOURCE, Signal.ABORTED), without=f"{question}: never")
    if f"{question}: serves" in world.messages:
        signal = Signal.RESUMED if source.step is Step.RESTORE else Signal.SETTLED
        yield to("hears: serves", _take(source, SOURCE, signal), without=f"{question}: serves")
    if source.step in (Step.READY, Step.CHECKPOINT, Step.TRANSFER):
        failed = _take(source, SOURCE, Signal.FAILED)
        yield Edge("source fails", world._replace(source=failed), fault=True)


# --- the destination: agent/destination.py -----------------------------------------------------------


def _destination(world: World) -> Iterator[Edge[World]]:
    here = world.destination

    def to(label: str, agent: Agent, *sent: str, without: str = "") -> Edge[World]:
        messages = (world.messages - {without}) | set(sent)
        return Edge(f"destination {label}", world._replace(destination=agent, messages=frozenset(messages)))

    if here.step is Step.IDLE:
        yield to("prepares", _take(here, DESTINATION, Signal.ORDERED, Signal.PREPARED))
    if here.step is Step.READY and "end" in world.messages:
        agent = _take(here, DESTINATION, Signal.GO, Signal.SENT)
        yield to("has the whole state", agent, without="end")
    if here.step is Step.RESTORE and not here.serves and not here.checked:
        if world.clock is Clock.LEASE_RUNS:
            yield to("finds its lease running", here._replace(checked=True))
        else:
            yield to("finds its lease over", _thrown_away(here, Signal.EXPIRED))
    if here.step is Step.RESTORE and here.checked and not here.serves:
        if world.clock is Clock.LEASE_RUNS:
            yield to("resumes the server", here._replace(serves=True, checked=False))
        else:
            yield to("is refused by the server: too late", _thrown_away(here, Signal.EXPIRED))
    if here.step is Step.RESTORE and here.checked and not here.asked:
        yield to("asks for the commit", here._replace(asked=True), "resuming")
    if here.step is Step.RESTORE and here.serves:
        yield to("says Resumed", _take(here, DESTINATION, Signal.RESUMED), "resumed")
    for question in {"abort?", "commit?", "commit"} & world.messages:
        yield from _answer(world, question, to)
    if here.step is Step.COMMIT and world.source.up:
        if world.source.step in (Step.COMMIT, Step.MOVED):
            yield to("sees that the source has committed", _settled(here))
        elif world.source.step in (Step.ABORT, Step.STAYED):
            yield to("sees that the source took its server back", _thrown_away(here, Signal.EXPIRED))
    if here.step is Step.COMMIT and not world.source.up and world.clock is Clock.FENCE_DUE:
        yield to("finds the source's agent gone", _settled(here))


def _settled(agent: Agent) -> Agent:
    """The server hears of the commit, then the step is taken."""
    serves = agent.serves or agent.held
    return _take(agent._replace(kept=True, held=False, serves=serves), DESTINATION, Signal.SETTLED)


def _answer(world: World, question: str, to: object) -> Iterator[Edge[World]]:
    here = world.destination
    assert callable(to)
    if question == "abort?":
        if here.step in (Step.COMMIT, Step.MOVED):
            yield to("answers: serves", here, "abort: serves", without=question)
        elif here.step is Step.STAYED:
            yield to("answers: never", here, "abort: never", without=question)
        elif here.step is not Step.IDLE or not here.serves:
            agent = _thrown_away(here, Signal.ABORTED)
            yield to("obeys an abort", agent, "abort: never", without=question)
    elif here.step is Step.COMMIT:
        said = "committed" if question == "commit" else "commit: serves"
        yield to("hears of the commit", _settled(here), said, without=question)
    elif here.step is Step.MOVED:
        yield to("hears of the commit again", here, "commit: serves", without=question)
    elif here.step is Step.STAYED:
        yield to("denies the commit", here, "commit: never", without=question)


def _thrown_away(agent: Agent, signal: Signal) -> Agent:
    agent = agent._replace(serves=False, checked=False, held=False)
    after = _take(agent, DESTINATION, signal)
    return _take(after, DESTINATION, Signal.SETTLED) if after.step is Step.ABORT else after


# --- time ----------------------------------------------------------------------------------------------


def _clock(world: World) -> Iterator[Edge[World]]:
    if world.source.step not in (Step.RESTORE, Step.COMMIT) or world.clock is Clock.FENCE_OVER:
        return
    here = world.destination
    following = Clock(world.clock + 1)
    after = world._replace(clock=following, destination=_by_lease(here, following))
    busy = here.up and here.working
    if busy and (here.checked or (here.step is Step.RESTORE and here.serves)):
        return  # it goes on at once, unless it is paused in between
    yield Edge(f"clock: {following.name.lower().replace('_', ' ')}", after)


def _by_lease(here: Agent, clock: Clock) -> Agent:
    """What the server's process does by the clock, whatever its agent does."""
    if clock is Clock.FENCE_OVER and here.serves and not here.kept:
        return here._replace(serves=False, held=True)
    return here


# --- faults --------------------------------------------------------------------------------------------


def _restarts(world: World) -> Iterator[Edge[World]]:
    if not world.source.up:
        agent = world.source._replace(up=True, working=True, step=world.source.written, recovered=True)
        if agent.torn and agent.step is Step.TRANSFER:
            agent = agent._replace(step=Step.RESTORE)  # End may have left: it asks
        agent = agent._replace(torn=False)
        if agent.step not in (Step.RESTORE, Step.COMMIT, Step.ABORT, Step.IDLE) and agent.step not in ENDS:
            agent = _take(agent, SOURCE, Signal.FAILED)
        yield Edge("source's agent is started again", world._replace(source=agent))
    if not world.destination.up:
        agent = world.destination
        agent = agent._replace(up=True, working=True, step=agent.written, checked=False)
        if agent.torn and agent.step is Step.TRANSFER:
            agent = agent._replace(step=Step.RESTORE)  # all of the state may have been there
        agent = agent._replace(torn=False)
        if agent.step is Step.RESTORE and (agent.serves or agent.held):
            agent = _take(agent, DESTINATION, Signal.RESUMED)
        elif agent.step is Step.ABORT:
            agent = _take(agent._replace(serves=False), DESTINATION, Signal.SETTLED)
        elif agent.step not in (Step.COMMIT, Step.IDLE) and agent.step not in ENDS:
            agent = _thrown_away(agent, Signal.ABORTED)
        yield Edge("destination's agent is started again", world._replace(destination=agent))


def _faults(world: World, faults: Faults) -> Iterator[Edge[World]]:
    if Faults.LOSS in faults:
        for message in sorted(world.messages & {"end", "resuming", "resumed", "commit", "committed"}):
            lost = world._replace(messages=world.messages - {message})
            yield Edge(f"{message} is lost", lost, fault=True)
    for name in ("source", "destination"):
        agent: Agent = getattr(world, name)
        if not agent.up or agent.step is Step.IDLE:
            continue
        dead = agent._replace(up=False)
        if Faults.CRASH in faults or Faults.GONE in faults:
            yield Edge(f"{name}'s agent is killed", _with(world, name, dead), fault=True)
        if Faults.TORN in faults and agent.written is not agent.before:
            torn = dead._replace(written=agent.before, torn=True)
            label = f"{name}'s agent is killed in the middle of writing '{agent.written}'"
            yield Edge(label, _with(world, name, torn), fault=True)
    if Faults.UNWRITABLE in faults and world.source.up and world.source.working:
        for signal in (Signal.FAILED, Signal.RESUMED, Signal.SENT, Signal.TAKEN):
            yield from _unwritable(world, signal)
    if Faults.PAUSE in faults and world.clock < Clock.FENCE_OVER and world.source.step is Step.RESTORE:
        clock = Clock(world.clock + 1)
        later = world._replace(clock=clock, destination=_by_lease(world.destination, clock))
        yield Edge("the destination's agent is paused while the clock goes on", later, fault=True)


def _with(world: World, name: str, agent: Agent) -> World:
    if name == "source":
        return world._replace(source=agent)
    return world._replace(destination=agent)


def _unwritable(world: World, signal: Signal) -> Iterator[Edge[World]]:
    """A line cannot be written: up to RESTORE the step is not taken, and the move fails; then it is taken."""
    source = world.source
    following = SOURCE[source.step][signal]
    if source.step in (Step.READY, Step.CHECKPOINT, Step.TRANSFER) and isinstance(following, Step):
        agent = _take(source, SOURCE, Signal.FAILED, written=False)
        yield Edge(f"source cannot write '{following}'", world._replace(source=agent), fault=True)
