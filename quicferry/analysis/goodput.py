"""Bulk traffic around a move: its rate over time, when 90 % of it are back, and what was sent twice.

Of a download it is the bytes in order that reach the client; of an upload those that the client sends for the
first time, as its congestion controller lets it, both at the client's interface.
"""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from quicferry.capture.quic.packets import Direction
from quicferry.units import NS_PER_MS, NS_PER_S

WINDOW_NS = 100 * NS_PER_MS
STEP_NS = 20 * NS_PER_MS
BEFORE_NS = NS_PER_S
AFTER_NS = 10 * NS_PER_S
SHARE = 0.9


class Goodput(NamedTuple):
    """Rates in 10^6 bit/s; moments in ms after the freeze."""

    before_mbps: float
    recovered_ms: float | None  # None: not within the capture
    curve: list[tuple[float, float]]
    sent_twice_bytes: int


def direction_of(workload: str, download: float, upload: float) -> Direction | None:
    """Which way the bulk traffic of a run goes; None: it has none, or of both kinds."""
    down, up = workload == "download" or download > 0, workload == "upload" or upload > 0
    if down == up:
        return None
    return Direction.TO_CLIENT if down else Direction.TO_SERVER


def goodput(traffic: pl.DataFrame, frozen_ns: int, direction: Direction) -> Goodput | None:
    """The rate of useful stream bytes around a freeze; None when there was none before it."""
    own = traffic.filter(
        (pl.col("direction") == direction.value)
        & (pl.col("frame") == "STREAM")
        & pl.col("length").is_not_null()
    ).sort("t_ns")
    new = own.filter(pl.col("new_bytes") > 0)
    first_ns = new["t_ns"].min()
    if not isinstance(first_ns, int) or first_ns >= frozen_ns - WINDOW_NS:
        return None
    since_ns = max(first_ns, frozen_ns - BEFORE_NS)
    before = _bytes(new, since_ns, frozen_ns)
    before_mbps = before * 8e3 / (frozen_ns - since_ns)
    last_ns = min(int(new["t_ns"].max()), frozen_ns + AFTER_NS)  # type: ignore[arg-type] # Int64 column
    ends = range(frozen_ns - BEFORE_NS, last_ns + 1, STEP_NS)
    curve = [
        ((end - frozen_ns) / NS_PER_MS, _bytes(new, end - WINDOW_NS, end) * 8e3 / WINDOW_NS) for end in ends
    ]
    # the window that still reaches back before the freeze says nothing of what came after it
    dip = next((t for t, rate in curve if t >= WINDOW_NS / NS_PER_MS and rate < SHARE * before_mbps), None)
    back = None
    if dip is None and curve and curve[-1][0] >= WINDOW_NS / NS_PER_MS:
        back = 0.0  # it never fell below
    elif dip is not None:
        back = next((t for t, rate in curve if t > dip and rate >= SHARE * before_mbps), None)
    after = own.filter(pl.col("t_ns") >= frozen_ns)
    twice = int((after["length"] - after["new_bytes"].fill_null(0)).sum() or 0)
    return Goodput(before_mbps, back, _thinned(curve), twice)


def _bytes(new: pl.DataFrame, since_ns: int, until_ns: int) -> int:
    within = new.filter((pl.col("t_ns") >= since_ns) & (pl.col("t_ns") < until_ns))
    return int(within["new_bytes"].sum() or 0)


def _thinned(curve: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """One value for each window, rounded; of several that are zero the first."""
    every = WINDOW_NS // STEP_NS
    points = [(round(t, 1), round(rate, 3)) for t, rate in curve[::every]]
    rates_before = [1.0, *(rate for _, rate in points)]
    return [point for point, before in zip(points, rates_before, strict=False) if point[1] or before]
