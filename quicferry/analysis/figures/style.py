"""Colours, fonts and sizes of all figures, and how a figure becomes a file or a part of a page.

Colours are Okabe and Ito's set, which people with the common kinds of colour blindness can tell
apart; nothing is said by colour alone. Pictures are 1200 pixels wide at 100 dpi.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display is there, and none is asked for

from matplotlib import rc_context
from matplotlib.figure import Figure

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


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write ``<name>.png`` and ``<name>.svg`` into a folder; returns both paths."""
    png, svg = folder / f"{name}.png", folder / f"{name}.svg"
    with rc_context(STYLE):
        figure.savefig(png, dpi=DPI)
        figure.savefig(svg, metadata={"Date": None})  # the same run gives the same file
    return [png, svg]


def as_svg(figure: Figure) -> str:
    """A figure as an SVG element for a page: without the XML heading and fixed size."""
    buffer = io.StringIO()
    with rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]
