"""The timeline of one run as a figure that can be zoomed, with each packet's frames under the pointer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import polars as pl

from quicferry.analysis.figures.phases import PHASE_COLOURS
from quicferry.analysis.page.charts import INK, LINE, PATTERN, PHASE_PATTERNS, layout
from quicferry.record import PLACE_BY_SERVER, Manifest, RunPaths, RunResult, read_manifest

OLD_COLOUR, NEW_COLOUR, GAP_COLOUR, SOFT = "#0072b2", "#009e73", "#d55e00", "#5d6570"
LANES = {"client": 3.0, "source": 2.0, "network": 1.0, "destination": 0.0}
_PHASE_LANES = {
    "notice": "source",
    "checkpoint": "source",
    "transfer": "network",
    "restore": "destination",
    "commit": "source",
}
_NAMES = ["destination edge", "between edges", "source edge", "client"]
_MOMENTS = {
    "last_useful_old": "last useful byte from the old address",
    "frozen": "the server is frozen",
    "resumed": "the server runs again",
    "first_packet": "first packet from the new address",
    "validated": "path validated",
    "useful": "first useful byte from the new address",
}
MOST_PACKETS = 3000  # in one timeline, those nearest to the move
_EXTENSION = "SM_|MP_JOIN|ADD_ADDR|REMOVE_ADDR"


def timeline(result: RunResult) -> go.Figure | None:
    """The move of one run; None when it left no timeline (``derived/timeline.parquet``)."""
    if result.run_dir is None:
        return None
    path = RunPaths(Path(result.run_dir)).derived / "timeline.parquet"
    if not path.is_file():
        return None
    manifest = read_manifest(Path(result.run_dir))
    moments = {"frozen": 0.0} | result.moments_ms if result.moments_ms else {}
    low, high = _window(moments)
    packets = _packets(path, low, high, manifest, moments)
    figure = go.Figure()
    _add_gap(figure, moments)
    _add_phases(figure, result)
    _add_packets(figure, packets)
    _add_moments(figure, moments)
    figure.update_layout(layout(500, barmode="overlay", dragmode="pan", hovermode="closest"))
    figure.update_layout(legend={"y": -0.2, "yanchor": "top"})
    figure.update_xaxes(
        title="ms after the server's freeze", range=[low, high], showspikes=True, spikethickness=1
    )
    figure.update_yaxes(
        range=[-0.6, 3.95], tickvals=[0, 1, 2, 3], ticktext=_NAMES, fixedrange=True, ticks="", showgrid=False,
        zeroline=False,
    )  # fmt: skip
    return figure


def _window(moments: dict[str, float]) -> tuple[float, float]:
    """The time that is shown at first: the move, and a third of it before and after."""
    marks = [at for name, at in moments.items() if name in _MOMENTS] or [0.0]
    first, last = min(marks), max(marks)
    room = max(10.0, (last - first) * 0.35)
    return first - room, last + room


def _packets(
    path: Path, low: float, high: float, manifest: Manifest, moments: dict[str, float]
) -> pl.DataFrame:
    middle = (low + high) / 2
    packets = (
        pl.scan_parquet(path)
        .filter((pl.col("kind") == "packet") & pl.col("packet_number").is_not_null())
        .sort((pl.col("t_ms") - middle).abs())
        .head(MOST_PACKETS)
        .sort("t_ms")
        .collect()
    )
    came = pl.col("direction") == "to-client"
    server = pl.when(came).then(pl.col("source")).otherwise(pl.col("destination"))
    if manifest.place_by == PLACE_BY_SERVER:
        is_new = server == manifest.destination_endpoint
    else:  # the address stays: the time tells
        is_new = pl.col("t_ms") >= moments.get("resumed", 0.0)
    return packets.with_columns(
        came.alias("came"), is_new.alias("is_new"), pl.col("name").fill_null("").alias("frames")
    )


def _add_gap(figure: go.Figure, moments: dict[str, float]) -> None:
    if {"last_useful_old", "useful"} <= set(moments):
        figure.add_vrect(
            x0=moments["last_useful_old"], x1=moments["useful"],
            fillcolor=GAP_COLOUR, opacity=0.1, line_width=0,
            annotation_text="without service", annotation_position="bottom left",
            annotation_font={"size": 11, "color": SOFT},
        )  # fmt: skip
    figure.add_hline(y=LANES["client"], line={"color": LINE, "width": 1})


def _add_phases(figure: go.Figure, result: RunResult) -> None:
    for name, lane in _PHASE_LANES.items():
        begin = result.moments_ms.get(f"{name}.started")
        length = result.phases_ms.get(name)
        if begin is None or length is None:
            continue
        figure.add_trace(
            go.Bar(
                name=name, x=[max(length, 0.02)], base=[begin], orientation="h",
                y=[LANES[lane] + (0.36 if name == "notice" else 0)],
                width=[0.18 if name == "notice" else 0.46],
                marker={
                    "color": PHASE_COLOURS[name],
                    "pattern": {**PATTERN, "shape": PHASE_PATTERNS[name]},
                    "line": {"color": "white", "width": 1},
                },
                text=name, textposition="inside", insidetextanchor="middle", textangle=0,
                textfont={"color": INK, "size": 11},
                hovertemplate=f"{name}: {length:.3f} ms, from {begin:+.3f} ms<extra></extra>",
            )
        )  # fmt: skip


#: legend, marker, filter of the packets, height above the client's lane
_KINDS: tuple[tuple[str, str, Any, float], ...] = (
    ("useful data came", "triangle-down", pl.col("came") & (pl.col("new_bytes") > 0), 0.26),
    ("other packet came", "line-ns-open", pl.col("came") & (pl.col("new_bytes").fill_null(0) == 0), 0.12),
    ("packet sent", "line-ns-open", ~pl.col("came"), -0.14),
)


def _add_packets(figure: go.Figure, packets: pl.DataFrame) -> None:
    for is_new, side, colour in ((False, "old", OLD_COLOUR), (True, "new", NEW_COLOUR)):
        for what, symbol, wanted, above in _KINDS:
            chosen = packets.filter(wanted & (pl.col("is_new") == is_new))
            shape = "circle" if symbol == "triangle-down" and is_new else symbol
            _add_marks(figure, chosen, f"{what}, {side} address", shape, colour, above)
    special = pl.col("frames").str.contains(_EXTENSION)
    _add_marks(figure, packets.filter(special), "frame of the extension", "star", GAP_COLOUR, 0.42)
    probes = pl.col("frames").str.contains("PATH_CHALLENGE") & ~pl.col("came")
    _add_marks(figure, packets.filter(probes), "path probe", "diamond", INK, -0.3)


def _add_marks(
    figure: go.Figure, packets: pl.DataFrame, name: str, symbol: str, colour: str, above: float
) -> None:
    if packets.is_empty():
        return
    columns = ("frames", "packet_number", "space", "packet_bytes", "new_bytes", "source", "destination")
    figure.add_trace(
        go.Scatter(
            name=name,
            x=packets["t_ms"].round(4).to_list(),
            y=[LANES["client"] + above] * packets.height,
            mode="markers",
            marker={"symbol": symbol, "color": colour, "size": 9, "line": {"width": 1.4, "color": colour}},
            customdata=list(packets.select(columns).iter_rows()),
            hovertemplate="<b>%{customdata[0]}</b><br>at %{x:+.3f} ms, packet %{customdata[1]} "
            "(%{customdata[2]}), %{customdata[3]} bytes, %{customdata[4]} new<br>"
            "%{customdata[5]} → %{customdata[6]}<extra></extra>",
        )
    )


def _add_moments(figure: go.Figure, moments: dict[str, float]) -> None:
    shown = [(moments[name], title) for name, title in _MOMENTS.items() if name in moments]
    for at, _ in shown:
        figure.add_vline(x=at, line={"color": INK, "width": 1, "dash": "dot"}, opacity=0.6)
    figure.add_trace(
        go.Scatter(
            name="turning point", x=[at for at, _ in shown], y=[3.75] * len(shown), mode="markers",
            marker={"symbol": "triangle-down-open", "size": 10, "color": INK},
            customdata=[[title] for _, title in shown],
            hovertemplate="<b>%{customdata[0]}</b><br>at %{x:+.3f} ms<extra></extra>",
        )
    )  # fmt: skip
