"""The promises of the project against measurements of this machine: ``make bench``.

Every number is a median over interleaved repetitions of real runs (two edges, 18 ms to edge-2, no
loss, a request every 10 ms). Nothing here passes or fails: the table says what was met. Engines that this
machine cannot run are named with the reason, and have no line.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from bench.throughput import throughput_ratio
from cli.common.progress import perform_shown
from quicferry.migration.engines.registry import get, image_engines
from quicferry.record import RunResult, write_json
from quicferry.spec import RunSpec
from quicferry.strategies import RULES, ProbeOn, Strategy

POOLS = (1, 3, 7)
HANDOFF = "handoff"
ADDED_MIB = 100
MEMORY_STRATEGY = Strategy.PROACTIVE_EXPLICIT


class Promise(NamedTuple):
    """A line of the table: what was promised, and what was measured."""

    what: str
    promised: str
    measured: str
    met: bool


def cold_engines() -> list[str]:
    """Engines with which all memory crosses in the downtime."""
    return [name for name in image_engines() if not get(name).is_long]


def beside_downtime() -> list[str]:
    """Engines whose downtime shall not grow with the memory that is added."""
    return [*(name for name in image_engines() if get(name).is_long), HANDOFF]


def cells() -> list[RunSpec]:
    """One run of everything that a promise needs."""
    quick = [HANDOFF, *cold_engines()]
    plain = [
        RunSpec(strategy=strategy, server_first=first, engine=engine)
        for engine in quick
        for strategy in Strategy
        for first in (False, True)
    ]
    pools = [
        RunSpec(strategy=Strategy.POOL, server_first=first, engine=engine, pool=pool)
        for engine in quick
        for first in (False, True)
        for pool in POOLS[1:]
    ]
    return plain + pools + memory_cells()


def memory_cells() -> list[RunSpec]:
    """Each engine that keeps memory out of the downtime, without and with added memory."""
    return [
        RunSpec(strategy=MEMORY_STRATEGY, engine=engine, memory_mib=mib)
        for engine in beside_downtime()
        for mib in (0, ADDED_MIB)
    ]


def median(results: Iterable[RunResult], value: Callable[[RunResult], float | None]) -> float | None:
    """The median of a value over the runs that have it."""
    values = [number for result in results if (number := value(result)) is not None]
    return statistics.median(values) if values else None


def overhead_rtts(result: RunResult) -> float | None:
    """Connection overhead in round-trip times of this run's network."""
    if result.connection_overhead_ms is None or not result.rtt_ms:
        return None
    return result.connection_overhead_ms / result.rtt_ms


def beyond_pto_rtts(result: RunResult) -> float | None:
    """What the connection overhead is beyond one PTO, in round-trip times."""
    if result.connection_overhead_ms is None or result.pto_ms is None or not result.rtt_ms:
        return None
    return (result.connection_overhead_ms - result.pto_ms) / result.rtt_ms


def longer_than_pto(result: RunResult) -> bool:
    """Whether the downtime was longer than the client's PTO, so that it hid the detection."""
    return (result.container_downtime_ms or 0) > (result.pto_ms or 0)


def at_most(what: str, value: float | None, limit: float, unit: str, more: str = "") -> Promise:
    """A promise that a value does not exceed a limit."""
    if value is None:
        return Promise(what, f"≤ {limit:g} {unit}", "no run had it", False)
    return Promise(what, f"≤ {limit:g} {unit}{more}", f"{value:.2f} {unit}", value <= limit)


def overhead_promises(results: Sequence[RunResult]) -> list[Promise]:
    """Connection overhead: each strategy as published and server-first, each pool size."""
    promises: list[Promise] = []
    for strategy in Strategy:
        pools = POOLS if strategy is Strategy.POOL else (1,)
        for first in (False, True):
            for pool in pools:
                chosen = [
                    r for r in results if (r.strategy, r.server_first, r.pool) == (strategy, first, pool)
                ]
                name = RULES[strategy].title + (", server-first" if first else "")
                name += f", pool of {pool}" if len(pools) > 1 else ""
                if first or RULES[strategy].probe_on is not ProbeOn.LOSS:
                    promises.append(at_most(name, median(chosen, overhead_rtts), 1.1, "RTT"))
                else:
                    short = [r for r in chosen if not longer_than_pto(r)]
                    long = [r for r in chosen if longer_than_pto(r)]
                    promises.append(
                        at_most(f"{name}: beyond the PTO", median(short, beyond_pto_rtts), 1.1, "RTT")
                    )
                    promises.append(
                        at_most(f"{name}: downtime > PTO", median(long, overhead_rtts), 2.0, "RTT")
                    )
    return promises


def growth(results: Sequence[RunResult], engine: str) -> Promise:
    """How much longer the container downtime is with added memory: the ratio of medians."""
    chosen = [
        r for r in results if r.engine == engine and r.strategy == MEMORY_STRATEGY and not r.server_first
    ]
    without, added = (
        median((r for r in chosen if r.memory_mib == mib), lambda r: r.container_downtime_ms)
        for mib in (0, ADDED_MIB)
    )
    what = f"{engine}: container downtime, +{ADDED_MIB} MiB / +0 MiB"
    if not without or added is None:
        return Promise(what, "≤ 1.5", "no run had it", False)
    measured = f"{added / without:.2f} ({added:.0f} / {without:.0f} ms)"
    return Promise(what, "≤ 1.5", measured, added <= 1.5 * without)


def growths(results: Sequence[RunResult], refused: Collection[str]) -> list[Promise]:
    """A line for each engine whose downtime shall not grow, but for those that this machine cannot run."""
    return [growth(results, engine) for engine in beside_downtime() if engine not in refused]


def promises(results: Sequence[RunResult], ratio: float, refused: Collection[str]) -> list[Promise]:
    """All lines of the table, without those of engines that this machine cannot run (``refused``)."""
    memory = growths(results, refused)
    cold = [engine for engine in cold_engines() if engine not in refused]
    everything = results
    # the other promises are about servers without added memory, moved by the engines they name
    results = [r for r in results if not r.memory_mib and r.engine in (HANDOFF, *cold)]
    lines = overhead_promises(results)
    for strategy in Strategy:
        chosen = [r for r in results if r.engine == HANDOFF and r.strategy == strategy]
        rtt_ms = median(chosen, lambda r: r.rtt_ms) or 18.0
        published = [r for r in chosen if r.server_first or RULES[strategy].probe_on is not ProbeOn.LOSS]
        lines.append(
            at_most(
                f"hand-off, {RULES[strategy].title}: service-migration time",
                median(published, lambda r: r.service_migration_time_ms),
                round(3 * rtt_ms + 50, 1),
                "ms",
                " (3 RTT + 50 ms)",
            )
        )
    lines += [
        at_most(
            f"{engine}, +0 MiB, 1 Gbit/s: container downtime",
            median((r for r in results if r.engine == engine), lambda r: r.container_downtime_ms),
            500.0,
            "ms",
        )
        for engine in cold
    ]
    lines += memory
    lost = sum(result.requests_lost or 0 for result in everything)
    lines.append(Promise("requests lost, all runs", "0", str(lost), lost == 0))
    lines.append(
        Promise("bulk throughput, extension on / stock aioquic", "≥ 0.97", f"{ratio:.3f}", ratio >= 0.97)
    )
    return lines


def show(lines: Sequence[Promise], results: Sequence[RunResult]) -> None:
    """Print the table."""
    table = Table(title=f"Promises and measurements ({len(results)} runs)")
    for column in ("what", "promised", "measured (median)", ""):
        table.add_column(column)
    for line in lines:
        table.add_row(line.what, line.promised, line.measured, "met" if line.met else "[red]not met[/]")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main() -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each cell (default 5)")
    parser.add_argument("--runs", type=Path, default=None, help="where run directories go")
    parser.add_argument("--output", type=Path, default=None, help="also write all results as JSON")
    parser.add_argument("--memory", action="store_true", help="only what has to do with added memory")
    arguments = parser.parse_args()
    wanted = [
        msgspec.structs.replace(spec, seed=repetition + 1)
        for repetition in range(arguments.repetitions)
        for spec in (memory_cells() if arguments.memory else cells())
    ]
    results = perform_shown(wanted, arguments.runs)
    good = [result for result in results if result.outcome == "succeeded"]
    refused = {result.engine: result.error for result in results if result.outcome == "unsupported"}
    failed = [r for r in results if r.outcome != "succeeded" and r.engine not in refused]
    if arguments.memory:
        show(growths(good, refused), results)
    else:
        show(promises(good, throughput_ratio(), refused), results)
    for result in failed:
        print(f"{result.outcome}: {result.strategy} {result.engine}: {result.error}", file=sys.stderr)
    for engine, reason in refused.items():
        print(f"not measured: {engine}: {reason}", file=sys.stderr)
    if arguments.output is not None:
        write_json(arguments.output, results)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
