"""Draws the breakdown of a service-migration time as a strip in the timeline."""

from __future__ import annotations

from typing import Any

from quicferry.analysis.metrics import Metrics
from quicferry.units import ns_to_ms

COLOURS = {
    "in-flight": "#b8bec6",
    "downtime": "#d55e00",
    "detection": "#cc79a7",
    "dns": "#e69f00",
    "tcp": "#56b4e9",
    "tls": "#0072b2",
    "quic": "#56b4e9",
    "request": "#009e73",
}
#: the parts of the new connection: they end with the first useful byte
_FROM_THE_END = ("tcp", "tls", "quic", "request")
HEIGHT = 0.2
SEEN = 0.004  # of the picture's width


def intervals_ms(
    breakdown: dict[str, float], metrics: Metrics, zero_ns: int
) -> list[tuple[str, float, float]]:
    """Name, begin and end of each part; a part that took no time is left out."""
    if metrics.gap is None or metrics.frozen_ns is None:
        return []
    at = ns_to_ms(metrics.gap.last_old_ns - zero_ns)
    found = []
    for name, length in breakdown.items():
        if name not in _FROM_THE_END:
            if length > 0:
                found.append((name, at, at + length))
            at += length
    last = ns_to_ms(metrics.gap.first_new_ns - zero_ns)
    for name in reversed([name for name in breakdown if name in _FROM_THE_END]):
        if breakdown[name] > 0:
            found.append((name, last - breakdown[name], last))
        last -= breakdown[name]
    return sorted(found, key=lambda interval: interval[1])


def draw(axes: Any, intervals: list[tuple[str, float, float]], y: float, width: float, ink: str) -> None:
    """Draw the strip; a part's name stands in it where there is room for it, else beneath it.

    Names of parts too short to be seen are left out: the report has them all.
    """
    row_end = float("-inf")
    for name, begin, end in intervals:
        axes.barh(y, end - begin, left=begin, height=HEIGHT, color=COLOURS[name], edgecolor="white", zorder=3)
        needed = (len(name) + 1) * 0.0066 * width
        middle = (begin + end) / 2
        if end - begin >= needed:
            dark = name in ("tls", "downtime", "request")
            colour = "white" if dark else ink
            axes.text(middle, y, name, ha="center", va="center", fontsize=8, color=colour, zorder=4)
            continue
        if end - begin < SEEN * width:
            continue
        middle = max(middle, row_end + needed / 2)
        row_end = middle + needed / 2
        axes.text(
            middle, y - HEIGHT / 2 - 0.13, name, ha="center", va="center", fontsize=7.5, color=ink, zorder=4
        )
