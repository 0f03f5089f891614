"""Containers: ours beside the published procedure, in turns: ``make bench-containers``.

Every cell is a run of one engine with one size and one rate between the edges; the strategy is Reactive
Explicit, a request leaves every 10 ms. The table has medians of the downtime and of its phases, and how
many times shorter ours is than the same technique as published, in the same cell. What this machine cannot
run is named with its reason, and is no failure. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from bench.bench_migration import median
from bench.container_figure import (
    bars,
    comparison,
    container_figure,
    overview,
    rate_text,
    size_text,
)
from cli.common.progress import perform_shown
from quicferry.analysis.figures.style import save_figure
from quicferry.events import Event, read_events
from quicferry.record import RunResult
from quicferry.spec import RunSpec
from quicferry.strategies import Strategy
from quicferry.units import NS_PER_MS

ENGINES = (
    *("published-cold", "published-pre-copy", "published-post-copy", "published-hybrid"),
    *("runc-cold", "runc-pre-copy", "runc-post-copy", "runc-hybrid"),
    "podman-cold",
)
#: The container's memory in the paper, in MB; what the server holds by itself is about 28.
SIZES_MIB = (0, 240)
RATES_MBPS = (1000.0, 100.0)
#: Probe of `quicferry doctor` that refuses an engine -> what stands in the figure; another one: its name.
WHY_NOT = {"oci-pre-dump": "needs soft-dirty tracking"}
BEGAN = "restore.started"


class Row(NamedTuple):
    """One line of the data: medians over the runs of one cell, in milliseconds."""

    engine: str
    memory_mib: int
    inter_edge_mbps: float
    runs: int
    downtime_ms: float | None
    downtime_least_ms: float | None
    downtime_most_ms: float | None
    dump_ms: float | None  # freeze and dump; with the transfer, where both overlap
    restore_ms: float | None
    restore_began_ms: float | None  # after the freeze
    service_migration_ms: float | None
    request_hit_ms: float | None  # the service time of the request that the move hit
    transferred_mb: float | None


def cells(sizes: Sequence[int], rates: Sequence[float], engines: Sequence[str]) -> list[RunSpec]:
    """One run of each engine, size and rate."""
    return [
        RunSpec(
            strategy=Strategy.REACTIVE_EXPLICIT,
            engine=engine,
            memory_mib=size,
            inter_edge_mbps=rate,
        )
        for rate in rates
        for size in sizes
        for engine in engines
    ]


def phase_ms(events: Sequence[Event], name: str) -> float | None:
    """How long a phase took; None when it was not completed."""
    times = {
        event.name.rpartition(".")[2]: event.t_ns for event in events if event.name.startswith(f"{name}.")
    }
    if "started" not in times or "complete" not in times:
        return None
    return (times["complete"] - times["started"]) / NS_PER_MS


def rows(results: Iterable[RunResult]) -> list[Row]:
    """One line for each cell, in the order of the first run of each."""
    groups: dict[tuple[str, int, float], list[RunResult]] = {}
    for result in results:
        if result.spec is not None and result.outcome == "succeeded":
            key = (result.engine, result.spec.memory_mib, result.spec.inter_edge_mbps)
            groups.setdefault(key, []).append(result)
    return [_row(key, group) for key, group in groups.items()]


def _row(key: tuple[str, int, float], group: list[RunResult]) -> Row:
    downtimes = [r.container_downtime_ms for r in group if r.container_downtime_ms is not None]
    told = [read_events(Path(r.run_dir) / "events.jsonl") for r in group if r.run_dir is not None]
    dumps = [ms for events in told if (ms := phase_ms(events, "migration.checkpoint")) is not None]
    restores = [ms for events in told if (ms := phase_ms(events, "migration.restore")) is not None]
    moved = [r.transferred_bytes / 1e6 for r in group if r.transferred_bytes is not None]
    return Row(
        *key,
        runs=len(group),
        downtime_ms=_median(downtimes),
        downtime_least_ms=min(downtimes, default=None),
        downtime_most_ms=max(downtimes, default=None),
        dump_ms=_median(dumps),
        restore_ms=_median(restores),
        restore_began_ms=_median([r.moments_ms[BEGAN] for r in group if r.moments_ms.get(BEGAN) is not None]),
        service_migration_ms=median(group, lambda r: r.service_migration_time_ms),
        request_hit_ms=median(group, lambda r: r.request_hit_ms),
        transferred_mb=_median(moved),
    )


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def show(lines: Sequence[Row]) -> None:
    """Print the table; the last column compares with the same technique as published, in the same cell."""
    table = Table(title="Containers: medians in ms")
    for column in (
        "Mbit/s",
        "+MiB",
        "engine",
        "runs",
        "downtime",
        "range",
        "dump",
        "restore",
        "request",
        "MB",
        "beside as published",
    ):
        table.add_column(column, justify="left" if column == "engine" else "right")
    for line in lines:
        table.add_row(
            f"{line.inter_edge_mbps:g}", str(line.memory_mib), line.engine, str(line.runs),
            _number(line.downtime_ms), f"{_number(line.downtime_least_ms)}-{_number(line.downtime_most_ms)}",
            _number(line.dump_ms), _number(line.restore_ms), _number(line.request_hit_ms),
            _number(line.transferred_mb), comparison(line, lines),
        )  # fmt: skip
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def write_csv(path: Path, lines: Sequence[Row]) -> None:
    """Write the data as CSV, a column for each field of ``Row``."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row._fields)
        writer.writerows(lines)


def draw(folder: Path, lines: Sequence[Row]) -> None:
    """Draw a figure for each size and rate into that folder, as png and svg."""
    folder.mkdir(parents=True, exist_ok=True)
    for size, rate in dict.fromkeys((line.memory_mib, line.inter_edge_mbps) for line in lines):
        title = f"Downtime of a container of about {size_text(size)}, {rate_text(rate)}"
        name = f"containers-{size}-mib-{rate:g}-mbps"
        save_figure(container_figure(bars(lines, size, rate), title), folder, name)


def draw_overview(folder: Path, lines: Sequence[Row], refused: Mapping[str, str]) -> None:
    """Draw all of it in one figure, ``containers``, into that folder, as png and svg."""
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(overview(lines, refused), folder, "containers")


def refusals(results: Iterable[RunResult]) -> dict[str, str]:
    """Engine -> why this machine cannot run it, in the words of the figure."""
    found: dict[str, str] = {}
    for result in results:
        if result.outcome == "unsupported":
            probe = (result.error or "").partition(":")[0]
            found[result.engine] = f"not on this machine: {WHY_NOT.get(probe, probe)}"
    return found


def main() -> None:
    """Run everything in turns and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3, help="runs of each cell (default 3)")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES_MIB, help="added memory, MiB")
    parser.add_argument(
        "--rates", type=float, nargs="*", default=RATES_MBPS, help="between the edges, Mbit/s"
    )
    parser.add_argument("--engines", nargs="*", default=ENGINES, help="engines to run")
    parser.add_argument("--runs", type=Path, default=None, help="where run directories go")
    parser.add_argument("--output", type=Path, default=None, help="also write the data as CSV")
    parser.add_argument("--figures", type=Path, default=None, help="also draw figures into this folder")
    arguments = parser.parse_args()
    wanted = [
        msgspec.structs.replace(spec, seed=repetition + 1)
        for repetition in range(arguments.repetitions)
        for spec in cells(arguments.sizes, arguments.rates, arguments.engines)
    ]
    results = perform_shown(wanted, arguments.runs)
    lines = rows(results)
    show(lines)
    if arguments.output is not None:
        write_csv(arguments.output, lines)
    if arguments.figures is not None:
        draw(arguments.figures, lines)
        draw_overview(arguments.figures, lines, refusals(results))
    others = [result for result in results if result.outcome != "succeeded"]
    for words in dict.fromkeys(f"{result.outcome}: {result.engine}: {result.error}" for result in others):
        print(words, file=sys.stderr)
    sys.exit(any(result.outcome != "unsupported" for result in others) or not lines)


if __name__ == "__main__":
    main()
