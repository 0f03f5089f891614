"""A small matrix of end-to-end runs, drawn pairwise from the registries with a seed.

Of all axes those that choose among names: strategies and baselines, engines, topologies, workloads,
switches, and how many clients and moves. What has to hold for each of them is to hold for any two of them
together. Numbers keep their defaults, and there are no faults: ``make explore`` draws those.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from proof.explore.command import accepted, without_defaults
from proof.explore.covering import Covering
from proof.explore.levels import CONTENDER, Level, factors
from proof.explore.load import too_much
from proof.explore.machine import can
from quicferry.spec import axes

COUNTED = ("clients", "moves")
#: so that a cell is over in seconds
BRIEF: dict[str, Any] = {"before_s": 0.5, "after_s": 1.0}


def matrix_factors() -> dict[str, list[Level]]:
    """The factors of the matrix: those of ``levels.factors`` whose axes choose among names."""
    known = axes()
    return {
        name: levels
        for name, levels in factors().items()
        if name == CONTENDER
        or name in COUNTED
        or (name in known and known[name].least is None and known[name].kind != "faults")
    }


def cells(seed: int, refused: frozenset[str] = frozenset()) -> Iterator[dict[str, Any]]:
    """Values of one run after the other, without end; the same for the same seed and machine.

    ``refused``: probes that say no on this machine.
    """

    def wanted(values: Any) -> bool:
        spec = accepted({**BRIEF, **values})
        return spec is not None and can(spec, refused) and too_much(spec) is None

    covering = Covering(matrix_factors(), wanted, seed)
    while True:
        yield {**without_defaults(covering.draw().values), **BRIEF, "seed": seed % 10_000}
