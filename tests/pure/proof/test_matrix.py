"""The matrix of drawn end-to-end runs: what is in it, and that a seed decides it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from proof.explore.command import accepted
from proof.explore.levels import CONTENDER
from proof.explore.matrix import cells, matrix_factors
from quicferry.spec import axes
from quicferry.strategies import Strategy


@pytest.fixture(scope="module")
def drawn() -> list[dict[str, Any]]:
    return list(itertools.islice(cells(1), 40))


def test_the_factors_are_the_axes_that_choose_among_names() -> None:
    found = matrix_factors()
    contenders = {token for level in found[CONTENDER] for token in level.tokens}
    assert {f"{CONTENDER}={name}" for name in Strategy} <= contenders
    assert {axis.name for axis in axes().values() if axis.kind is bool} <= set(found)
    assert {"engine", "topology", "workload", "clients", "moves"} <= set(found)
    assert not {"faults", "seed", "rtt_ms"} & set(found)


def test_a_seed_decides_the_cells_and_all_of_them_are_accepted(drawn: list[dict[str, Any]]) -> None:
    assert list(itertools.islice(cells(1), 3)) == drawn[:3]
    assert drawn[:3] != drawn[3:6]
    assert all(accepted(values) is not None for values in drawn)


def test_forty_cells_have_every_strategy_and_every_value_of_a_switch(drawn: list[dict[str, Any]]) -> None:
    specs = [spec for spec in map(accepted, drawn) if spec is not None]
    ferried = [spec for spec in specs if spec.baseline is None]
    assert {spec.strategy for spec in ferried} == set(Strategy)
    assert {"handoff", "criu-cold"} <= {spec.engine for spec in specs}
    assert {spec.server_first for spec in ferried} == {False, True}
    assert {spec.moves > 1 for spec in ferried} == {False, True}
