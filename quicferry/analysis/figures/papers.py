"""Figures over many runs for papers: stacked phases, and distributions. ``comparison`` has the bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from quicferry.analysis.figures.phases import PHASE_COLOURS
from quicferry.analysis.figures.style import DPI, FAINT, INK, STYLE, WIDTH_IN, axes_beside_names, from_zero

_HATCHES = {"notice": "..", "checkpoint": "//", "transfer": "", "restore": "\\\\", "commit": "xx"}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
_DASHES = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)))


def phases_figure(
    lengths_ms: Mapping[str, Mapping[str, float | None]], title: str = "Phases of the move"
) -> Figure:
    """One stacked bar per group: the median length of each phase, in the order of the move."""
    names = [name for name, own in lengths_ms.items() if any(length is not None for length in own.values())]
    with rc_context(STYLE):
        height = 1.9 + 0.42 * max(1, len(names))
        figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
        axes = axes_beside_names(figure, names, bottom_in=0.62, top_in=0.9)
        figure.text(0.018, 1 - 0.27 / height, title, fontsize=13, fontweight="bold", va="center")
        left = np.zeros(len(names))
        for phase, colour in PHASE_COLOURS.items():
            own = np.asarray([lengths_ms[name].get(phase) or 0.0 for name in names])
            style = {"color": colour, "hatch": _HATCHES[phase], "edgecolor": "white", "linewidth": 0.6}
            axes.barh(range(len(names)), own, left=left, height=0.62, label=phase, zorder=2, **style)
            left += own
        for row, total in enumerate(left):
            axes.annotate(
                f"{total:.4g}", (total, row), xytext=(5, 0), textcoords="offset points", va="center"
            )
        from_zero(axes)
        axes.set_xlabel("ms; median length of each phase (phases may overlap in time)", fontsize=9)
        axes.legend(
            frameon=False, fontsize=9, ncols=len(PHASE_COLOURS), loc="lower left", bbox_to_anchor=(0, 1.0)
        )
        return figure


def cdf_figure(
    groups: Mapping[str, Sequence[float]], title: str = "Distribution of the service-migration time"
) -> Figure:
    """The cumulative distribution of each group that has more than one value."""
    shown = {name: np.sort(np.asarray(own, dtype=float)) for name, own in groups.items() if len(own) > 1}
    with rc_context(STYLE):
        rows = (len(shown) + 1) // 2
        height = 4.6 + 0.22 * rows
        figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
        bottom = (0.65 + 0.22 * rows) / height
        axes = figure.add_axes((0.07, bottom, 0.91, 1 - bottom - 0.55 / height))
        figure.text(0.018, 1 - 0.27 / height, title, fontsize=13, fontweight="bold", va="center")
        for place, (name, values) in enumerate(shown.items()):
            axes.step(
                np.concatenate(([values[0]], values)),
                np.arange(len(values) + 1) / len(values),
                where="post",
                label=name,
                linewidth=1.8,
                color=_COLOURS[place % len(_COLOURS)],
                linestyle=_DASHES[(place % len(_COLOURS) + place // len(_COLOURS)) % len(_DASHES)],
            )
        everything = np.concatenate(list(shown.values())) if shown else np.ones(1)
        if everything.min() > 0 and everything.max() > 30 * everything.min():
            axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("ms", fontsize=9)
        axes.set_ylabel("share of runs", fontsize=9)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        if shown:
            axes.legend(
                frameon=False,
                fontsize=9,
                ncols=2,
                loc="upper left",
                bbox_to_anchor=(0, -0.55 / (height * axes.get_position().height)),
            )
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        return figure
