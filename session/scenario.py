"""A scenario: a sweep over several axes, repeated.

A scenario file is TOML. ``[run]`` holds one value for each axis named there, ``[sweep]`` lists of
values; every combination is run ``repetitions`` times. An axis is a field of ``quicferry.spec.RunSpec``:

    title = "Five strategies"
    repetitions = 3
    warm_up = 1
    [run]
    engine = "handoff"
    [sweep]
    strategy = ["proactive-explicit", "symmetric"]
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from quicferry.errors import UNDECODABLE, InvalidInput
from quicferry.spec import RunSpec
from session.request import check_value, to_spec_of_cell

REPETITIONS, WARM_UP = "repetitions", "warm_up"
#: Runs of one scenario: at a few seconds each more than a week.
MOST_RUNS = 100_000


class Scenario(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An experiment: base values, swept axes, repetitions.

    ``warm_up``: how many runs of each engine and baseline are made first and do not count, because the first
    run of a program on a machine is slower than all later ones.
    """

    title: str = "untitled"
    repetitions: Annotated[int, Meta(ge=1, le=10_000)] = 1
    warm_up: Annotated[int, Meta(ge=0, le=100)] = 1
    time_budget_min: Annotated[float, Meta(gt=0, le=100_000)] | None = None
    run: dict[str, Any] = {}
    sweep: dict[str, list[Any]] = {}
    without: list[dict[str, Any]] = []  # combinations that are left out: those with all values of a table
    fewer: list[dict[str, Any]] = []  # combinations that are repeated less: those with all values but one

    def runs(self) -> Iterator[RunSpec]:
        """Every run, interleaved: one repetition of all combinations before the next.

        All combinations of one repetition share a seed, so that they meet the same network; a
        machine that grows slower meanwhile slows all of them alike. Raises ``InvalidInput``, see ``cells``.
        """
        cells = self.cells()
        for repetition in range(self.repetitions):
            for spec in cells:
                if repetition < self.repetitions_of(spec):
                    yield msgspec.structs.replace(spec, seed=spec.seed + repetition)

    def cells(self) -> list[RunSpec]:
        """Every combination once, with the seed of the first repetition.

        An axis that a combination does not read keeps its default there, and combinations that are the same
        then are one. Raises ``InvalidInput``, also for a value that no combination reads.
        """
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
            if not any(_has_all(spec, given) for given in self.without):
                cells[spec] = None
        if not cells:
            raise InvalidInput("no combination is left", hint="leave out fewer with without")
        for name, reason in unread.items():
            if name not in read:
                raise InvalidInput(reason, hint=f"leave out {name}")
        return list(cells)

    def repetitions_of(self, spec: RunSpec) -> int:
        """How often a combination is repeated: ``repetitions``, or as often as a table of ``fewer`` says."""
        return self._at_most(spec, REPETITIONS, self.repetitions)

    def warm_ups_of(self, spec: RunSpec) -> int:
        """The same of warm-ups, which a table of ``fewer`` may also name."""
        return self._at_most(spec, WARM_UP, self.warm_up)

    def _at_most(self, spec: RunSpec, what: str, usual: int) -> int:
        fewer = [int(table[what]) for table in self.fewer if what in table and _has_all(spec, axes_of(table))]
        return min([usual, *fewer])

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


def _has_all(spec: RunSpec, given: dict[str, Any]) -> bool:
    """Whether a run has all of these values. One with a baseline has no strategy."""
    if spec.baseline is not None and "strategy" in given:
        return False
    return all(getattr(spec, name) == value for name, value in given.items())


def read_scenario(path: Path) -> Scenario:
    """Read a scenario file; all its runs are checked.

    Raises ``InvalidInput``, which names file, line and key, and says what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InvalidInput(f"cannot read the scenario {path}: {reason}") from error
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidInput(f"{path}: {error}", hint="see scenarios/ for examples") from error
    scenario = _read(document, text, path)
    try:
        _check_size(scenario)
        scenario.cells()
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}", hint=error.hint) from error
    return scenario


def _read(document: dict[str, Any], text: str, path: Path) -> Scenario:
    """A parsed file as a scenario, every value checked by itself. Raises ``InvalidInput``."""
    for name in document:
        if name not in Scenario.__struct_fields__:
            raise InvalidInput(
                f"{_place(path, text, name)}: there is no key {name!r}",
                hint="the keys are " + ", ".join(Scenario.__struct_fields__) + "; an axis stands below "
                "[run] or [sweep]",
            )
    try:
        scenario = msgspec.convert(document, Scenario)
    except UNDECODABLE as error:
        found = re.search(r"\$\.(\w+)", str(error))
        where = _place(path, text, found[1]) if found else str(path)
        key = f"{found[1]}: " if found else ""
        raise InvalidInput(f"{where}: {key}{error}", hint="see docs/sweep.md") from error
    given = [(name, [value]) for name, value in scenario.run.items()]
    given += [(name, [value]) for table in scenario.without for name, value in table.items()]
    given += [(name, [value]) for table in scenario.fewer for name, value in axes_of(table).items()]
    for table in scenario.fewer:
        _check_fewer(table, _place(path, text, "fewer"))
    for name, values in [*given, *scenario.sweep.items()]:
        try:
            for value in values:
                check_value(name, value)
        except InvalidInput as error:
            raise InvalidInput(f"{_place(path, text, name)}: {name}: {error}", hint=error.hint) from error
    return scenario


def axes_of(table: dict[str, Any]) -> dict[str, Any]:
    """The values of axes in a table of ``fewer``."""
    return {name: value for name, value in table.items() if name not in (REPETITIONS, WARM_UP)}


def _check_fewer(table: dict[str, Any], where: str) -> None:
    """Raise ``InvalidInput`` for a table of ``fewer`` that does not say how often."""
    for name, least in ((REPETITIONS, 1), (WARM_UP, 0)):
        times = table.get(name)
        if times is None and name == WARM_UP:
            continue
        if not isinstance(times, int) or isinstance(times, bool) or times < least:
            raise InvalidInput(
                f"{where}: fewer: {name} is {'missing' if times is None else repr(times)}",
                hint=f"say how often at most: a whole number from {least}, beside the values of axes",
            )


def _place(path: Path, text: str, key: str) -> str:
    """``file:line`` of a key; the file alone when its line cannot be told, as in an inline table."""
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=|\s*\[\[?{re.escape(key)}\]", line):
            return f"{path}:{number}"
    return str(path)


def _check_size(scenario: Scenario) -> None:
    for axis, values in scenario.sweep.items():
        if not values:
            raise InvalidInput(
                f"the axis {axis} is swept over no value at all", hint="give a value, or leave it out"
            )
    cells = math.prod(len(values) for values in scenario.sweep.values()) * scenario.repetitions
    if cells > MOST_RUNS:
        raise InvalidInput(f"{cells} runs", hint=f"sweep over fewer values: {MOST_RUNS} runs at most")
