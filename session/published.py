"""Published experiments: which there are, what they found, and that beside what is measured here.

``scenarios/published/`` has a scenario for each, ``experiments.toml`` with titles, sources and differences,
``values.csv`` with the published values, and ``phases.csv`` with phases of a downtime that cannot be measured
apart here, where dump and transfer overlap.
"""

from __future__ import annotations

import csv
import functools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import msgspec
import polars as pl

from quicferry.analysis.tidy import Row, tidy
from quicferry.errors import InvalidInput
from quicferry.migration.engines.registry import in_oci
from quicferry.paths import CHECKOUT
from session.scenario import Scenario

FOLDER = CHECKOUT / "scenarios" / "published"
#: how much longer than downtime and one RTT a request that a move hits may take, ms
EXCESS_MS = 10.0
#: columns of values.csv that choose runs; one that is empty chooses all
_CHOICES = {
    "contender": "contender",
    "pool": "pool",
    "engine": "engine",
    "memory_mib": "memory_mib",
    "clients": "clients",
    "loss_percent": "loss_percent",
    "rtt_ms": "rtt_ms_asked",
}
#: what a measure is called in a row, where an experiment has several
_MEASURES = {
    "container_downtime_ms": "downtime",
    "phase_restore_ms": "restore",
    "transferred_bytes": "sent",
}


class Source(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A publication, and what differs here from all of its experiments."""

    source: str
    differs: list[str]


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One experiment of ``experiments.toml``."""

    title: str
    scenario: str
    of: str
    differs: list[str]


class Experiment(NamedTuple):
    """A published experiment."""

    name: str
    title: str
    scenario: Path
    source: str
    differs: list[str]  # what differs in the set-up, a line each


class Value(NamedTuple):
    """A published value, and how the same is found among runs."""

    label: str
    choice: dict[str, str]
    measure: str  # a column of the tidy table
    statistic: str  # mean or median
    published: float
    low: float | None
    high: float | None
    unit: str


class Pair(NamedTuple):
    """A published value beside the measured one; None where no run succeeded."""

    label: str
    unit: str
    statistic: str
    published: float
    measured: float | None
    low: float | None  # the least and the greatest of the runs here
    high: float | None
    runs: int
    #: of the request that the move hits: its time less downtime and one RTT, median; None: another value
    excess_ms: float | None = None

    @property
    def is_enough(self) -> bool | None:
        """Whether the request hit waited for downtime and one RTT, and no more than ``EXCESS_MS``."""
        return None if self.excess_ms is None else self.excess_ms <= EXCESS_MS

    @property
    def ratio(self) -> float | None:
        """Measured over published."""
        return None if self.measured is None else self.measured / self.published


@functools.cache
def experiments() -> dict[str, Experiment]:
    """All published experiments by name."""
    document = tomllib.loads((FOLDER / "experiments.toml").read_text(encoding="utf-8"))
    entries = msgspec.convert(document.pop("experiments"), dict[str, Entry])
    sources = msgspec.convert(document, dict[str, Source])
    return {
        name: Experiment(
            name,
            entry.title,
            FOLDER / f"{entry.scenario}.toml",
            sources[entry.of].source,
            [*sources[entry.of].differs, *entry.differs],
        )
        for name, entry in entries.items()
    }


def get(name: str) -> Experiment:
    """The experiment of that name. Raises ``InvalidInput``."""
    if name not in experiments():
        raise InvalidInput(
            f"there is no published experiment {name!r}", hint="there are " + ", ".join(experiments())
        )
    return experiments()[name]


def with_containers(scenario: Scenario) -> Scenario:
    """The same scenario for servers in OCI containers, as they were published.

    Raises ``InvalidInput`` for one in which no process is moved.
    """

    def moved(axes: dict[str, Any]) -> dict[str, Any]:
        engine = axes.get("engine")
        if engine is None:
            return axes
        return axes | {"engine": in_oci(engine) if isinstance(engine, str) else list(map(in_oci, engine))}

    tables = {"run": moved(scenario.run), "sweep": moved(scenario.sweep)}
    if tables == {"run": scenario.run, "sweep": scenario.sweep}:
        raise InvalidInput(
            f"no process is moved in {scenario.title!r}", hint="leave out --containers for this experiment"
        )
    return msgspec.structs.replace(
        scenario, **tables, without=[*map(moved, scenario.without)], fewer=[*map(moved, scenario.fewer)]
    )


def values(experiment: str, *, containers: bool = False) -> list[Value]:
    """The published values of an experiment, in the order of the table.

    ``containers``: to stand beside runs ``with_containers``.
    """
    with (FOLDER / "values.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["experiment"] == experiment]
    if containers:
        rows = [row | {"engine": in_oci(row["engine"])} for row in rows]
    several = len({row["measure"] for row in rows}) > 1
    return [_value(row, several=several and row["measure"] in _MEASURES) for row in rows]


def _value(row: dict[str, str], *, several: bool) -> Value:
    choice = {column: row[name] for name, column in _CHOICES.items() if row[name]}

    def number(name: str) -> float | None:
        return float(row[name]) if row[name] else None

    return Value(
        label=_label(row) + (f", {_MEASURES[row['measure']]}" if several else ""),
        choice=choice,
        measure=row["measure"],
        statistic=row["statistic"],
        published=float(row["value"]),
        low=number("low"),
        high=number("high"),
        unit=row["unit"],
    )


def _label(row: dict[str, str]) -> str:
    name = row["contender"] + (f" of {row['pool']}" if row["pool"] else "")
    units = {"memory_mib": "MiB", "clients": "clients", "loss_percent": "% loss", "rtt_ms": "ms RTT"}
    words = [name, row["engine"], *(f"{row[key]} {unit}" for key, unit in units.items() if row[key])]
    return " · ".join(word for word in words if word)


class Phases(NamedTuple):
    """A published downtime by its phases, and the service time of the request that the move hit, in ms."""

    dump_ms: float
    transfer_ms: float
    restore_ms: float
    request_hit_ms: float


#: Size of the container, MB -> the figures with the service time of the request hit, and with the phases.
_FIGURES_OF = {28: ("fig5a", "fig5b"), 280: ("fig6a", "fig6b")}


def phases(technique: str, size_mb: int) -> Phases:
    """What was published of a technique (``cold`` …) with a container of 28 or 280 MB, Reactive Explicit.

    ``get`` has the sources of the figures. Raises ``InvalidInput`` for another technique or size.
    """
    if size_mb not in _FIGURES_OF:
        raise InvalidInput(
            f"no phases were published for {size_mb} MB", hint="there are those of 28 and 280 MB"
        )
    by_request, by_phase = _FIGURES_OF[size_mb]
    with (FOLDER / "phases.csv").open(encoding="utf-8", newline="") as file:
        rows = {(row["experiment"], row["technique"]): row for row in csv.DictReader(file)}
    row = rows.get((by_phase, technique))
    if row is None:
        raise InvalidInput(
            f"no phases were published for {technique!r}", hint="there are cold, pre-copy, post-copy, hybrid"
        )
    engine = {"engine": f"criu-{technique}"}
    (restore,) = [
        value for value in values(by_phase) if value.choice == engine and value.measure == "phase_restore_ms"
    ]
    reactive = {"contender": "reactive-explicit", **engine}
    (request,) = [value for value in values(by_request) if value.choice == reactive]
    return Phases(float(row["dump_ms"]), float(row["transfer_ms"]), restore.published, request.published)


def side_by_side(experiment: str, rows: Sequence[Row], *, containers: bool = False) -> list[Pair]:
    """Each published value beside the same statistic of the runs that succeeded.

    ``containers``: as in ``values``.
    """
    runs = tidy([row for row in rows if row.repetition > 0 and row.result.outcome == "succeeded"])
    return [_pair(value, runs) for value in values(experiment, containers=containers)]


def _pair(value: Value, runs: pl.DataFrame) -> Pair:
    chosen = runs
    for column, wanted in value.choice.items():
        given = float(wanted) if chosen.schema[column].is_numeric() else wanted
        chosen = chosen.filter(pl.col(column) == given)
    measured = chosen[value.measure].drop_nulls().cast(pl.Float64).to_list()
    statistic = mean if value.statistic == "mean" else median
    return Pair(
        label=value.label,
        unit=value.unit,
        statistic=value.statistic,
        published=value.published,
        measured=statistic(measured) if measured else None,
        low=min(measured, default=None),
        high=max(measured, default=None),
        runs=len(measured),
        excess_ms=_excess_ms(chosen) if value.measure == "request_hit_ms" else None,
    )


def _excess_ms(runs: pl.DataFrame) -> float | None:
    """By how much the request hit took longer than downtime and one RTT to the destination, in the median."""
    excess = runs.select(
        pl.col("request_hit_ms") - pl.col("container_downtime_ms") - pl.col("rtt_ms_asked")
    ).to_series()
    found = excess.drop_nulls().cast(pl.Float64).to_list()
    return median(found) if found else None
