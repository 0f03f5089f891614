"""The figures of ``make bench-containers``: paper, procedure as published here, and ours, phases stacked.

What was published has panels of its own: on one axis with it, the bars of this machine were slivers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from quicferry.analysis.figures.phases import PHASE_COLOURS
from quicferry.analysis.figures.style import DPI, FAINT, INK, SOFT, STYLE, WIDTH_IN
from session import published

#: What a server of ours holds by itself: with it, sizes are those of the paper.
OWN_MB = 28
#: MiB that a server of ours gets -> the container of the paper of that size in MB.
SIZE_MB = {0: OWN_MB, 240: 280}
TECHNIQUES = ("cold", "pre-copy", "post-copy", "hybrid")
PHASES = ("checkpoint", "transfer", "restore")
#: Technique -> how many times shorter ours is to be than the same as published.
GOALS = {"cold": 1.5, "pre-copy": 3.0, "post-copy": 3.0, "hybrid": 3.0}
PAPER = "paper, "
#: inches: a row, what stands above and below the rows of a panel, and around all panels
ROW_IN, ABOVE_IN, BELOW_IN = 0.31, 0.34, 0.34
TOP_IN, BOTTOM_IN, LEFT_IN, RIGHT_IN, BETWEEN_IN = 0.85, 0.42, 1.65, 0.2, 0.3
#: inches: a character of what is written beside a row, and the space around it
CHARACTER_IN, SPACE_IN = 0.066, 0.2


class Bar(NamedTuple):
    """One row of the figure, in milliseconds; ``request_ms``: the request that the move hit.

    ``note``: how it compares, or why there is no bar. ``range_ms``: least and greatest downtime.
    """

    label: str
    dump_ms: float
    rest_ms: float
    restore_ms: float
    request_ms: float | None
    note: str = ""
    range_ms: tuple[float, float] | None = None

    @property
    def downtime_ms(self) -> float:
        """The sum of the phases."""
        return self.dump_ms + self.rest_ms + self.restore_ms


class Measured(Protocol):
    """A line of the bench's data."""

    @property
    def engine(self) -> str: ...
    @property
    def memory_mib(self) -> int: ...
    @property
    def inter_edge_mbps(self) -> float: ...
    @property
    def downtime_ms(self) -> float | None: ...
    @property
    def downtime_least_ms(self) -> float | None: ...
    @property
    def downtime_most_ms(self) -> float | None: ...
    @property
    def dump_ms(self) -> float | None: ...
    @property
    def restore_began_ms(self) -> float | None: ...
    @property
    def request_hit_ms(self) -> float | None: ...


def technique_of(engine: str) -> str:
    """``pre-copy`` of ``runc-pre-copy``."""
    return engine.partition("-")[2]


def comparison(line: Measured, lines: Iterable[Measured]) -> str:
    """A downtime beside that of the same technique as published, in words; engines ``runc-…`` with the goal.

    Where that was not measured in the same cell, beside ``published-cold``. Empty for what was published.
    """
    technique = technique_of(line.engine)
    cell = (line.memory_mib, line.inter_edge_mbps)
    there = {
        each.engine: each.downtime_ms
        for each in lines
        if (each.memory_mib, each.inter_edge_mbps) == cell and each.downtime_ms
    }
    if line.engine.startswith("published-") or not line.downtime_ms:
        return ""
    if same := there.get(f"published-{technique}"):
        goal = f" (goal {GOALS[technique]:g})" if line.engine.startswith("runc-") else ""
        return f"{_times(same / line.downtime_ms)}{goal}"
    if cold := there.get("published-cold"):
        return f"{_times(cold / line.downtime_ms)} than published-cold"
    return ""


def _times(ratio: float) -> str:
    return f"{ratio:.1f}x shorter" if ratio >= 1 else f"{1 / ratio:.1f}x longer"


def bar_of(line: Measured, note: str = "") -> Bar | None:
    """A measured line as a bar; None without a downtime.

    The restore counts up to the server's first word, with which the downtime ends.
    """
    if line.downtime_ms is None:
        return None
    dump = min(line.dump_ms or 0.0, line.downtime_ms)
    began = line.restore_began_ms if line.restore_began_ms is not None else line.downtime_ms
    restore = min(max(line.downtime_ms - began, 0.0), line.downtime_ms - dump)
    least, most = line.downtime_least_ms, line.downtime_most_ms
    between = (least, most) if least is not None and most is not None and least < most else None
    rest = line.downtime_ms - dump - restore
    return Bar(line.engine, dump, rest, restore, line.request_hit_ms, note, between)


def bars(
    lines: Iterable[Measured], memory_mib: int, rate_mbps: float, refused: Mapping[str, str] | None = None
) -> list[Bar]:
    """The rows for one size and one rate: for each technique the paper, the procedure as published, ours.

    ``refused``: engine -> why this machine cannot run it; it has a row without a bar.
    """
    chosen = {
        line.engine: line
        for line in lines
        if (line.memory_mib, line.inter_edge_mbps) == (memory_mib, rate_mbps)
    }
    found: list[Bar] = []
    for technique in TECHNIQUES:
        if memory_mib in SIZE_MB:
            found.append(Bar(f"{PAPER}{technique}", *published.phases(technique, SIZE_MB[memory_mib])))
        for engine in (f"published-{technique}", f"runc-{technique}", f"podman-{technique}"):
            if engine in chosen:
                bar = bar_of(chosen[engine], comparison(chosen[engine], chosen.values()))
                if bar is not None:
                    found.append(bar)
            elif refused and engine in refused:
                found.append(Bar(engine, 0.0, 0.0, 0.0, None, refused[engine]))
    return found


class Panel(NamedTuple):
    """Some rows under a heading; ``labels`` are those of all panels beside it, in their order."""

    heading: str
    rows: Sequence[Bar]
    labels: Sequence[str]


def container_figure(rows: Sequence[Bar], title: str) -> Figure:
    """The rows of one size and rate: what was published above, what was measured here below."""
    paper = [row for row in rows if row.label.startswith(PAPER)]
    here = [row for row in rows if not row.label.startswith(PAPER)]
    grid = [
        [Panel(heading, these, [row.label for row in these])]
        for heading, these in (("as published, Gigabit Ethernet", paper), ("here", here))
        if these
    ]
    return _figure(grid, title)


def overview(lines: Sequence[Measured], refused: Mapping[str, str] | None = None) -> Figure:
    """All sizes side by side: what was published on top, and below it what was measured at each rate."""
    sizes = sorted({line.memory_mib for line in lines})
    rates = sorted({line.inter_edge_mbps for line in lines}, reverse=True)
    cells = {(size, rate): bars(lines, size, rate, refused) for size in sizes for rate in rates}
    paper = {size: [row for row in cells[size, rates[0]] if row.label.startswith(PAPER)] for size in sizes}
    grid: list[list[Panel]] = []
    if any(paper.values()):
        labels = [f"{PAPER}{technique}" for technique in TECHNIQUES]
        grid.append([Panel(f"{size_text(size)}, Gigabit Ethernet", paper[size], labels) for size in sizes])
    for rate in rates:
        row = {size: [bar for bar in cells[size, rate] if not bar.label.startswith(PAPER)] for size in sizes}
        there = {bar.label for these in row.values() for bar in these}
        labels = [
            f"{kind}-{technique}"
            for technique in TECHNIQUES
            for kind in ("published", "runc", "podman")
            if f"{kind}-{technique}" in there
        ]
        grid.append([Panel(f"{size_text(size)}, {rate_text(rate)}", row[size], labels) for size in sizes])
    return _figure(grid, "Downtime of a container: as published, the published procedure here, and ours")


def size_text(memory_mib: int) -> str:
    """``28 MB``: the size of a container whose server got that many MiB."""
    return f"{SIZE_MB.get(memory_mib, OWN_MB + round(memory_mib * 1.048576))} MB"


def rate_text(rate_mbps: float) -> str:
    """``1 Gbit/s`` or ``100 Mbit/s``."""
    return f"{rate_mbps / 1000:g} Gbit/s" if rate_mbps >= 1000 else f"{rate_mbps:g} Mbit/s"


def _figure(grid: Sequence[Sequence[Panel]], title: str) -> Figure:
    """Panels in rows and columns, each with an axis of its own; a mark where the request hit was answered."""
    with rc_context(STYLE):
        tall = [len(row[0].labels) * ROW_IN + ABOVE_IN + BELOW_IN for row in grid]
        height = TOP_IN + sum(tall) + BOTTOM_IN
        figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
        figure.text(0.018, 1 - 0.27 / height, title, fontsize=13, fontweight="bold", va="center")
        columns = max((len(row) for row in grid), default=1)
        wide = (WIDTH_IN - LEFT_IN - RIGHT_IN - BETWEEN_IN * (columns - 1)) / columns
        top_in = height - TOP_IN
        handles: dict[str, Any] = {}
        for row, tall_in in zip(grid, tall, strict=True):
            for column, panel in enumerate(row):
                box = (
                    (LEFT_IN + column * (wide + BETWEEN_IN)) / WIDTH_IN,
                    (top_in - tall_in + BELOW_IN) / height,
                    wide / WIDTH_IN,
                    (tall_in - ABOVE_IN - BELOW_IN) / height,
                )
                axes: Any = figure.add_axes(box)
                _panel(axes, panel, wide, named=column == 0)
                handles |= {
                    label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
                }
            top_in -= tall_in
        figure.text(
            LEFT_IN / WIDTH_IN, 0.2 / height, color=SOFT, fontsize=9, va="center",
            s="ms from the freeze on. Number: downtime (service time of the request hit), line: range",
        )  # fmt: skip
        figure.legend(
            handles.values(), handles, frameon=False, fontsize=9, ncols=4, loc="center left",
            bbox_to_anchor=(LEFT_IN / WIDTH_IN - 0.01, 1 - 0.6 / height), bbox_transform=figure.transFigure,
        )  # fmt: skip
        return figure


def _panel(axes: Any, panel: Panel, wide_in: float, *, named: bool) -> None:
    """Draw the rows of a panel; ``named``: with their labels beside them."""
    axes.set_title(panel.heading, fontsize=10, loc="left", color=INK, pad=5)
    axes.set_yticks(range(len(panel.labels)), panel.labels if named else [""] * len(panel.labels))
    axes.set_ylim(len(panel.labels) - 0.5, -0.5)
    axes.grid(axis="x", color=FAINT, linewidth=0.8, zorder=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8.5)
    place = {label: number for number, label in enumerate(panel.labels)}
    drawn = [(place[row.label], row) for row in panel.rows if row.downtime_ms]
    left = np.zeros(len(drawn))
    for number, phase in enumerate(PHASES, 1):
        lengths = [row[number] for _, row in drawn]
        axes.barh(
            [at for at, _ in drawn], lengths, left=left, height=0.62, zorder=2, linewidth=0.6,
            color=PHASE_COLOURS[phase], edgecolor="white", label=phase,
        )  # fmt: skip
        left += np.asarray(lengths)
    for at, row in drawn:
        if row.range_ms is not None:
            axes.plot(row.range_ms, (at, at), color=INK, linewidth=1.0, zorder=3)
    hit = [(row.request_ms, at) for at, row in drawn if row.request_ms is not None]
    if hit:
        axes.scatter(*zip(*hit, strict=True), color=INK, marker="D", s=14, zorder=4, label="request hit")
    limit = 0.0
    for row in panel.rows:
        far = max(row.downtime_ms, row.request_ms or 0.0, row.range_ms[1] if row.range_ms else 0.0)
        words = _written(row)
        limit = max(limit, far * wide_in / (wide_in - SPACE_IN - CHARACTER_IN * len(words)))
        axes.annotate(
            words, (far, place[row.label]),
            xytext=(7, 0), textcoords="offset points", va="center", fontsize=8,
            color=INK if row.downtime_ms else SOFT,
        )  # fmt: skip
    axes.set_xlim(0, limit or 1.0)


def _written(row: Bar) -> str:
    """What is written beside a row."""
    if not row.downtime_ms:
        return row.note
    request = f" ({row.request_ms:,.0f})" if row.request_ms is not None else ""
    return f"{row.downtime_ms:,.0f}{request}" + (f"   {row.note}" if row.note else "")
