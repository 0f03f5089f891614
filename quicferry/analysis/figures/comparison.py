"""Draws a comparison of many runs: bars with intervals for each number, and the delivery gaps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib import rc_context
from matplotlib.figure import Figure

from quicferry.analysis import tables
from quicferry.analysis.analyse import Analysis, analyse
from quicferry.analysis.figures.style import (
    DPI,
    FAINT,
    GAP_COLOUR,
    INK,
    NEW_COLOUR,
    OLD_COLOUR,
    STYLE,
    WIDTH_IN,
    axes_beside_names,
    from_zero,
    save_figure,
)
from quicferry.analysis.statistics import summarise
from quicferry.capture.quic.packets import Direction
from quicferry.units import NS_PER_MS

#: bars need at least this many runs of a cell to say more than the table
REPEATED_RUNS = 2
_BARS = (
    ("service-migration-time", "Service-migration time", "service_migration_time_ms"),
    ("connection-overhead", "Connection overhead", "connection_overhead_ms"),
)


def comparison_figures(analyses: Sequence[Analysis]) -> dict[str, Any]:
    """File name -> figure; bars only when there is more than one kind of run, or several of one."""
    groups = tables.cells(analysis.result for analysis in analyses)
    figures: dict[str, Any] = {}
    if len(groups) > 1 or any(len(group) >= REPEATED_RUNS for group in groups.values()):
        for name, title, attribute in _BARS:
            values = {
                f"{contender} · {engine}": [
                    value for result in group if (value := getattr(result, attribute)) is not None
                ]
                for (contender, engine), group in groups.items()
            }
            if any(values.values()):
                figures[name] = bars_figure(values, title)
    gaps: dict[str, list[float]] = {}
    others = tables.other_axes(analysis.result for analysis in analyses)
    for analysis in analyses:
        name = f"{tables.name_in(analysis.result, others)} · {tables.engine_name(analysis.result)}"
        gaps.setdefault(name, []).extend(delivery_gaps_ms(analysis))
    if any(gaps.values()):
        figures["delivery-gaps"] = gaps_figure(gaps)
    return figures


def save_comparison(run_dirs: Sequence[Path], folder: Path) -> list[Path]:
    """Draw the figures over these runs, as PNG and SVG; returns the files. Raises ``StoreError``."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = comparison_figures([analyse(run_dir) for run_dir in run_dirs])
    return [path for name, figure in figures.items() for path in save_figure(figure, folder, name)]


def bars_figure(groups: Mapping[str, Sequence[float]], title: str, unit: str = "ms") -> Figure:
    """One bar per group: the median, its 95 % confidence interval, and each single value as a dot."""
    names = [name for name, values in groups.items() if values]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 1.5 + 0.42 * max(1, len(names))), dpi=DPI, facecolor="white")
        height = figure.get_size_inches()[1]
        axes = axes_beside_names(figure, names, bottom_in=0.62, top_in=0.53)
        figure.text(0.018, 1 - 0.27 / height, title, fontsize=13, fontweight="bold", va="center")
        for row, name in enumerate(names):
            summary = summarise(groups[name])
            axes.barh(row, summary.median, height=0.62, color="#9ccbe6", zorder=2)
            if summary.low is not None and summary.high is not None:
                errors = [[summary.median - summary.low], [summary.high - summary.median]]
                axes.errorbar(summary.median, row, xerr=errors, color=INK, capsize=4, linewidth=1.2, zorder=4)
            values = np.asarray(groups[name], dtype=float)
            spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(1)
            axes.plot(values, row + spread, "o", color=OLD_COLOUR, markersize=3.4, alpha=0.75, zorder=3)
            # at the foot of its bar: a value beside the farthest outlier seems to belong to that
            axes.annotate(
                f"{_number(summary.median)}",
                (0, row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9.5,
                fontweight="bold",
                bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1},
                zorder=5,
            )
        axes.set_xlabel(
            f"{unit}; bar: median, whisker: its 95 % confidence interval, dots: single runs", fontsize=9
        )
        from_zero(axes)
        return figure


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def gaps_figure(gaps_ms: Mapping[str, Sequence[float]], title: str = "Delivery gaps at the client") -> Figure:
    """How long the client waited between useful packets: the complementary distribution, on log axes."""
    colours = [OLD_COLOUR, GAP_COLOUR, NEW_COLOUR, "#cc79a7", "#e69f00", "#56b4e9", INK]
    dashes = ["-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2))]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH_IN, 4.6), dpi=DPI, facecolor="white")
        axes = figure.add_axes((0.08, 0.13, 0.9, 0.74))
        figure.text(0.018, 0.94, title, fontsize=13, fontweight="bold", va="center")
        for number, (name, values) in enumerate(gaps_ms.items()):
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
                color=colours[number % len(colours)],
                # so that no two of 28 lines are alike
                linestyle=dashes[(number % len(colours) + number // len(colours)) % len(dashes)],
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
