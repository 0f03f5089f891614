"""What things cost as they grow, each beside what physics asks for: ``make bench-cost``.

    sudo .venv/bin/python -m bench.bench_cost [--curves memory,clients] [--write docs/performance.md]

Runs are interleaved: each repetition plays every point of every curve once, so that the ratio of two
points is one of the same minutes. Nothing here passes or fails.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
from jinja2 import Environment, StrictUndefined

from bench.bench_hosts import measured as deploy
from bench.bench_inspect import inspect_cpu_s
from bench.connection_cost import MEMORY, measured_apart
from cli.common.progress import perform_shown
from quicferry.analysis.statistics import Summary, summarise
from quicferry.experiment.machine import machine
from quicferry.migration.engines.registry import get, image_engines
from quicferry.record import RunResult
from quicferry.spec import RunSpec
from quicferry.units import figures
from session.request import to_spec

HANDOFF = "handoff"
MIB_BITS = 8 * (1 << 20)
INTER_EDGE_RTT_MS = 0.5  # the default of the topology two_edges
PAGE = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


class Point(NamedTuple):
    """One place of a curve: what grows, and the run that has so much of it."""

    x: float
    spec: RunSpec
    limit: float | None  # what it cannot be below, in the curve's unit


class Curve(NamedTuple):
    """One quantity over what grows, for one technique."""

    title: str  # curves of one title stand in one table
    grows: str
    quantity: str  # with its unit
    limit: str  # how the limit is reckoned
    series: str
    points: tuple[Point, ...]
    value: Callable[[RunResult], float | None]


class Row(NamedTuple):
    """One line of the page."""

    title: str
    grows: str
    quantity: str
    limit_is: str
    series: str
    x: float
    limit: float | None
    summary: Summary | None
    ratio: float | None  # to the first point of the series


def _downtime(result: RunResult) -> float | None:
    return result.container_downtime_ms


def memory() -> list[Curve]:
    """Downtime over added memory, for each technique, at 1 Gbit/s between the edges."""
    sizes = (0, 28, 100, 280)

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
    """Downtime, and when clients are back, over their number."""
    counts = (1, 10, 50, 100, 500)
    specs = [(count, to_spec({"clients": count})) for count in counts]
    return [
        Curve(
            "Hand-off over the number of clients",
            "clients",
            "ms",
            "downtime: one way between the edges; validated: one round trip to the clients",
            "downtime",
            tuple(Point(count, spec, INTER_EDGE_RTT_MS / 2) for count, spec in specs),
            _downtime,
        ),
        Curve(
            "Hand-off over the number of clients",
            "clients",
            "ms",
            "downtime: one way between the edges; validated: one round trip to the clients",
            "path validated, p95 of the clients",
            tuple(Point(count, spec, spec.rtt_ms) for count, spec in specs[1:]),
            lambda result: result.clients_validated_ms.get("p95"),
        ),
    ]


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
            tuple(Point(count, to_spec({"engine": engine, "moves": count}), None) for count in (1, 2, 4, 8)),
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
        drawn = list(dict.fromkeys(point.spec for _, point in places))
        random.Random(repetition).shuffle(drawn)
        order += [(spec, repetition + 1) for spec in drawn]
    results = perform_shown([msgspec.structs.replace(spec, seed=seed) for spec, seed in order], runs)
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


def hosts(repetitions: int) -> list[Row]:
    """How long a network takes to be there, over its hosts."""
    seen = [
        (count, [deploy(count, shaped=False).phases_s["ready"] for _ in range(repetitions)])
        for count in (10, 30, 100)
    ]
    return _own("A network over its hosts", "hosts", "until it carries packets, s", "bare network", seen)


def packets(repetitions: int) -> list[Row]:
    """CPU time of ``quicferry inspect`` over the packets of a capture."""
    seen = [(count, inspect_cpu_s(count, min(3, repetitions))) for count in (1_000, 10_000, 50_000)]
    return _own("Inspection over packets", "packets", "CPU time, s", "requests of 1 kB", seen)


def connections(repetitions: int) -> list[Row]:
    """What each step of a hand-off costs a connection, and the memory of one, over their number."""
    seen = [(count, [measured_apart(count) for _ in range(min(3, repetitions))]) for count in (50, 500)]
    rows: list[Row] = []
    for step in seen[0][1][0]:
        values = [(count, [cost[step] for cost in costs]) for count, costs in seen]
        quantity = "KiB" if step == MEMORY else "processor time, µs"
        rows += _own("What a connection costs a hand-off", "connections", quantity, step, values)
    return rows


def _own(
    title: str, grows: str, quantity: str, series: str, seen: Sequence[tuple[int, list[float]]]
) -> list[Row]:
    summaries = [summarise(values) for _, values in seen]
    first = summaries[0].median
    return [
        Row(title, grows, quantity, "none", series, x, None, summary, summary.median / first)
        for (x, _), summary in zip(seen, summaries, strict=True)
    ]


TEXT = """\
# What things cost as they grow

<!-- Made by `make bench-cost`; measure again instead of editing. -->

{{ machine.cpu }}, {{ machine.cores }} cores. Medians of {{ repetitions }} runs, interleaved; in
brackets the 95 % interval of the median, from six runs on. *Ratio*: to the first line of the same kind. *Limit*: what
no implementation gets below.
{% for title, rows in tables %}

## {{ title }}

Limit: {{ rows[0].limit_is }}.

| | {{ rows[0].grows }} | {{ rows[0].quantity }} | ratio | limit |
|---|---|---|---|---|
{% for row in rows %}
| {{ row.series }} | {{ "%g" | format(row.x) }} | {{ shown(row.summary) }} | {{ "" if row.ratio is none else "%.2f" | format(row.ratio) }} | {{ "" if row.limit is none else figures(row.limit) }} |
{% endfor %}
{% endfor %}
"""  # noqa: E501 - a table's line is one line


def shown(summary: Summary | None) -> str:
    """Median and interval."""
    if summary is None:
        return "not measured"
    if summary.low is None or summary.high is None:
        return figures(summary.median)
    return f"{figures(summary.median)} [{figures(summary.low)}, {figures(summary.high)}]"


def page(rows: Sequence[Row], repetitions: int) -> str:
    """All tables, in Markdown."""
    titles = list(dict.fromkeys(row.title for row in rows))
    tables = [(title, [row for row in rows if row.title == title]) for title in titles]
    text = PAGE.from_string(TEXT).render(
        machine=machine(), repetitions=repetitions, tables=tables, shown=shown, figures=figures
    )
    return text.rstrip() + "\n"


def main() -> int:
    """Measure, print, and write the page and its data if asked to."""
    parser = argparse.ArgumentParser(prog="bench.bench_cost", description=__doc__.split("\n")[0])
    every = [*CURVES, "hosts", "packets", "connections"]
    parser.add_argument("--repetitions", type=int, default=6)
    parser.add_argument("--curves", default=",".join(every), help=f"some of {', '.join(every)}")
    parser.add_argument("--runs", type=Path, default=None)
    parser.add_argument("--write", type=Path, help="a Markdown file; the data go beside it as JSON")
    arguments = parser.parse_args()
    wanted = arguments.curves.split(",")
    if unknown := set(wanted) - set(every):
        parser.error(f"no such curve: {', '.join(sorted(unknown))} (there are {', '.join(every)})")
    curves = [curve for name in wanted if name in CURVES for curve in CURVES[name]()]
    rows = measure(curves, arguments.repetitions, arguments.runs) if curves else []
    rows += hosts(arguments.repetitions) if "hosts" in wanted else []
    rows += packets(arguments.repetitions) if "packets" in wanted else []
    rows += connections(arguments.repetitions) if "connections" in wanted else []
    text = page(rows, arguments.repetitions)
    print(text)
    if arguments.write is not None:
        arguments.write.write_text(text)
        arguments.write.with_suffix(".json").write_bytes(
            msgspec.json.format(msgspec.json.encode(rows)) + b"\n"
        )
    return int(any(row.summary is None for row in rows))


if __name__ == "__main__":
    sys.exit(main())
