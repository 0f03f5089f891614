"""What is drawn: every axis of ``quicferry.spec`` cut into levels.

A *factor* is an axis, or strategy and baseline together, as a run has one of them. A *level* is a value
or a range of values of it: its default, the ends of what is allowed, and a log-uniform range on either
side of the default. Names come from the registries, bounds and choices from ``axes()``. The one thing
written here is ``SHORT``: how far an axis is drawn, so that a run is over in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from random import Random
from typing import Any, NamedTuple

import baselines
import topologies
from apps.client import workloads
from quicferry.experiment.faults import ROWS
from quicferry.migration.engines import registry
from quicferry.spec import Axis, axes
from quicferry.strategies import Strategy

Draw = Callable[[Random], dict[str, Any]]

#: axis -> (least, most of the ranges, most at all). Runs are to be short and small: what costs minutes or
#: gibibytes at an end that the tool allows is drawn up to here.
SHORT: dict[str, tuple[float, float, float]] = {
    "rtt_ms": (0, 300, 600),
    "source_rtt_ms": (0, 300, 600),
    "jitter_ms": (0, 5, 20),
    "loss_percent": (0, 2, 5),
    "rate_mbps": (1, 200, 1000),
    "loss_burst_packets": (1, 3, 8),
    "reorder_percent": (0, 2, 5),
    "duplicate_percent": (0, 2, 5),
    "corrupt_percent": (0, 1, 3),
    "inter_edge_mbps": (100, 2000, 10_000),
    "memory_mib": (0, 32, 64),
    "dirty_mib_s": (0, 30, 100),
    "interval_ms": (0, 100, 500),
    "request_bytes": (0, 4096, 65_536),
    "response_bytes": (0, 16_384, 65_536),
    "download_mib": (0, 4, 10),
    "upload_mib": (0, 4, 10),
    "before_s": (0.3, 1.5, 2),
    "after_s": (0.5, 2, 3),
    "dns_ttl_s": (0, 3, 5),
    "tcp_user_timeout_ms": (0, 2000, 3000),
    "request_timeout_ms": (500, 2000, 3000),
    "downtime_ms": (0, 500, 1500),
    "bit_rate_mbps": (1, 8, 16),
    "clients": (1, 4, 8),
    "plain_clients": (0, 2, 4),
    "moves": (1, 3, 5),
}
#: Not drawn as a level: every line has a seed of its own, and words of any form are no levels.
UNCOVERED = ("seed", "rate_trace", "flap", "image", "command", "volumes")
CONTENDER = "contender"

_NAMES: dict[str, Callable[[], Collection[str]]] = {
    "topology": topologies.names,
    "engine": registry.engines,
    "workload": workloads.names,
}


class Level(NamedTuple):
    """One level of a factor. ``tokens`` are what it counts as in pairs, ``draw`` gives axis values."""

    name: str
    tokens: tuple[str, ...]
    draw: Draw


def factors() -> dict[str, list[Level]]:
    """Every factor and its levels; the first level of each is its default."""
    found: dict[str, list[Level]] = {CONTENDER: _contenders()}
    for axis in axes().values():
        if axis.name not in (*UNCOVERED, "strategy", "baseline"):
            found[axis.name] = _levels(axis)
    return found


def _contenders() -> list[Level]:
    default = axes()["strategy"].default
    names = sorted(Strategy, key=lambda strategy: strategy != default)
    levels = [_fixed(CONTENDER, "strategy", str(strategy)) for strategy in names]
    return levels + [_fixed(CONTENDER, "baseline", name) for name in baselines.names()]


def _fixed(factor: str, axis: str, value: Any) -> Level:
    name = f"{factor}={value}"
    return Level(name, (name,), lambda _: {axis: value})


def _levels(axis: Axis) -> list[Level]:
    if axis.kind == "faults":
        none = Level("faults=none", ("fault point=none", "fault kind=none"), lambda _: {})
        return [none, *(_fault(row.name, row.point, row.kind) for row in ROWS)]
    if axis.kind is bool:
        return [_fixed(axis.name, axis.name, axis.default), _fixed(axis.name, axis.name, not axis.default)]
    if axis.name in _NAMES or axis.choices:
        values = _NAMES[axis.name]() if axis.name in _NAMES else axis.choices
        ordered = sorted(values, key=lambda value: value != axis.default)  # a stable sort: default first
        return [_fixed(axis.name, axis.name, value) for value in ordered]
    return _numbers(axis)


def _fault(name: str, point: str, kind: str) -> Level:
    # point and kind are covered each for itself: all rows with everything else would take a day
    tokens = (f"fault point={point}", f"fault kind={kind}")
    return Level(f"faults={name}", tokens, lambda _: {"faults": (name,)})


def _numbers(axis: Axis) -> list[Level]:
    """Default, both ends, and a log-uniform range on either side of the default (or of the middle)."""
    assert axis.least is not None
    assert axis.most is not None
    least, upto, most = SHORT.get(axis.name, (axis.least, axis.most, axis.most))
    start = max(least, 1.0 if axis.kind is int else upto / 1000)  # where a log-uniform range can begin
    default = axis.default
    middle = default if default is not None and start < default < upto else math.sqrt(start * upto)

    def ranged(word: str, low: float, high: float) -> Level:
        name = f"{axis.name}={word}"

        def draw(random: Random) -> dict[str, Any]:
            value = math.exp(random.uniform(math.log(low), math.log(high)))
            return {axis.name: _number(axis, value)}

        return Level(name, (name,), draw)

    name = f"{axis.name}=default"
    levels = [Level(name, (name,), lambda _: {})]
    if least != default:
        levels.append(_end(axis, "least", least))
    levels += [ranged("low", start, middle), ranged("high", middle, upto)]
    if most != default:
        levels.append(_end(axis, "most", most))
    return levels


def _end(axis: Axis, word: str, value: float) -> Level:
    name = f"{axis.name}={word}"
    return Level(name, (name,), lambda _: {axis.name: _number(axis, value)})


def _number(axis: Axis, value: float) -> int | float:
    return round(value) if axis.kind is int else float(f"{value:.3g}")
