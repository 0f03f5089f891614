"""What things cost as they grow, each beside what physics asks for: ``make bench-cost``.

    sudo .venv/bin/python -m bench.bench_cost [--curves memory,clients] [--write docs/performance.md]

Runs are interleaved: each repetition plays every point of a table once, so that the ratio of two points is
one of the same minutes. What is written to a page replaces the tables of these curves, and leaves the others.
Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from bench import cost_of_parts
from bench.bench_notification import AIM_MS_PER_CLIENT, AIM_RTTS, notification
from bench.cost_page import Row, merged, now_and_here, page
from cli.common.progress import perform_shown
from quicferry.analysis.statistics import summarise
from quicferry.migration.engines.registry import get, image_engines
from quicferry.record import RunResult
from quicferry.spec import RunSpec
from session.request import to_spec

HANDOFF = "handoff"
MIB_BITS = 8 * (1 << 20)
INTER_EDGE_RTT_MS = 0.5  # the default of the topology two_edges
FEW = 2  # runs of what takes half a minute and more


class Point(NamedTuple):
    """One place of a curve: what grows, and the run that has so much of it."""

    x: float
    spec: RunSpec
    limit: float | None  # what it cannot be below, in the curve's unit
    is_long: bool = False  # performed ``FEW`` times


class Curve(NamedTuple):
    """One quantity over what grows, for one technique."""

    title: str  # curves of one title stand in one table
    grows: str
    quantity: str  # with its unit
    limit: str  # how the limit is reckoned
    series: str
    points: tuple[Point, ...]
    value: Callable[[RunResult], float | None]


def _downtime(result: RunResult) -> float | None:
    return result.container_downtime_ms


def memory() -> list[Curve]:
    """Downtime over added memory, for each technique, at 1 Gbit/s between the edges."""
    sizes = (0, 28, 280)

    def limit(engine: str, mib: int) -> float:
        all_at_once = engine != HANDOFF and not get(engine).is_long
        carried_ms = mib * MIB_BITS / 1e9 * 1e3 if all_at_once else 0.0
        return carried_ms + INTER_EDGE_RTT_MS / 2

    return [
        Curve(
            "Downtime over memory",
            "added memory, MiB",
            "container downtime, ms",
            "one way between the edges (0.25 ms); for cold, with the added memory at 1 Gbit/s",
            engine,
            tuple(
                Point(mib, to_spec({"engine": engine, "memory_mib": mib}), limit(engine, mib))
                for mib in sizes
            ),
            _downtime,
        )
        for engine in (HANDOFF, *image_engines())
    ]


def clients() -> list[Curve]:
    """Downtime, when clients are told of a move, and when they have followed, over their number."""
    specs = [(count, to_spec({"clients": count})) for count in (1, 10, 50, 100, 500, 1000, 2000)]

    def curve(series: str, value: Callable[[RunResult], float | None], *, is_aimed: bool) -> Curve:
        points = [
            Point(
                count,
                spec,
                AIM_RTTS * spec.rtt_ms + AIM_MS_PER_CLIENT * count if is_aimed else INTER_EDGE_RTT_MS / 2,
                is_long=count >= 1000,
            )
            for count, spec in specs
        ]
        return Curve(
            "Hand-off over the number of clients",
            "clients",
            "ms",
            "downtime: one way between the edges; else the aim, 1.5 round trips and 0.25 ms per client",
            series,
            tuple(points),
            value,
        )

    return [
        curve("downtime", _downtime, is_aimed=False),
        *(
            curve(f"{words}, {point}", partial(_moment, of=of, point=point), is_aimed=True)
            for words, of, points in (
                ("told and answered", "answered", ("median", "p95")),
                ("path validated", "validated", ("median", "p95")),
                ("switched", "switched", ("median", "p95", "last")),
            )
            for point in points
        ),
    ]


def _moment(result: RunResult, of: str, point: str) -> float | None:
    """One point of the spread of what all clients have done: ``answered``, ``validated`` or ``switched``."""
    spread = getattr(notification(result), of)
    return None if spread is None else float(getattr(spread, point))


def moves() -> list[Curve]:
    """The last move's downtime over how many there were before it."""
    hybrids = [name for name in image_engines() if get(name).copies_ahead and get(name).keeps_source]
    return [
        Curve(
            "Downtime of the last of several moves",
            "moves",
            "container downtime, ms",
            "that of the first move",
            engine,
            tuple(Point(count, to_spec({"engine": engine, "moves": count}), None) for count in (1, 4, 8)),
            lambda result: (
                result.moves[-1].container_downtime_ms if result.moves else result.container_downtime_ms
            ),
        )
        for engine in (HANDOFF, *hybrids)
    ]


def pool() -> list[Curve]:
    """Connection overhead over the number of addresses that a client probes."""
    return [
        Curve(
            "Connection overhead over the pool",
            "addresses",
            "connection overhead, ms",
            "one round trip, after the client's PTO unless the server speaks first",
            "server first" if first else "client first",
            tuple(
                Point(
                    size,
                    (spec := to_spec({"strategy": "pool", "pool": size, "server_first": first})),
                    spec.rtt_ms,
                )
                for size in (1, 3, 7)
            ),
            lambda result: result.connection_overhead_ms,
        )
        for first in (False, True)
    ]


def rtts() -> list[Curve]:
    """Connection overhead over the round-trip time."""
    return [
        Curve(
            "Connection overhead over the round-trip time",
            "RTT, ms",
            "connection overhead, ms",
            "half a round trip: the restored server's first packet",
            strategy,
            tuple(
                Point(
                    rtt,
                    to_spec({"strategy": strategy, "server_first": True, "rtt_ms": rtt, "after_s": 3.0}),
                    rtt / 2,
                )
                for rtt in (4.0, 18.0, 100.0, 400.0)
            ),
            lambda result: result.connection_overhead_ms,
        )
        for strategy in ("symmetric", "proactive-explicit")
    ]


CURVES: dict[str, Callable[[], list[Curve]]] = {
    "memory": memory, "clients": clients, "moves": moves, "pool": pool, "rtt": rtts,
}  # fmt: skip


def measure(curves: Sequence[Curve], repetitions: int, runs: Path | None) -> list[Row]:
    """Perform every point so many times, in an order drawn anew each time; the rows in the curves' order."""
    places = [(curve, point) for curve in curves for point in curve.points]
    order: list[tuple[RunSpec, int]] = []  # what is asked, and the seed
    for repetition in range(repetitions):
        drawn = list(
            dict.fromkeys(point.spec for _, point in places if repetition < FEW or not point.is_long)
        )
        random.Random(repetition).shuffle(drawn)
        order += [(spec, repetition + 1) for spec in drawn]
    asked = [msgspec.structs.replace(spec, seed=seed) for spec, seed in order]
    results = perform_shown(asked, runs, keep_network=True)
    of_spec: dict[RunSpec, list[RunResult]] = {}
    refused: set[str] = set()  # engines that this machine cannot run: their curves are left out
    for (spec, _), result in zip(order, results, strict=True):
        if result.is_measured:
            of_spec.setdefault(spec, []).append(result)
            continue
        if result.outcome == "unsupported":
            refused.add(spec.engine)
        sys.stderr.write(f"{result.engine}, {result.strategy}: {result.outcome}: {result.error}\n")
    left = [(curve, point) for curve, point in places if point.spec.engine not in refused]
    return rows_of(left, of_spec)


def rows_of(places: Sequence[tuple[Curve, Point]], of_spec: dict[RunSpec, list[RunResult]]) -> list[Row]:
    """The rows of these places in their order, from the results of each run that was asked for."""
    rows: list[Row] = []
    first: dict[tuple[str, str], float] = {}
    for curve, point in places:
        seen = [curve.value(result) for result in of_spec.get(point.spec, ())]
        values = [value for value in seen if value is not None]
        summary = summarise(values) if values else None
        name = (curve.title, curve.series)
        if summary is not None:
            first.setdefault(name, summary.median)
        ratio = summary.median / first[name] if summary is not None and first[name] else None
        rows.append(Row(*curve[:5], point.x, point.limit, summary, ratio))
    return rows


PARTS: dict[str, Callable[[int], list[Row]]] = {
    "hosts": cost_of_parts.hosts,
    "links": cost_of_parts.links,
    "packets": cost_of_parts.packets,
    "connections": cost_of_parts.connections,
    "idle": cost_of_parts.idle,
    "data-path": cost_of_parts.data_path,
}


def main() -> int:
    """Measure, print, and write the page and its data if asked to."""
    parser = argparse.ArgumentParser(prog="bench.bench_cost", description=__doc__.split("\n")[0])
    every = [*CURVES, *PARTS]
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--curves", default=",".join(every), help=f"some of {', '.join(every)}")
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--write", type=Path, help="a Markdown file; the data go beside it as JSON")
    arguments = parser.parse_args()
    wanted = arguments.curves.split(",")
    if unknown := set(wanted) - set(every):
        parser.error(f"no such curve: {', '.join(sorted(unknown))} (there are {', '.join(every)})")
    known = read(arguments.write)
    rows: list[Row] = []
    for name in wanted:
        measured = now_and_here()
        found = (
            measure(CURVES[name](), arguments.repetitions, arguments.runs)
            if name in CURVES
            else PARTS[name](arguments.repetitions)
        )
        rows += [row._replace(measured=measured) for row in found]
        if arguments.write is not None:  # after each: what is measured is not lost with what is not
            all_rows = merged(known, rows)
            arguments.write.write_text(page(all_rows))
            data = msgspec.json.format(msgspec.json.encode(all_rows))
            arguments.write.with_suffix(".json").write_bytes(data + b"\n")
    print(page(rows))
    return int(any(row.summary is None for row in rows))


def read(page_path: Path | None) -> list[Row]:
    """The data beside a page that was written before; none where there is no such file."""
    path = page_path.with_suffix(".json") if page_path is not None else None
    return (
        msgspec.json.decode(path.read_bytes(), type=list[Row]) if path is not None and path.exists() else []
    )


if __name__ == "__main__":
    sys.exit(main())
