"""The models, explored in all of their states: what holds, and what is known not to hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from quicferry.strategies import RULES, Strategy
from simulation.models import notice, ownership
from simulation.models.explorer import Edge, Model, explore
from simulation.models.ownership import Faults


def _counter(limit: int, stuck_at: int | None = None, wrong_at: int | None = None) -> Model[int]:
    def edges(state: int) -> Iterator[Edge[int]]:
        if state < limit and state != stuck_at:
            yield Edge("one more", state + 1)
        if stuck_at is not None and state == 1:
            yield Edge("a fault", stuck_at, fault=True)

    return Model(
        "counter",
        0,
        edges,
        wrong=lambda state: "too many" if state == wrong_at else None,
        good=lambda state: state == limit,
    )


def test_the_explorer_finds_wrong_states_and_dead_ends_by_a_shortest_way() -> None:
    assert explore(_counter(5)).states == 6
    unsafe = explore(_counter(5, wrong_at=3)).unsafe
    assert [(found.what, found.story) for found in unsafe] == [("too many", ["one more"] * 3)]
    dead = explore(_counter(5, stuck_at=9)).dead_ends
    assert [found.story for found in dead] == [["one more", "a fault"]]
    with pytest.raises(OverflowError, match="more than 3 states"):
        explore(_counter(9), most=3)


@pytest.mark.parametrize(
    "faults", [Faults.NONE, Faults.LOSS, Faults.CRASH, Faults.LOSS | Faults.CRASH], ids=str
)
def test_a_move_is_safe_and_always_ends_with_one_server(faults: Faults) -> None:
    found = explore(ownership.model(faults, most=2))
    assert found.states > 500
    assert not found.unsafe, str(found.unsafe[0])
    assert not found.dead_ends, str(found.dead_ends[0])


#: what once allowed two servers, or none for good, and does not since the server's process is the fence
MENDED = (Faults.PAUSE, Faults.GONE, Faults.TORN, Faults.UNWRITABLE)


@pytest.mark.parametrize("faults", MENDED, ids=str)
def test_a_move_is_safe_whatever_becomes_of_an_agent_or_its_journal(faults: Faults) -> None:
    found = explore(ownership.model(faults, most=3 if faults is Faults.PAUSE else 2))
    assert not found.unsafe, "\n".join(map(str, found.unsafe))
    assert not found.dead_ends, "\n".join(map(str, found.dead_ends))


@pytest.mark.parametrize("faults", [Faults.PAUSE, Faults.GONE], ids=str)
def test_the_model_finds_a_server_that_ignores_its_lease(
    faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was known before leases: the check above would mean nothing if it could not fail."""
    monkeypatch.setattr(ownership, "_by_lease", lambda here, clock: here)
    found = explore(ownership.model(faults, most=3 if faults is Faults.PAUSE else 2))
    assert {finding.what for finding in found.unsafe} == {"two servers serve"}


@pytest.mark.parametrize("server_first", [False, True], ids=["as-published", "server-first"])
@pytest.mark.parametrize("client_asks", [False, True], ids=["only-acknowledges", "asks"])
@pytest.mark.parametrize("strategy", Strategy)
def test_client_and_server_meet_whatever_is_lost(
    strategy: Strategy, client_asks: bool, server_first: bool
) -> None:
    found = explore(notice.model(strategy, server_first, client_asks))
    assert found.states > 10
    assert not found.dead_ends, "\n".join(map(str, found.dead_ends))


@pytest.mark.parametrize(
    "strategy", [strategy for strategy, rules in RULES.items() if not rules.server_first]
)
def test_a_server_that_stays_mute_is_a_dead_end_of_the_model(strategy: Strategy) -> None:
    """Why a mute server speaks after one PTO: without that, nobody restarts the traffic."""
    model = notice.model(strategy, server_first=False, client_asks=False)
    edges = model.edges

    def stays_mute(pair: notice.Pair) -> Iterator[Edge[notice.Pair]]:
        return (edge for edge in edges(pair) if "mute for one PTO" not in edge.label)

    found = explore(dataclasses.replace(model, edges=stays_mute))
    assert found.dead_ends
