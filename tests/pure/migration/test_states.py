"""The tables of a move: complete, and together never two servers and never none for good."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from quicferry.errors import MigrationError
from quicferry.migration.states import (
    DESTINATION,
    ENDS,
    ORCHESTRATOR,
    REFUSE,
    SAME,
    SERVES_AT_DESTINATION,
    SERVES_AT_SOURCE,
    SOURCE,
    MoveMachine,
    Signal,
    Step,
    Table,
)

TABLES = {"source": SOURCE, "destination": DESTINATION, "orchestrator": ORCHESTRATOR}


@pytest.mark.parametrize("name", TABLES)
def test_every_signal_is_answered_in_every_step(name: str) -> None:
    table = TABLES[name]
    assert set(table) == set(Step)
    for step, row in table.items():
        assert set(row) == set(Signal), step
        assert all(answer in (SAME, REFUSE) or isinstance(answer, Step) for answer in row.values())


@pytest.mark.parametrize("name", TABLES)
def test_every_used_step_leads_to_an_end(name: str) -> None:
    table = TABLES[name]

    def onwards(step: Step) -> set[Step]:
        return {answer for answer in table[step].values() if isinstance(answer, Step)}

    reached, todo = {Step.IDLE}, [Step.IDLE]
    while todo:
        for step in onwards(todo.pop()) - reached:
            reached.add(step)
            todo.append(step)
    unused = {step for step in Step if not onwards(step) and step not in ENDS}
    assert not unused & reached
    assert {Step.MOVED, Step.STAYED} <= reached
    assert reached | unused >= set(Step) - {Step.LOST}


def test_machine_refuses_and_repeats() -> None:
    machine = MoveMachine(SOURCE, "source edge-1")
    with pytest.raises(MigrationError, match="source edge-1: resumed cannot happen in step idle"):
        machine.take(Signal.RESUMED)
    assert machine.is_over
    machine.take(Signal.ORDERED)
    machine.take(Signal.PREPARED)
    assert machine.take(Signal.PREPARED) is Step.READY
    assert not machine.is_over


# --- both tables, a network that loses anything, and a clock ------------------------------------

BEFORE_LEASE, AFTER_LEASE, AFTER_FENCE = range(3)


class World(NamedTuple):
    source: Step = Step.IDLE
    destination: Step = Step.IDLE
    clock: int = BEFORE_LEASE
    begun: bool = False  # Begin has been sent
    ended: bool = False  # End has been sent
    asked: bool = False  # the destination was about to resume, that word may arrive at any time
    word_resumed: bool = False  # the destination has said so, the word may arrive at any time
    word_aborted: bool = False
    told: bool = False  # the destination has heard of the commit


def source_moves(world: World) -> Iterator[Signal]:
    match world.source:
        case Step.IDLE:
            yield Signal.ORDERED
        case Step.PREPARING:
            yield from (Signal.PREPARED, Signal.FAILED)
        case Step.READY:
            yield from (Signal.GO, Signal.FAILED)
        case Step.CHECKPOINT:
            yield from (Signal.TAKEN, Signal.FAILED)
        case Step.TRANSFER:
            yield from (Signal.SENT, Signal.FAILED)
        case Step.RESTORE:
            yield Signal.FAILED
            if world.asked:
                yield Signal.ASKED
            if world.word_resumed:
                yield Signal.RESUMED
            if world.word_aborted:
                yield Signal.ABORTED
            if world.clock == AFTER_FENCE:
                yield Signal.EXPIRED
        case Step.COMMIT:
            yield Signal.FAILED
            if world.told:
                yield Signal.SETTLED
            if world.word_aborted:
                yield Signal.ABORTED
        case Step.ABORT:
            yield from (Signal.SETTLED, Signal.FAILED)


def destination_moves(world: World) -> Iterator[Signal]:
    asked_to_abort = world.source in (Step.ABORT, Step.RESTORE, Step.STAYED, Step.LOST)
    if asked_to_abort and world.destination is not Step.IDLE:
        yield Signal.ABORTED
    match world.destination:
        case Step.IDLE:
            if world.source is not Step.IDLE:
                yield Signal.ORDERED
                if asked_to_abort:
                    yield Signal.ABORTED
        case Step.PREPARING:
            yield from (Signal.PREPARED, Signal.FAILED)
        case Step.READY:
            if world.begun:
                yield Signal.GO
        case Step.TRANSFER:
            yield Signal.FAILED
            if world.ended:
                yield Signal.SENT
            if world.clock >= AFTER_LEASE:
                yield Signal.EXPIRED
        case Step.RESTORE:
            yield Signal.FAILED
            yield Signal.EXPIRED if world.clock >= AFTER_LEASE else Signal.RESUMED
        case Step.COMMIT:
            yield Signal.FAILED
            if world.source in (Step.COMMIT, Step.MOVED):
                yield Signal.SETTLED
            if world.clock >= AFTER_LEASE:
                yield Signal.EXPIRED
        case Step.ABORT:
            yield from (Signal.SETTLED, Signal.FAILED)


def steps(world: World) -> Iterator[World]:
    for signal in source_moves(world):
        answer = SOURCE[world.source][signal]
        assert answer is not REFUSE, (world, signal)
        if isinstance(answer, Step):
            yield world._replace(
                source=answer,
                begun=world.begun or signal is Signal.GO,
                ended=world.ended or signal is Signal.SENT,
            )
    for signal in destination_moves(world):
        answer = DESTINATION[world.destination][signal]
        assert answer is not REFUSE, (world, signal)
        if isinstance(answer, Step):
            yield world._replace(
                destination=answer,
                asked=world.asked or answer is Step.RESTORE,
                word_resumed=world.word_resumed or answer is Step.COMMIT,
                word_aborted=world.word_aborted or answer is Step.STAYED,
                told=world.told or (answer is Step.MOVED and signal is Signal.SETTLED),
            )
    # time goes on, but the destination keeps its fence: it has settled or is down when it is over
    if world.clock == BEFORE_LEASE:
        yield world._replace(clock=AFTER_LEASE)
    elif world.clock == AFTER_LEASE and world.destination not in (
        Step.TRANSFER,
        Step.RESTORE,
        Step.COMMIT,
        Step.ABORT,
    ):
        yield world._replace(clock=AFTER_FENCE)


def reachable() -> dict[World, set[World]]:
    graph: dict[World, set[World]] = {}
    todo = [World()]
    while todo:
        world = todo.pop()
        if world not in graph:
            graph[world] = set(steps(world))
            todo += graph[world]
    return graph


def test_never_two_servers() -> None:
    worlds = reachable()
    assert len(worlds) > 100
    for world in worlds:
        at_source = world.source in SERVES_AT_SOURCE
        at_destination = world.destination in SERVES_AT_DESTINATION
        assert not (at_source and at_destination), world


def test_never_none_for_good() -> None:
    graph = reachable()

    def is_good(world: World) -> bool:
        at_source = world.source is Step.STAYED
        at_destination = world.source is Step.MOVED and world.destination is Step.MOVED
        return at_source != at_destination or world.source is Step.LOST

    good = {world for world in graph if is_good(world)}
    backwards: dict[World, set[World]] = {world: set() for world in graph}
    for world, following in graph.items():
        for other in following:
            backwards[other].add(world)
    todo = list(good)
    while todo:
        for world in backwards[todo.pop()] - good:
            good.add(world)
            todo.append(world)
    assert good == set(graph), "a place from which no good end can be reached"


def test_the_model_notices_a_source_that_guesses() -> None:
    """The check above would mean nothing if it could not fail."""
    row = dict(SOURCE[Step.RESTORE])
    row[Signal.FAILED] = Step.ABORT
    guessing: Table = {**SOURCE, Step.RESTORE: row}
    world = World(Step.RESTORE, Step.COMMIT, begun=True, ended=True, asked=True, word_resumed=True)
    assert world in reachable()
    after = guessing[world.source][Signal.FAILED]
    assert isinstance(after, Step)
    end = guessing[after][Signal.SETTLED]
    assert end in SERVES_AT_SOURCE and world.destination in SERVES_AT_DESTINATION
