"""A scenario: a sweep over several axes, repeated.

A scenario file is TOML. ``[run]`` holds one value for each axis named there, ``[sweep]`` lists of
values; every combination is run ``repetitions`` times. An axis is a field of ``quicferry.spec.RunSpec``:

    title = "Five strategies"
    repetitions = 3
    [run]
    engine = "handoff"
    [sweep]
    strategy = ["proactive-explicit", "symmetric"]
"""

from __future__ import annotations

import itertools
import math
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from quicferry.errors import UNDECODABLE, InvalidInput
from quicferry.spec import RunSpec
from session.request import to_spec_of_cell

#: Runs of one scenario: at a few seconds each more than a week.
MOST_RUNS = 100_000


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An experiment: base values, swept axes, repetitions."""

    title: str = "untitled"
    repetitions: int = 1
    run: dict[str, Any] = {}
    sweep: dict[str, list[Any]] = {}

    def runs(self) -> Iterator[RunSpec]:
        """Every run, interleaved: one repetition of all combinations before the next.

        All combinations of one repetition share a seed, so that they meet the same network; a
        machine that grows slower meanwhile slows all of them alike. An axis that a combination does not
        read keeps its default there, and combinations that are the same then are run once. Raises
        ``InvalidInput``, also for a value that no combination reads.
        """
        cells = self._cells()
        for repetition in range(self.repetitions):
            for spec in cells:
                yield msgspec.structs.replace(spec, seed=spec.seed + repetition)

    def _cells(self) -> list[RunSpec]:
        cells: dict[RunSpec, None] = {}
        read: set[str] = set()
        unread: dict[str, str] = {}
        for chosen in itertools.product(*self._axes()):
            values = self.run.copy()
            for of_axis in chosen:
                values |= of_axis
            if values.get("baseline") is not None:
                values.pop("strategy", None)  # alternatives: a swept baseline replaces the usual strategy
            spec, left_out = to_spec_of_cell(values)
            unread |= left_out
            read |= set(values) - set(left_out)
            cells[spec] = None
        for name, reason in unread.items():
            if name not in read:
                raise InvalidInput(reason, hint=f"leave out {name}")
        return list(cells)

    def _axes(self) -> list[list[dict[str, Any]]]:
        """For each swept axis its values. Strategies and baselines are alternatives: one axis together."""
        contenders: list[dict[str, Any]] = [{"strategy": value} for value in self.sweep.get("strategy", [])]
        contenders += [{"baseline": value} for value in self.sweep.get("baseline", [])]
        axes: list[list[dict[str, Any]]] = []
        for axis, values in self.sweep.items():
            if axis not in ("strategy", "baseline"):
                axes.append([{axis: value} for value in values])
            elif contenders not in axes:
                axes.append(contenders)
        return axes


def read_scenario(path: Path) -> Scenario:
    """Read a scenario file; all its runs are checked. Raises ``InvalidInput``."""
    try:
        with path.open("rb") as file:
            scenario = msgspec.convert(tomllib.load(file), Scenario)
    except OSError as error:
        raise InvalidInput(f"cannot read the scenario {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, *UNDECODABLE) as error:
        raise InvalidInput(f"{path}: {error}", hint="see scenarios/ for examples") from error
    if not 1 <= scenario.repetitions <= 10_000:
        raise InvalidInput(f"{path}: {scenario.repetitions} repetitions", hint="give 1 to 10000")
    for axis, values in scenario.sweep.items():
        if not values:
            raise InvalidInput(f"{path}: the axis {axis} is swept over no value at all")
    cells = math.prod(len(values) for values in scenario.sweep.values()) * scenario.repetitions
    if cells > MOST_RUNS:
        raise InvalidInput(f"{path}: {cells} runs", hint=f"sweep over fewer values: {MOST_RUNS} runs at most")
    try:
        list(scenario.runs())
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}", hint=error.hint) from error
    return scenario
