"""Prints one run on the terminal: its numbers, its phases, its events and packets line by line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table
from rich.text import Text

from quicferry.analysis import tables
from quicferry.analysis.analyse import Analysis
from quicferry.analysis.describe import describe_measured, describe_phases, describe_spec
from quicferry.units import ns_to_ms


def overview(analysis: Analysis) -> Iterator[Table | Text]:
    """The numbers of a run, its phases, what was asked for, and every warning, ready to print."""
    result, manifest = analysis.result, analysis.manifest
    title = Text(manifest.id, style="bold")
    title.append(f"\n{tables.title(manifest.spec)} · {manifest.spec.engine} · ", style="not bold")
    title.append(result.outcome, style="green" if result.outcome == "succeeded" else "bold red")
    yield title
    if result.error:
        yield Text(result.error + (f"\n{result.hint}" if result.hint else ""), style="red")
    yield _grid("measured", describe_measured(result))
    phases = Table(title="in order of time", title_justify="left", header_style="bold", border_style="dim")
    phases.add_column("what")
    phases.add_column("ms after the freeze", justify="right")
    phases.add_column("for ms", justify="right")
    for row in describe_phases(result):
        phases.add_row(*row)
    yield phases
    yield _grid("asked", describe_spec(manifest.spec))
    for warning in result.warnings:
        yield Text(f"warning: {warning}", style="yellow")


def _grid(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, border_style="dim")
    table.add_column(style="dim")
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def lines(analysis: Analysis, *, events: bool, packets: bool) -> list[dict[str, Any]]:
    """Events and packets of the client as dictionaries, sorted by time; ``t_ms`` is after the freeze."""
    zero = analysis.zero_ns
    found: list[dict[str, Any]] = []
    if events:
        found += [
            {
                "t_ns": event.t_ns,
                "kind": "event",
                "vantage": event.vantage,
                "name": event.name,
                "detail": event.detail,
            }
            for event in analysis.events
        ]
    if packets:
        found += [
            {"kind": "packet", "vantage": "client", **row} for row in analysis.packets.iter_rows(named=True)
        ]
    for line in found:
        line["t_ms"] = round(ns_to_ms(line["t_ns"] - zero), 6)
    return sorted(found, key=lambda line: line["t_ns"])


def as_text(line: dict[str, Any]) -> str:
    """One line of ``lines`` for a reader."""
    head = f"{line['t_ms']:+12.3f} ms  {line['vantage']:<9}"
    if line["kind"] == "event":
        detail = " ".join(f"{key}={value}" for key, value in line["detail"].items())
        return f"{head} {line['name']} {detail}".rstrip()
    number = "?" if line["packet_number"] is None else line["packet_number"]
    useful = f"  +{line['new_bytes']} bytes" if line["new_bytes"] else ""
    way = f"{line['source']} > {line['destination']}"
    return f"{head} {way}  {line['space']} #{number} ({line['packet_bytes']} B)  {line['frames']}{useful}"
