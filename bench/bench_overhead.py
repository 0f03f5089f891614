"""What a run costs besides its load, and what a kept network changes: `make bench-overhead`.

    sudo .venv/bin/python -m bench.bench_overhead [--pairs 12] [--engine handoff] [--strategy symmetric]

A run with a network of its own and one in a kept network take turns, with the same request and seed, and each
pair begins with the other kind. Printed are, for both, the seconds of a run besides its load and its move
(from the request to the result on disk, without a picture), and for what is measured the median of the
differences within pairs with the 95 % interval of the bootstrap: the two kinds agree where it covers zero.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from quicferry.analysis.statistics import bootstrap_interval
from quicferry.events import read_events
from quicferry.record import RunPaths, RunResult
from quicferry.spec import RunSpec
from session.request import to_spec
from session.session import Session

NEW, KEPT = "new", "kept"
#: What is compared: a field of the result, and its name.
MEASURES = {
    "service_migration_time_ms": "service-migration time, ms",
    "container_downtime_ms": "downtime, ms",
    "connection_overhead_ms": "connection overhead, ms",
}


class Timed(NamedTuple):
    """A run, and how long it took besides load and move."""

    result: RunResult
    besides_s: float


class Difference(NamedTuple):
    """What differs within pairs: kept less new. ``interval`` is None for fewer than six pairs."""

    median: float
    interval: tuple[float, float] | None

    @property
    def is_none(self) -> bool:
        """Whether zero lies in the interval."""
        return self.interval is not None and self.interval[0] <= 0 <= self.interval[1]


def difference(new: Sequence[float], kept: Sequence[float]) -> Difference:
    """The median of the differences within pairs, and its interval."""
    differences = [b - a for a, b in zip(new, kept, strict=True)]
    return Difference(statistics.median(differences), bootstrap_interval(differences))


def timed(session: Session, spec: RunSpec) -> Timed:
    """Perform a run. Raises ``SystemExit`` when it fails: a pair that is not one says nothing."""
    begun = time.monotonic()
    result = session.perform(spec, 0)  # more are to come: the next is prepared
    took_s = time.monotonic() - begun
    if result.outcome != "succeeded" or result.run_dir is None:
        raise SystemExit(f"a run {result.outcome}: {result.error}")
    times = {event.name: event.t_ns for event in read_events(RunPaths(Path(result.run_dir)).events)}
    load_ns = times["run.collect.started"] - times["run.load.started"]
    return Timed(result, took_s - load_ns / 1e9)


#: Long enough for a measurement, and no longer.
LOAD = {"before_s": 0.5, "after_s": 0.5}


def by_turns(specs: Sequence[RunSpec], folder: Path) -> dict[str, list[Timed]]:
    """A pair for each request, after one run of each kind that does not count."""
    found: dict[str, list[Timed]] = {NEW: [], KEPT: []}
    with (
        Session(specs, folder, draw=False) as new,
        Session(specs, folder, draw=False, keep_network=True) as kept,
    ):
        sessions = {NEW: new, KEPT: kept}
        for session in sessions.values():
            timed(session, specs[0])
        for number, spec in enumerate(specs):
            for kind in (NEW, KEPT) if number % 2 else (KEPT, NEW):
                found[kind].append(timed(sessions[kind], spec))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--engine", default="handoff")
    parser.add_argument("--strategy", default="symmetric")
    arguments = parser.parse_args()
    asked = {"strategy": arguments.strategy, "engine": arguments.engine, **LOAD}
    specs = [to_spec({**asked, "seed": number + 1}) for number in range(arguments.pairs)]
    with tempfile.TemporaryDirectory(prefix="quicferry-overhead-") as folder:
        found = by_turns(specs, Path(folder))
    table = Table(title=f"{arguments.strategy} · {arguments.engine}, {arguments.pairs} pairs, medians")
    for heading in ("", "own network", "kept network", "difference within pairs, 95 %", "covers 0"):
        table.add_column(heading, justify="left" if not heading else "right")
    rows = {"a run besides load and move, s": {k: [each.besides_s for each in v] for k, v in found.items()}}
    for field, words in MEASURES.items():
        rows[words] = {k: [float(getattr(each.result, field)) for each in v] for k, v in found.items()}
    for words, values in rows.items():
        differs = difference(values[NEW], values[KEPT])
        between = "too few" if differs.interval is None else "{:+.2f} to {:+.2f}".format(*differs.interval)
        table.add_row(
            words,
            *(f"{statistics.median(values[kind]):.2f}" for kind in (NEW, KEPT)),
            f"{differs.median:+.2f} ({between})",
            "yes" if differs.is_none else "no",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
