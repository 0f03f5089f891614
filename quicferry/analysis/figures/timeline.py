"""Pictures: the timeline of one run, bars over many runs, the distribution of delivery gaps.

Colours are Okabe and Ito's set, which people with the common kinds of colour blindness can tell
apart; nothing is said by colour alone. Pictures are 1200 pixels wide at 100 dpi.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib as mpl
import numpy as np
import polars as pl

mpl.use("Agg")  # no display is there, and none is asked for

from matplotlib import rc_context
from matplotlib.figure import Figure

from quicferry.analysis import tables
from quicferry.analysis.endpoint_split import NEW as NEW_PLACE
from quicferry.analysis.endpoint_split import OLD as OLD_PLACE
from quicferry.analysis.endpoint_split import Places
from quicferry.analysis.figures import breakdown_bars as part_bars
from quicferry.analysis.move import Metrics
from quicferry.analysis.statistics import summarise
from quicferry.capture.quic.decrypt import Direction
from quicferry.units import NS_PER_MS, ns_to_ms

if TYPE_CHECKING:
    from quicferry.analysis.analyse import Analysis

WIDTH_IN, DPI = 12.0, 100

INK = "#1b1f24"
SOFT = "#6b7280"
FAINT = "#d7dbe0"
OLD = "#0072b2"  # the source
NEW = "#009e73"  # the destination
GAP = "#d55e00"  # without service
PHASE_COLOURS = {
    "notice": "#cc79a7",
    "checkpoint": "#e69f00",
    "transfer": "#56b4e9",
    "restore": "#f0e442",
    "commit": "#b8bec6",
}
STYLE: Any = {  # matplotlib types its keys as one enormous Literal
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "quicferry",  # the same run gives the same file
}
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
    figure = timeline_figure(analysis)
    with rc_context(STYLE):
        figure.savefig(folder / "timeline.png", dpi=DPI)
        figure.savefig(folder / "timeline.svg", metadata={"Date": None})


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element for a page: without the XML heading and fixed size."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


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
        _service_bars(axes, metrics, zero, low, high)
        _phases(axes, metrics, zero, low, high)
        _packets(axes, analysis, zero, low, high)
        _parts(axes, analysis, metrics, zero, low, high)
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
    axes.axvspan(begin, end, color=GAP, alpha=0.10, linewidth=0, zorder=-1)
    y = LANES["client"] + 0.56
    axes.annotate("", (begin, y), (end, y), arrowprops={"arrowstyle": "<->", "color": GAP, "linewidth": 1.4})
    axes.text(
        (begin + end) / 2,
        y,
        f" {_ms(end - begin)} without service ",
        ha="center",
        va="center",
        fontsize=10,
        fontweight="bold",
        color=GAP,
        bbox={"facecolor": "#fdf1ea", "edgecolor": "none", "pad": 1.5},
    )


def _service_bars(axes: Any, metrics: Metrics, zero: int, low: float, high: float) -> None:
    """Where the server runs."""
    if metrics.frozen_ns is None:
        axes.barh(LANES["source"], high - low, left=low, height=0.5, color=OLD, alpha=0.85)
        _bar_text(axes, "server runs", low, high, LANES["source"], "white", (low, high))
    else:
        end = ns_to_ms(metrics.frozen_ns - zero)
        axes.barh(LANES["source"], end - low, left=low, height=0.5, color=OLD, alpha=0.85)
        _bar_text(axes, "server runs", low, end, LANES["source"], "white", (low, high))
    if metrics.resumed_ns is not None:
        begin = ns_to_ms(metrics.resumed_ns - zero)
        axes.barh(LANES["destination"], high - begin, left=begin, height=0.5, color=NEW, alpha=0.85)
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
            edgecolor="white" if span.complete else GAP,
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
    table = Places.of(analysis.manifest, analysis.events).placed(table)
    to_client = pl.col("direction") == Direction.TO_CLIENT.value
    useful = pl.col("new_bytes") > 0
    for place, colour, marker in ((OLD_PLACE, OLD, "v"), (NEW_PLACE, NEW, "o")):
        came = table.filter(to_client & (pl.col("place") == place))
        good = came.filter(useful)["t_ms"].to_numpy()
        other = came.filter(~useful)["t_ms"].to_numpy()
        axes.vlines(other, y, y + 0.16, color=colour, linewidth=0.9, alpha=0.55, zorder=3)
        axes.vlines(good, y, y + 0.28, color=colour, linewidth=1.3, zorder=3)
        axes.plot(good, np.full(len(good), y + 0.30), marker, color=colour, markersize=4.2, zorder=4)
        sent = table.filter(~to_client & (pl.col("place") == place))["t_ms"].to_numpy()
        axes.vlines(sent, y - 0.2, y, color=colour, linewidth=1.1, alpha=0.8, zorder=3)
    others = table.filter(~to_client & pl.col("place").is_null())["t_ms"].to_numpy()
    axes.vlines(others, y - 0.2, y, color=SOFT, linewidth=1.1, zorder=3)
    probes = table.filter(pl.col("frames").str.contains("PATH_CHALLENGE") & ~to_client)["t_ms"].to_numpy()
    axes.plot(probes, np.full(len(probes), y - 0.28), "D", color=INK, markersize=3.6, zorder=5, clip_on=True)
    control = table.filter(pl.col("frames").str.contains(_CONTROL)).select("t_ms", to_client.alias("came"))
    for at, came in control.iter_rows():
        axes.plot([at], [y + 0.42 if came else y - 0.28], "*", color=GAP, markersize=8, zorder=6)
    beside = {"fontsize": 8, "color": SOFT, "va": "center", "ha": "right"}
    edge = low - 0.005 * (high - low)
    axes.text(edge, y + 0.26, "received", **beside)
    axes.text(edge, y - 0.26, "sent", **beside)


def _parts(axes: Any, analysis: Analysis, metrics: Metrics, zero: int, low: float, high: float) -> None:
    """What a client that came back by itself spent the gap on, beneath its packets."""
    places = part_bars.places_ms(analysis.result.parts_ms, metrics, zero)
    if places:
        y = LANES["client"] - 0.46
        part_bars.draw(axes, places, y, high - low, INK)
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


def bars_figure(groups: Mapping[str, Sequence[float]], title: str, unit: str = "ms") -> Figure:
    """One bar per group: the median, its 95 % confidence interval, and each single value as a dot."""
    names = [name for name, values in groups.items() if values]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 1.5 + 0.42 * max(1, len(names))), dpi=DPI, facecolor="white")
        height = figure.get_size_inches()[1]
        axes = figure.add_axes((0.27, 0.62 / height, 0.7, 1 - 1.15 / height))
        figure.text(0.018, 1 - 0.27 / height, title, fontsize=13, fontweight="bold", va="center")
        for place, name in enumerate(names):
            summary = summarise(groups[name])
            axes.barh(place, summary.median, height=0.62, color="#9ccbe6", zorder=2)
            if summary.low is not None and summary.high is not None:
                errors = [[summary.median - summary.low], [summary.high - summary.median]]
                axes.errorbar(
                    summary.median, place, xerr=errors, color=INK, capsize=4, linewidth=1.2, zorder=4
                )
            values = np.asarray(groups[name], dtype=float)
            spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
            axes.plot(values, place + spread, "o", color=OLD, markersize=3.4, alpha=0.75, zorder=3)
            edge = max([float(values.max()), summary.high or 0.0])
            axes.annotate(
                f"{_number(summary.median)}",
                (edge, place),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.margins(x=0.12)
        axes.set_xlabel(
            f"{unit}; bar: median, whisker: its 95 % confidence interval, dots: single runs", fontsize=9
        )
        axes.grid(axis="x", color=FAINT, linewidth=0.8, zorder=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return figure


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def gaps_figure(gaps_ms: Mapping[str, Sequence[float]], title: str = "Delivery gaps at the client") -> Figure:
    """How long the client waited between useful packets: the complementary distribution, on log axes."""
    colours = [OLD, GAP, NEW, "#cc79a7", "#e69f00", "#56b4e9", INK]
    dashes = ["-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2))]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 4.6), dpi=DPI, facecolor="white")
        axes = figure.add_axes((0.08, 0.13, 0.9, 0.74))
        figure.text(0.018, 0.94, title, fontsize=13, fontweight="bold", va="center")
        for place, (name, values) in enumerate(gaps_ms.items()):
            ordered = np.sort(np.asarray([value for value in values if value > 0], dtype=float))
            if len(ordered) == 0:
                continue
            share = 1 - np.arange(len(ordered)) / len(ordered)
            axes.step(
                ordered,
                share,
                where="post",
                label=name,
                linewidth=1.8,
                color=colours[place % len(colours)],
                # so that no two of 28 lines are alike
                linestyle=dashes[(place % len(colours) + place // len(colours)) % len(dashes)],
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("gap between useful packets, ms", fontsize=9)
        axes.set_ylabel("share of gaps at least that long", fontsize=9)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        if axes.get_legend_handles_labels()[0]:
            columns = 1 + (len(gaps_ms) - 1) // 8
            axes.legend(frameon=False, fontsize=9, loc="lower left", ncols=columns)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        return figure


def delivery_gaps_ms(analysis: Analysis) -> list[float]:
    """Times between useful packets at the client, in milliseconds."""
    stamps = analysis.packets.filter(
        (pl.col("direction") == Direction.TO_CLIENT.value) & (pl.col("new_bytes") > 0)
    )["t_ns"].to_numpy()
    return [float(gap) for gap in np.diff(stamps) / NS_PER_MS]
