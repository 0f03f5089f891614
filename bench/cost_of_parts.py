"""What the parts of the testbed cost without a run: networks, links, inspection, connections, data path."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.bench_hosts import measured as deploy
from bench.bench_inspect import inspect_cpu_s
from bench.bench_links import Crossed, crossed, paced
from bench.connection_cost import MEMORY, measured_apart
from bench.cost_page import Row, own_rows
from bench.idle import MEMORY as IDLE_MEMORY
from bench.idle import by_turns
from bench.turns import ratios_by_turns
from quicferry.emulation.links.calibrate import nearest_rank
from quicferry.emulation.links.layer import choose_backend
from quicferry.emulation.sandbox.namespaces import in_new_netns

DELAY_MS = 5.0
FRAME_BYTES = 1200
STOCK, OURS = "stock", "extended"


def hosts(repetitions: int) -> list[Row]:
    """How long a network takes to be there, over its hosts."""
    seen = [
        (count, [deploy(count, shaped=False).phases_s["ready"] for _ in range(repeated)])
        for count, repeated in ((10, repetitions), (30, repetitions), (100, repetitions), (1000, 1))
    ]
    return own_rows("A network over its hosts", "hosts", "until it carries packets, s", "bare network", seen)


def packets(repetitions: int) -> list[Row]:
    """CPU time of ``quicferry inspect`` over the packets of a capture."""
    seen = [(count, inspect_cpu_s(count, min(3, repetitions))) for count in (1_000, 10_000, 50_000)]
    return own_rows("Inspection over packets", "packets", "CPU time, s", "requests of 1 kB", seen)


def connections(repetitions: int) -> list[Row]:
    """What each step of a hand-off costs a connection, and the memory of one, over their number."""
    seen = [(count, [measured_apart(count) for _ in range(min(3, repetitions))]) for count in (50, 500)]
    rows: list[Row] = []
    for step in seen[0][1][0]:
        values = [(count, [cost[step] for cost in costs]) for count, costs in seen]
        quantity = "KiB" if step == MEMORY else "processor time, µs"
        rows += own_rows("What a connection costs a hand-off", "connections", quantity, step, values)
    return rows


def links(repetitions: int) -> list[Row]:
    """How exact single packets are delayed at a pace, and how many cross a link."""
    backend = choose_backend("auto")
    seen = {
        pace: [in_new_netns(partial(paced, backend, pace, DELAY_MS)).errors_ms for _ in range(repetitions)]
        for pace in (1_000, 10_000, 20_000)
    }
    rows: list[Row] = []
    for percent, series in ((50, "median"), (99, "99th percentile")):
        places = [
            (pace, [nearest_rank(each, percent) or 0.0 for each in errors]) for pace, errors in seen.items()
        ]
        rows += own_rows(
            "Error of a link's delay",
            "packets per second",
            "too long, ms",
            series,
            places,
            limit_is="0",
            limit=0,
        )
    offers = {
        offer: [in_new_netns(partial(crossed, backend, FRAME_BYTES, offer)) for _ in range(repetitions)]
        for offer in (10_000, 50_000, 100_000, 200_000, 400_000)
    }
    values: dict[str, Callable[[Crossed], float]] = {
        "cross, thousands per second": lambda each: each.arrived_per_s / 1e3,
        "never arrive, %": lambda each: each.missing_percent,
        "processor time of the cable for each, µs": lambda each: each.cpu_us or 0.0,
    }
    for series, value in values.items():
        rows += own_rows(
            f"Frames of {FRAME_BYTES} bytes over one link",
            "offered per second",
            "",
            series,
            [(offer, [value(each) for each in found]) for offer, found in offers.items()],
        )
    return rows


def idle(repetitions: int) -> list[Row]:
    """What an idle connection costs a server, with the extension and in stock aioquic."""
    seen = by_turns(repetitions)
    rows: list[Row] = []
    for what in seen[STOCK][0]:
        unit = "KiB" if what == IDLE_MEMORY else "µs"
        name = what.rpartition(",")[0]
        for kind, series in ((STOCK, "stock aioquic"), (OURS, "with the extension")):
            values = [each[what] for each in seen[kind]]
            rows += own_rows(
                "An idle connection", "connections", "each", f"{name}, {unit}: {series}", [(200, values)]
            )
        ratios = [ours[what] / stock[what] for stock, ours in zip(seen[STOCK], seen[OURS], strict=True)]
        rows += own_rows(
            "An idle connection", "connections", "each", f"{name}: ratio, pair by pair", [(200, ratios)]
        )
    return rows


def data_path(repetitions: int) -> list[Row]:
    """Throughput of bulk transfers against stock aioquic, pair by pair."""
    rows: list[Row] = []
    for module, series in (
        ("bench.throughput", "connection, without a network"),
        ("bench.endpoint", "whole endpoint, over loopback"),
    ):
        ratios = ratios_by_turns(module, repetitions)
        rows += own_rows(
            "Throughput of a bulk transfer against stock aioquic",
            "MiB",
            "times as much",
            series,
            [(6, ratios)],
        )
    return rows
