"""Draws published values beside those that were measured here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from matplotlib import rc_context
from matplotlib.figure import Figure

from quicferry.analysis.figures.style import DPI, INK, STYLE, WIDTH_IN, axes_beside_names

FOR_WORDS = 0.25  # share of the width
PUBLISHED, MEASURED = "#b8bec6", "#0072b2"


class Beside(Protocol):
    """A published value and the measured one; ``low`` and ``high`` bound the measured runs."""

    @property
    def label(self) -> str: ...
    @property
    def published(self) -> float: ...
    @property
    def measured(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def runs(self) -> int: ...
    @property
    def ratio(self) -> float | None: ...


def published_figure(pairs: Sequence[Beside], title: str, unit: str) -> Figure:
    """Two bars for each pair on a logarithmic axis, with the ratio beside them."""
    with rc_context(STYLE):
        height = 1.6 + 0.55 * max(1, len(pairs))
        figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
        axes = axes_beside_names(figure, [pair.label for pair in pairs], bottom_in=0.62, top_in=0.85)
        figure.text(0.018, 1 - 0.27 / height, title, fontsize=13, fontweight="bold", va="center")
        every = [value for pair in pairs for value in (pair.published, pair.measured) if value]
        low, longest = min(every, default=1.0) / 2, max(every, default=1.0)
        # on a logarithmic axis: so that beside the longest bar a quarter is left for what is written there
        high = low * (longest / low) ** (1 / (1 - FOR_WORDS))
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        for row, pair in enumerate(pairs):
            first = row == 0
            axes.barh(
                row - 0.19, pair.published, height=0.36, color=PUBLISHED, hatch="//", edgecolor="white",
                label="published" if first else None, zorder=2,
            )  # fmt: skip
            _write(axes, pair.published, row - 0.19, _number(pair.published))
            if pair.measured is None:
                _write(axes, low, row + 0.19, "no run here succeeded")
                continue
            axes.barh(row + 0.19, pair.measured, height=0.36, color=MEASURED, zorder=2)
            if pair.low is not None and pair.high is not None:
                # at the bar's edge: the number stands at the bar's end, and the line may go on beneath it
                axes.plot([pair.low, pair.high], [row + 0.35] * 2, color=INK, linewidth=1.4, zorder=4)
            runs = f"{pair.runs} run" + ("s" if pair.runs > 1 else "")
            ratio = _ratio(pair.ratio)
            _write(axes, pair.measured, row + 0.19, f"{_number(pair.measured)}  (ratio {ratio}, {runs})")
        axes.barh(0, 0, color=MEASURED, label="measured here")  # in the legend whichever rows have a value
        axes.set_xlabel(f"{unit}, logarithmic; line: least and greatest run here", fontsize=9)
        axes.legend(frameon=False, fontsize=9, ncols=2, loc="lower left", bbox_to_anchor=(0, 1.0))
        return figure


def _ratio(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _number(value: float) -> str:
    return f"{value:,.0f}".replace(",", "\u202f") if value >= 100 else f"{value:.3g}"


def _write(axes: object, x: float, y: float, text: str) -> None:
    axes.annotate(  # type: ignore[attr-defined] # matplotlib has no types
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5, zorder=5
    )
