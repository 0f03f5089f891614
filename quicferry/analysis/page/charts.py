"""Figures over all runs of a report, with plotly: bars with intervals, stacked phases, distributions.

Nothing is told by colour alone: bars have their value and name, lines a dash pattern, phases a hatching.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from quicferry.analysis.figures.phases import PHASE_COLOURS
from quicferry.analysis.metrics import PHASES
from quicferry.analysis.page.groups import MEASURES, Group, Measure
from quicferry.analysis.statistics import Summary

INK, SOFT, LINE = "#1b1f24", "#5d6570", "#d7dbe0"
STRATEGY_BAR, BASELINE_BAR, DOT = "#9ccbe6", "#e3d3a6", "#0072b2"
PHASE_PATTERNS = {"notice": ".", "checkpoint": "/", "transfer": "", "restore": "\\", "commit": "x"}
LINE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b1f24")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")
PATTERN = {"fillmode": "overlay", "fgcolor": INK, "fgopacity": 0.55, "size": 7, "solidity": 0.12}
_ROW_PX = 34


def layout(height: int, **more: Any) -> dict[str, Any]:
    """What all figures of the page have in common."""
    axis = {
        "gridcolor": LINE,
        "zerolinecolor": LINE,
        "automargin": True,
        "ticks": "outside",
        "tickcolor": LINE,
    }
    return {
        "height": height,
        "template": "none",
        "font": {"family": "system-ui, 'Noto Sans', 'DejaVu Sans', sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "margin": {"l": 10, "r": 16, "t": 40, "b": 44},
        "hoverlabel": {"font": {"family": "ui-monospace, monospace", "size": 12}, "align": "left"},
        "xaxis": axis,
        "yaxis": axis,
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.0, "x": 0},
        **more,
    }


def bars(groups: Sequence[Group], measure: Measure) -> go.Figure | None:
    """A bar for each combination: median, exact 95 % interval, single runs as ticks. None without values."""
    rows = [(group, found) for group in groups if (found := group.summary(measure)) is not None]
    if not rows:
        return None
    names = [group.name for group, _ in rows]
    figure = go.Figure(
        go.Bar(
            x=[found.median for _, found in rows],
            y=names,
            orientation="h",
            width=0.62,
            marker={
                "color": [BASELINE_BAR if group.is_baseline else STRATEGY_BAR for group, _ in rows],
                "pattern": {**PATTERN, "shape": ["/" if group.is_baseline else "" for group, _ in rows]},
            },
            # at the foot of its bar: a value beside the farthest outlier seems to belong to that
            text=[f"<b>{number(found.median)}</b>" for _, found in rows],
            textposition="inside",
            insidetextanchor="start",
            constraintext="none",
            textangle=0,
            textfont={"color": INK},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [None if found.high is None else found.high - found.median for _, found in rows],
                "arrayminus": [None if found.low is None else found.median - found.low for _, found in rows],
                "color": INK,
                "thickness": 1.6,
                "width": 5,
            },
            customdata=[[_interval(found), found.runs] for _, found in rows],
            hovertemplate="%{y}<br>median %{x:.2f} ms<br>95 %% interval %{customdata[0]}<br>"
            "%{customdata[1]} runs<extra></extra>".replace("%%", "%"),
            showlegend=False,
        )
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[value for group, _ in rows for value in group.values(measure)],
            y=[group.name for group, _ in rows for _ in group.values(measure)],
            mode="markers",
            marker={"symbol": "line-ns-open", "size": 11, "color": DOT, "line": {"width": 1.4}},
            hovertemplate="%{y}<br>one run: %{x:.2f} ms<extra></extra>",
            showlegend=False,
        )
    )
    figure.update_layout(layout(118 + _ROW_PX * len(rows)))
    figure.update_xaxes(
        title="ms; bar: median, whisker: its 95 % interval, ticks: single runs", rangemode="tozero"
    )
    figure.update_yaxes(autorange="reversed", ticks="", ticklabelstandoff=6)
    return figure


def phases(groups: Sequence[Group]) -> go.Figure | None:
    """The median length of each phase, one beside the other. None when no run has phases."""
    rows = [group for group in groups if any(group.phase_ms(name) is not None for name in PHASES)]
    if not rows:
        return None
    figure = go.Figure(
        [
            go.Bar(
                name=name,
                x=[group.phase_ms(name) for group in rows],
                y=[group.name for group in rows],
                orientation="h",
                width=0.62,
                marker={
                    "color": PHASE_COLOURS[name],
                    "pattern": {**PATTERN, "shape": PHASE_PATTERNS[name]},
                    "line": {"color": "white", "width": 1},
                },
                hovertemplate=f"%{{y}}<br>{name}: %{{x:.2f}} ms<extra></extra>",
            )
            for name in PHASES
        ]
    )
    figure.update_layout(layout(150 + _ROW_PX * len(rows), barmode="stack"))
    figure.update_xaxes(
        title="ms; median length of each phase (phases may overlap in time)", rangemode="tozero"
    )
    figure.update_yaxes(autorange="reversed", ticks="", ticklabelstandoff=6)
    return figure


def distribution(groups: Sequence[Group], measure: Measure = MEASURES[0]) -> go.Figure | None:
    """The cumulative distribution of each combination with more than one run. None without any."""
    figure = go.Figure()
    for place, group in enumerate(groups):
        values = np.sort(np.asarray(group.values(measure), dtype=float))
        if len(values) < 2:
            continue
        figure.add_trace(
            go.Scatter(
                name=group.name,
                x=np.concatenate(([values[0]], values)),
                y=np.arange(len(values) + 1) / len(values),
                mode="lines+markers",
                line={
                    "shape": "hv", "width": 2, "color": LINE_COLOURS[place % len(LINE_COLOURS)],
                    "dash": DASHES[(place // len(LINE_COLOURS) + place) % len(DASHES)],
                },
                marker={"symbol": SYMBOLS[place % len(SYMBOLS)], "size": 6},
                hovertemplate="%{y:.0%} of the runs within %{x:.2f} ms",
            )
        )  # fmt: skip
    if not figure.data:
        return None
    lines = len(figure.data)
    figure.update_layout(layout(420 + 11 * lines))
    figure.update_layout(legend={"y": -0.16, "yanchor": "top"}, hovermode="closest")
    figure.update_xaxes(
        title=f"{measure.title.lower()}, ms", type="log" if _is_wide(groups, measure) else "linear"
    )
    figure.update_yaxes(title="share of runs", range=[0, 1.02], tickformat=".0%")
    return figure


def _is_wide(groups: Sequence[Group], measure: Measure) -> bool:
    values = [value for group in groups for value in group.values(measure) if value > 0]
    return bool(values) and max(values) > 30 * min(values)


def _interval(found: Summary) -> str:
    if found.low is None or found.high is None:
        return "no interval: too few runs"
    return f"[{number(found.low)}, {number(found.high)}]"


def number(value: float | None) -> str:
    """A number with three figures that count."""
    if value is None:
        return "–"  # noqa: RUF001 - the sign of a value that is not known
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
