"""Draws the timeline of one run: the move in lanes, from the client to the destination."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from matplotlib import rc_context
from matplotlib.figure import Figure

from quicferry.analysis import tables
from quicferry.analysis.analyse import Analysis
from quicferry.analysis.endpoint_split import NEW, OLD, EndpointSplit
from quicferry.analysis.figures import breakdown_bars
from quicferry.analysis.figures.phases import PHASE_COLOURS
from quicferry.analysis.figures.style import (
    DPI,
    FAINT,
    GAP_COLOUR,
    INK,
    NEW_COLOUR,
    OLD_COLOUR,
    SOFT,
    STYLE,
    WIDTH_IN,
    save_figure,
)
from quicferry.analysis.metrics import Metrics
from quicferry.capture.quic.packets import Direction
from quicferry.units import NS_PER_MS, ns_to_ms

#: lane -> its place from the bottom
LANES = {"destination": 0.0, "network": 1.0, "source": 2.0, "client": 3.2}
_Y_LIMITS = (-0.62, 4.05)
_LANES_IN = 3.23
_LEGEND = ("\u25bc useful data from the old address", "\u25cf from the new")
_OF_QUIC = ("\u25c6 path probe", "\u2605 frame of the extension")
_OF_MULTIPATH = ("\u2605 MP_JOIN, ADD_ADDR, REMOVE_ADDR",)
_CONTROL = "SM_|MP_JOIN|ADD_ADDR|REMOVE_ADDR"  # frames of the extension, and what stands for them in MPTCP
_LANE_NAMES = {
    "client": "client",
    "source": "source edge",
    "network": "between edges",
    "destination": "destination edge",
}


#: turning points that the picture names
_TITLES = {
    "frozen": "frozen",
    "resumed": "resumed",
    "add_addr": "ADD_ADDR",
    "mp_join": "MP_JOIN",
    "remove_addr": "REMOVE_ADDR",
    "first_packet": "first packet from new address",
    "validated": "path validated",
    "useful": "first useful byte",
}


def save_timeline(analysis: Analysis, folder: Path) -> None:
    """Write ``timeline.png`` and ``timeline.svg`` into a folder."""
    save_figure(timeline_figure(analysis), folder, "timeline")


def timeline_figure(analysis: Analysis, *, titled: bool = True) -> Figure:
    """The move of one run: lanes for client, source, network and destination; zero is the freeze."""
    metrics, zero = analysis.metrics, analysis.zero_ns
    with rc_context(STYLE):
        if metrics is None or (metrics.frozen_ns is None and metrics.gap is None):
            figure = Figure(figsize=(WIDTH_IN, 2.0), dpi=DPI, facecolor="white")
            figure.text(0.5, 0.35, "nothing moved in this run", ha="center", va="center", color=SOFT)
            if titled:
                _title(figure, analysis)
            return figure
        low, high = _window_ms(metrics, zero)
        labels = _place_labels(metrics, zero, low, high)
        rows = 1 + max((label.row for label in labels), default=0)
        height = 0.62 + _LANES_IN + 0.14 + 0.21 * rows + (0.68 if titled else 0.08)
        figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
        axes = figure.add_axes((0.112, 0.62 / height, 0.868, _LANES_IN / height))
        if titled:
            _title(figure, analysis)
        axes.set_xlim(low, high)
        axes.set_ylim(*_Y_LIMITS)
        _lanes(axes)
        _gap(axes, metrics, zero)
        _server_bars(axes, metrics, zero, low, high)
        _phases(axes, metrics, zero, low, high)
        _packets(axes, analysis, zero, low, high)
        _breakdown(axes, analysis, metrics, zero, low, high)
        _moments(axes, labels)
        start = "the server froze" if metrics.frozen_ns is not None else "the client changed its address"
        axes.set_xlabel(f"milliseconds after {start}", fontsize=9, loc="left")
        legend = "   ".join(_LEGEND + (_OF_MULTIPATH if metrics.signals else _OF_QUIC))
        figure.text(0.98, 0.265 / height, legend, fontsize=8.5, color=SOFT, ha="right", va="center")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return figure


def _title(figure: Figure, analysis: Analysis) -> None:
    result, spec = analysis.result, analysis.manifest.spec
    title = f"{tables.title(spec)} · {spec.engine}"
    height = figure.get_size_inches()[1]
    figure.text(0.018, 1 - 0.26 / height, title, fontsize=14, fontweight="bold", va="center")
    words = []
    for label, value in (
        ("service-migration time", result.service_migration_time_ms),
        ("container downtime", result.container_downtime_ms),
        ("connection overhead", result.connection_overhead_ms),
        ("RTT", result.rtt_ms),
    ):
        if value is not None:
            words.append(f"{label} {_ms(value)}")
    if result.outcome != "succeeded":
        words.insert(0, f"{result.outcome}: {result.error or 'no reason given'}"[:110])
    figure.text(0.018, 1 - 0.54 / height, "   ·   ".join(words), fontsize=10, color=SOFT, va="center")


def _ms(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value / 1000:.2f} s"
    return (
        f"{value:.0f} ms"
        if abs(value) >= 100
        else f"{value:.1f} ms"
        if abs(value) >= 1
        else f"{value:.2f} ms"
    )


def _window_ms(metrics: Metrics, zero: int) -> tuple[float, float]:
    """A little more than what belongs to the move."""
    moments = [moment.t_ns for moment in metrics.moments() if not moment.name.startswith("commit.")]
    low, high = ns_to_ms(min(moments) - zero), ns_to_ms(max(moments) - zero)
    width = max(high - low, 1.0)
    return low - 0.16 * width, high + 0.2 * width


def _lanes(axes: Any) -> None:
    for y in LANES.values():
        axes.axhline(y, color=FAINT, linewidth=0.8, zorder=0)
    axes.set_yticks(list(LANES.values()), [_LANE_NAMES[name] for name in LANES])


def _gap(axes: Any, metrics: Metrics, zero: int) -> None:
    if metrics.gap is None:
        return
    begin, end = ns_to_ms(metrics.gap.last_old_ns - zero), ns_to_ms(metrics.gap.first_new_ns - zero)
    axes.axvspan(begin, end, color=GAP_COLOUR, alpha=0.10, linewidth=0, zorder=-1)
    y = LANES["client"] + 0.56
    axes.annotate(
        "", (begin, y), (end, y), arrowprops={"arrowstyle": "<->", "color": GAP_COLOUR, "linewidth": 1.4}
    )
    axes.text(
        (begin + end) / 2,
        y,
        f" {_ms(end - begin)} without service ",
        ha="center",
        va="center",
        fontsize=10,
        fontweight="bold",
        color=GAP_COLOUR,
        bbox={"facecolor": "#fdf1ea", "edgecolor": "none", "pad": 1.5},
    )


def _server_bars(axes: Any, metrics: Metrics, zero: int, low: float, high: float) -> None:
    """At which edge the server runs, and when."""
    if metrics.frozen_ns is None:
        axes.barh(LANES["source"], high - low, left=low, height=0.5, color=OLD_COLOUR, alpha=0.85)
        _bar_text(axes, "server runs", low, high, LANES["source"], "white", (low, high))
    else:
        end = ns_to_ms(metrics.frozen_ns - zero)
        axes.barh(LANES["source"], end - low, left=low, height=0.5, color=OLD_COLOUR, alpha=0.85)
        _bar_text(axes, "server runs", low, end, LANES["source"], "white", (low, high))
    if metrics.resumed_ns is not None:
        begin = ns_to_ms(metrics.resumed_ns - zero)
        axes.barh(LANES["destination"], high - begin, left=begin, height=0.5, color=NEW_COLOUR, alpha=0.85)
        _bar_text(axes, "server runs", begin, high, LANES["destination"], "white", (low, high))


def _phases(axes: Any, metrics: Metrics, zero: int, low: float, high: float) -> None:
    lanes = {"notice": "source", "checkpoint": "source", "transfer": "network", "restore": "destination"}
    smallest = (high - low) / 400  # a phase of a tenth of a millisecond must still be seen
    for span in metrics.spans:
        if span.name not in lanes:
            continue
        begin, end = ns_to_ms(span.begin_ns - zero), ns_to_ms(span.end_ns - zero)
        if end < low or begin > high:
            continue
        y = LANES[lanes[span.name]]
        is_over = span.name == "notice"  # it happens while the server still runs
        axes.barh(
            y + 0.36 if is_over else y,
            max(end - begin, smallest),
            left=begin,
            height=0.18 if is_over else 0.5,
            color=PHASE_COLOURS[span.name],
            edgecolor="white" if span.complete else GAP_COLOUR,
            linewidth=0.6 if span.complete else 1.5,
            hatch=None if span.complete else "///",
            zorder=3,
        )
        label = f"{span.name} {_ms(end - begin)}"
        if is_over:
            axes.text(begin, y + 0.5, label, fontsize=8, color=SOFT, ha="right" if begin > low else "left")
        else:
            _bar_text(axes, label, begin, end, y, INK, (low, high))


def _bar_text(
    axes: Any, text: str, begin: float, end: float, y: float, colour: str, window: tuple[float, float]
) -> None:
    """Write into a bar, or beneath it when it is too short for its text."""
    width = window[1] - window[0]
    needed = len(text) * 0.0069 * width
    middle = (max(begin, window[0]) + min(end, window[1])) / 2
    if end - begin >= needed:
        axes.text(middle, y, text, ha="center", va="center", fontsize=9, color=colour, zorder=4)
    else:
        half = needed / 2
        middle = min(max(middle, window[0] + half), window[1] - half)
        paper = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8}
        axes.text(
            middle, y - 0.42, text, ha="center", va="center", fontsize=8.5, color=SOFT, zorder=4, bbox=paper
        )


def _packets(axes: Any, analysis: Analysis, zero: int, low: float, high: float) -> None:
    """What came to the client above its line, what it sent beneath it."""
    table = analysis.packets.with_columns(((pl.col("t_ns") - zero) / NS_PER_MS).alias("t_ms")).filter(
        pl.col("t_ms").is_between(low, high) & pl.col("packet_number").is_not_null()
    )
    y = LANES["client"]
    table = EndpointSplit.of_run(analysis.manifest, analysis.events).labelled(table)
    to_client = pl.col("direction") == Direction.TO_CLIENT.value
    useful = pl.col("new_bytes") > 0
    for side, colour, marker in ((OLD, OLD_COLOUR, "v"), (NEW, NEW_COLOUR, "o")):
        came = table.filter(to_client & (pl.col("side") == side))
        good = came.filter(useful)["t_ms"].to_numpy()
        other = came.filter(~useful)["t_ms"].to_numpy()
        axes.vlines(other, y, y + 0.16, color=colour, linewidth=0.9, alpha=0.55, zorder=3)
        axes.vlines(good, y, y + 0.28, color=colour, linewidth=1.3, zorder=3)
        axes.plot(good, np.full(len(good), y + 0.30), marker, color=colour, markersize=4.2, zorder=4)
        sent = table.filter(~to_client & (pl.col("side") == side))["t_ms"].to_numpy()
        axes.vlines(sent, y - 0.2, y, color=colour, linewidth=1.1, alpha=0.8, zorder=3)
    others = table.filter(~to_client & pl.col("side").is_null())["t_ms"].to_numpy()
    axes.vlines(others, y - 0.2, y, color=SOFT, linewidth=1.1, zorder=3)
    probes = table.filter(pl.col("frames").str.contains("PATH_CHALLENGE") & ~to_client)["t_ms"].to_numpy()
    axes.plot(probes, np.full(len(probes), y - 0.28), "D", color=INK, markersize=3.6, zorder=5, clip_on=True)
    control = table.filter(pl.col("frames").str.contains(_CONTROL)).select("t_ms", to_client.alias("came"))
    for at, came in control.iter_rows():
        axes.plot([at], [y + 0.42 if came else y - 0.28], "*", color=GAP_COLOUR, markersize=8, zorder=6)
    beside = {"fontsize": 8, "color": SOFT, "va": "center", "ha": "right"}
    edge = low - 0.005 * (high - low)
    axes.text(edge, y + 0.26, "received", **beside)
    axes.text(edge, y - 0.26, "sent", **beside)


def _breakdown(axes: Any, analysis: Analysis, metrics: Metrics, zero: int, low: float, high: float) -> None:
    """What a client that reconnected by itself spent the gap on, beneath its packets."""
    intervals = breakdown_bars.intervals_ms(analysis.result.breakdown_ms, metrics, zero)
    if intervals:
        y = LANES["client"] - 0.46
        breakdown_bars.draw(axes, intervals, y, high - low, INK)
        edge = low - 0.005 * (high - low)
        axes.text(edge, y, "spent on", fontsize=8, color=SOFT, va="center", ha="right")


class _Label(NamedTuple):
    """A turning point with the place of its words, in milliseconds."""

    at: float
    middle: float
    row: int
    text: str


def _place_labels(metrics: Metrics, zero: int, low: float, high: float) -> list[_Label]:
    """Labels beside each other where they fit, else one row higher."""
    found = [(ns_to_ms(m.t_ns - zero), _TITLES[m.name]) for m in metrics.moments() if m.name in _TITLES]
    joined: list[tuple[float, str]] = []
    for at, title in found:  # what happens at one moment shares a line
        if joined and abs(joined[-1][0] - at) < (high - low) * 1e-4:
            joined[-1] = (joined[-1][0], f"{joined[-1][1]}, {title}")
        else:
            joined.append((at, title))
    ends: list[float] = []  # where the last label of each row ends
    labels: list[_Label] = []
    for at, title in joined:
        text = f"{title}  {at:+.1f}"
        width = len(text) * 0.0063 * (high - low)
        begins = [min(max(begin, low), high - width) for begin in (at - width / 2, at - 0.06 * width)]
        place = next(((row, begin) for row, end in enumerate(ends) for begin in begins if begin > end), None)
        row, begin = place if place is not None else (len(ends), begins[0])
        if row == len(ends):
            ends.append(begin)
        ends[row] = begin + width + 0.008 * (high - low)
        labels.append(_Label(at, begin + width / 2, row, text))
    return labels


def _moments(axes: Any, labels: Sequence[_Label]) -> None:
    """The turning points as lines with their labels above the picture."""
    bottom, top = _Y_LIMITS
    paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
    for label in labels:
        y = top + 0.12 + 0.3 * label.row
        line = {"color": INK, "linewidth": 0.7, "linestyle": (0, (3, 2)), "zorder": 0.5, "clip_on": False}
        axes.plot([label.at, label.at], [bottom, y], **line)
        words = {"fontsize": 8.5, "ha": "center", "va": "bottom", "color": INK, "zorder": 6}
        axes.text(label.middle, y + 0.02, label.text, bbox=paper, **words)
