"""The matrix of drawn end-to-end runs: what is in it, and that a seed decides it."""

from __future__ import annotations

import itertools

from proof.explore.command import accepted
from proof.explore.levels import CONTENDER
from proof.explore.matrix import cells, matrix_factors
from quicferry.spec import axes
from quicferry.strategies import RULES

FEW = 12


def test_the_factors_are_the_axes_that_choose_among_names() -> None:
    found = matrix_factors()
    strategies = {token for level in found[CONTENDER] for token in level.tokens}
    assert {f"{CONTENDER}=strategy={name}" for name in RULES} <= strategies or {
        f"{CONTENDER}={name}" for name in RULES
    } <= strategies
    switches = {axis.name for axis in axes().values() if axis.kind is bool}
    assert switches <= set(found)
    assert {"engine", "topology", "workload", "clients", "moves"} <= set(found)
    assert not {"faults", "seed", "rtt_ms"} & set(found)


def test_a_seed_decides_the_cells_and_all_of_them_are_accepted() -> None:
    first = list(itertools.islice(cells(1), FEW))
    assert list(itertools.islice(cells(1), FEW)) == first
    assert list(itertools.islice(cells(2), FEW)) != first
    assert all(accepted(values) is not None for values in first)


def test_a_dozen_cells_have_every_strategy_and_engine() -> None:
    drawn = [accepted(values) for values in itertools.islice(cells(1), 40)]
    ferried = [spec for spec in drawn if spec is not None and spec.baseline is None]
    assert {spec.strategy for spec in ferried} == set(RULES)
    assert {spec.engine for spec in drawn if spec is not None} >= {"handoff", "criu-cold"}
