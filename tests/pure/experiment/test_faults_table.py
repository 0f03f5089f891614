"""The table of faults: complete, readable, and refused where it does not fit."""

from __future__ import annotations

import pytest

from quicferry.errors import InvalidInput
from quicferry.experiment.fault_kinds import KINDS
from quicferry.experiment.faults import ROWS, TRIGGERS, FaultRow, allowed_places, engines_of, parse, row_of
from quicferry.migration.engines.registry import engines as known_engines
from quicferry.spec import FaultKind as Kind
from quicferry.spec import FaultPoint as Point
from quicferry.strategies import RULES, Strategy
from session.request import to_spec


def test_every_point_and_every_kind_is_in_the_table() -> None:
    assert {row.point for row in ROWS} == set(Point) == set(TRIGGERS)
    assert {row.kind for row in ROWS} == set(Kind) == set(KINDS)
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)


def test_the_server_is_always_somewhere() -> None:
    for row in ROWS:
        assert row.places and set(row.places) <= {"source", "destination"}, row
        assert row.why


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_row_is_read_back(row: object) -> None:
    assert row_of(parse(row.name)) == row


def test_a_duration_is_read() -> None:
    assert parse("transfer:link-cut").seconds == 1.0
    assert parse("transfer:link-cut=2.5").seconds == 2.5
    assert parse("transfer:image-corrupted").seconds is None


@pytest.mark.parametrize(
    "words", ["", ":", "transfer", "x:link-cut", "transfer:link-cut=0", "transfer:link-cut=61"]
)
def test_what_is_no_fault_is_refused(words: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse(words)
    assert refused.value.hint


@pytest.mark.parametrize("strategy", [s for s in Strategy if not RULES[s].notice])
def test_no_notice_no_fault_there(strategy: Strategy) -> None:
    with pytest.raises(InvalidInput, match="tells its clients nothing"):
        to_spec({"strategy": strategy, "faults": ["notice:link-cut"]})
    assert to_spec({"strategy": strategy, "faults": ["transfer:link-cut"]}).faults


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_point_needs_an_engine_that_has_it(row: FaultRow) -> None:
    engines = engines_of(row)
    for engine in known_engines():
        values = {"engine": engine, "faults": [row.name]}
        if engines is None or engine in engines:
            assert to_spec(values).faults
        else:
            with pytest.raises(InvalidInput, match="has no such point"):
                to_spec(values)


def test_faults_go_with_one_move_and_no_baseline() -> None:
    with pytest.raises(InvalidInput, match="one move"):
        to_spec({"faults": ["transfer:link-cut"], "moves": 2})
    with pytest.raises(InvalidInput, match="baseline"):
        to_spec({"faults": ["transfer:link-cut"], "baseline": "tcp-dns"})


def test_of_several_faults_the_common_places_count() -> None:
    assert allowed_places([]) == []
    assert allowed_places([parse("transfer:link-cut")]) == ["destination", "source"]
    assert allowed_places([parse("transfer:link-cut"), parse("commit:orchestrator-killed")]) == [
        "destination"
    ]
    both = [parse("notice:client-refusing"), parse("commit:link-cut")]
    assert allowed_places(both) == ["destination", "source"]
