"""Runs put together by combination of their axes, with the numbers that a report is about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

from quicferry.analysis import tables
from quicferry.analysis.statistics import ENOUGH, Summary, summarise
from quicferry.analysis.tidy import Row
from quicferry.record import RunResult


class Measure(NamedTuple):
    """A number of a run that a report compares."""

    key: str
    title: str
    text: str  # what it is, in a sentence
    value: Callable[[RunResult], float | None]


MEASURES = (
    Measure(
        "service-migration-time",
        "Service-migration time",
        "From the last useful packet from the old address to the first one from the new address.",
        lambda result: result.service_migration_time_ms,
    ),
    Measure(
        "container-downtime",
        "Container downtime",
        "From the server's freeze at the source to the moment it serves at the destination.",
        lambda result: result.container_downtime_ms,
    ),
    Measure(
        "connection-overhead",
        "Connection overhead",
        "From that moment to the first useful packet at the client.",
        lambda result: result.connection_overhead_ms,
    ),
)


#: measured where there are requests of one client; shown as figures only
OF_REQUESTS = (
    Measure(
        "request-hit",
        "Service time of the request that the move hit",
        "The request that was under way while the server stood still; of several the longest.",
        lambda result: result.request_hit_ms,
    ),
    Measure(
        "first-request-after",
        "Service time of the first request after the move",
        "The first request that was sent after the server had resumed.",
        lambda result: result.first_request_after_ms,
    ),
)


class Group(NamedTuple):
    """All runs of one combination."""

    contender: str  # the strategy or baseline, and whatever else varies but engine and memory
    engine: str  # with the memory that was added to the server
    results: list[RunResult]

    @property
    def name(self) -> str:
        """The name of the combination: unique on the page."""
        return f"{self.contender} · {self.engine}"

    @property
    def good(self) -> list[RunResult]:
        """The runs that succeeded: only their numbers count."""
        return [result for result in self.results if result.outcome == "succeeded"]

    @property
    def is_baseline(self) -> bool:
        """Whether it is an alternative to the extension."""
        return self.results[0].kind == "baseline"

    def values(self, measure: Measure) -> list[float]:
        """The numbers of the runs that succeeded."""
        return [value for result in self.good if (value := measure.value(result)) is not None]

    def summary(self, measure: Measure) -> Summary | None:
        """Median and interval; None when no run succeeded."""
        values = self.values(measure)
        return summarise(values) if values else None

    def phase_ms(self, name: str) -> float | None:
        """The median length of a phase; None when no run has it."""
        values = [value for result in self.good if (value := result.phases_ms.get(name)) is not None]
        return median(values) if values else None

    @property
    def typical(self) -> RunResult | None:
        """The run whose service-migration time is closest to the median: its timeline stands for all."""
        measure = MEASURES[0]
        summary = self.summary(measure)
        shown = [result for result in self.good if result.run_dir]
        if summary is None or not shown:
            return next((result for result in self.results if result.run_dir), None)
        return min(shown, key=lambda result: abs((measure.value(result) or 0.0) - summary.median))

    @property
    def has_enough(self) -> bool:
        """Whether there are enough runs for an interval of the median."""
        return len(self.values(MEASURES[0])) >= ENOUGH


def grouped(rows: Sequence[Row]) -> list[Group]:
    """The combinations by engine, and within an engine in the order in which they first appear."""
    found = [
        Group(contender, engine, results)
        for (contender, engine), results in tables.cells(row.result for row in rows).items()
    ]
    engines = list(dict.fromkeys(group.engine for group in sorted(found, key=_by_memory)))
    return sorted(found, key=lambda group: engines.index(group.engine))


def _by_memory(group: Group) -> tuple[str, int]:
    first = group.results[0]
    return first.engine, first.memory_mib
