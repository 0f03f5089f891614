"""Colours, fonts and sizes of all figures, and how a figure becomes a file or a part of a page.

Colours are Okabe and Ito's set, which people with the common kinds of colour blindness can tell
apart; nothing is said by colour alone. Pictures are 1200 pixels wide at 100 dpi.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display is there, and none is asked for

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath

WIDTH_IN, DPI = 12.0, 100

INK = "#1b1f24"
SOFT = "#6b7280"
FAINT = "#d7dbe0"
OLD_COLOUR = "#0072b2"  # the source
NEW_COLOUR = "#009e73"  # the destination
GAP_COLOUR = "#d55e00"  # without service
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


def axes_beside_names(figure: Figure, names: Sequence[str], *, bottom_in: float, top_in: float) -> Any:
    """Axes with a row for each name, the first on top, and room beside them for the longest one.

    What is drawn ends with ``from_zero``.
    """
    width, height = figure.get_size_inches()
    with rc_context(STYLE):
        longest_in = max(
            (TextPath((0, 0), name, size=10).get_extents().width / 72 for name in names), default=0
        )
    left = min(0.6, (longest_in + 0.3) / width)
    axes = figure.add_axes((left, bottom_in / height, 0.97 - left, 1 - (bottom_in + top_in) / height))
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", color=FAINT, linewidth=0.8, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return axes


def from_zero(axes: Any) -> None:
    """Let the axis begin at zero and end a little after the last value; to be called when all is drawn."""
    axes.margins(x=0.06)
    axes.autoscale_view(scaley=False)
    axes.set_xlim(left=0)


#: format -> what must be left out of the file so that the same run gives the same one
_NO_DATE: dict[str, dict[str, None]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}


def save_figure(
    figure: Figure, folder: Path, name: str, formats: Sequence[str] = ("png", "svg")
) -> list[Path]:
    """Write ``<name>.<format>`` for each of png, svg and pdf that is asked for; returns the paths."""
    paths = [folder / f"{name}.{form}" for form in formats]
    with rc_context(STYLE):
        for path, form in zip(paths, formats, strict=True):
            figure.savefig(path, dpi=DPI, metadata=_NO_DATE[form])
    return paths


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element for a page: without the XML heading and fixed size."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
