"""The figure of ``make bench-containers``: paper, procedure as published here, and ours, phases stacked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from quicferry.analysis.figures.phases import PHASE_COLOURS
from quicferry.analysis.figures.style import DPI, INK, STYLE, WIDTH_IN, axes_beside_names, from_zero
from session import published

#: What a server of ours holds by itself: with it, sizes are those of the paper.
OWN_MB = 28
#: MiB that a server of ours gets -> the container of the paper of that size in MB.
SIZE_MB = {0: OWN_MB, 240: 280}
TECHNIQUES = ("cold", "pre-copy", "post-copy", "hybrid")
PHASES = ("checkpoint", "transfer", "restore")


class Bar(NamedTuple):
    """One row of the figure, in milliseconds; ``request_ms``: the request that the move hit."""

    label: str
    dump_ms: float
    rest_ms: float
    restore_ms: float
    request_ms: float | None

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
    def dump_ms(self) -> float | None: ...
    @property
    def restore_began_ms(self) -> float | None: ...
    @property
    def request_hit_ms(self) -> float | None: ...


def bar_of(line: Measured) -> Bar | None:
    """A measured line as a bar; None without a downtime.

    The restore counts up to the server's first word, with which the downtime ends.
    """
    if line.downtime_ms is None:
        return None
    dump = min(line.dump_ms or 0.0, line.downtime_ms)
    began = line.restore_began_ms if line.restore_began_ms is not None else line.downtime_ms
    restore = min(max(line.downtime_ms - began, 0.0), line.downtime_ms - dump)
    return Bar(line.engine, dump, line.downtime_ms - dump - restore, restore, line.request_hit_ms)


def bars(lines: Iterable[Measured], memory_mib: int, rate_mbps: float) -> list[Bar]:
    """The rows for one size and one rate: for each technique the paper, the procedure as published, ours."""
    chosen = {
        line.engine: line
        for line in lines
        if (line.memory_mib, line.inter_edge_mbps) == (memory_mib, rate_mbps)
    }
    found: list[Bar] = []
    for technique in TECHNIQUES:
        if memory_mib in SIZE_MB:
            found.append(Bar(f"paper, {technique}", *published.phases(technique, SIZE_MB[memory_mib])))
        for engine in (f"published-{technique}", f"runc-{technique}", f"podman-{technique}"):
            bar = bar_of(chosen[engine]) if engine in chosen else None
            if bar is not None:
                found.append(bar)
    return found


def container_figure(rows: Sequence[Bar], title: str) -> Figure:
    """One stacked bar for each row; a mark where the request that the move hit was answered."""
    with rc_context(STYLE):
        height = 1.9 + 0.36 * max(1, len(rows))
        figure = Figure(figsize=(WIDTH_IN, height), dpi=DPI, facecolor="white")
        axes = axes_beside_names(figure, [row.label for row in rows], bottom_in=0.62, top_in=0.9)
        figure.text(0.018, 1 - 0.27 / height, title, fontsize=13, fontweight="bold", va="center")
        left = np.zeros(len(rows))
        for phase, lengths in zip(PHASES, zip(*(row[1:4] for row in rows), strict=True), strict=True):
            axes.barh(
                range(len(rows)), lengths, left=left, height=0.62, zorder=2, linewidth=0.6,
                color=PHASE_COLOURS[phase], edgecolor="white", label=phase,
            )  # fmt: skip
            left += np.asarray(lengths)
        hit = [(row.request_ms, place) for place, row in enumerate(rows) if row.request_ms is not None]
        if hit:
            axes.scatter(*zip(*hit, strict=True), color=INK, marker="D", s=16, zorder=4, label="request hit")
        for place, row in enumerate(rows):
            axes.annotate(
                f"{row.downtime_ms:,.0f}", (max(row.downtime_ms, row.request_ms or 0.0), place),
                xytext=(7, 0), textcoords="offset points", va="center", fontsize=8.5,
            )  # fmt: skip
        from_zero(axes)
        axes.set_xlabel("ms; number: downtime; mark: service time of the request hit", fontsize=9)
        axes.legend(frameon=False, fontsize=9, ncols=4, loc="lower left", bbox_to_anchor=(0, 1.0))
        return figure
