"""Writes the report: one self-contained HTML page with its figures embedded.

It holds no secrets: neither keys nor payloads, only what was asked, read back and measured.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from quicferry import __version__
from quicferry.analysis import tables
from quicferry.analysis.analyse import Analysis, analyse
from quicferry.analysis.describe import describe_measured, describe_phases, describe_spec
from quicferry.analysis.diagrams import MOST_DIAGRAMS, migration_diagram
from quicferry.analysis.figures.comparison import REPEATED_RUNS, comparison_figures
from quicferry.analysis.figures.style import as_svg
from quicferry.analysis.figures.timeline import timeline_figure
from quicferry.analysis.html import template, write_html
from quicferry.analysis.tables import NOTHING
from quicferry.errors import StoreError
from quicferry.record import RunResult


def write_report(run_dirs: Sequence[Path], path: Path, missing: Sequence[str] = ()) -> None:
    """Write the page over these runs. Raises ``StoreError`` when there is none, or one is unreadable.

    ``missing``: what was asked for and cannot be had here, with the reason, a line each.
    """
    if not run_dirs:
        raise StoreError("no runs to report on", hint="`quicferry runs list` shows what there is")
    page = render([analyse(run_dir) for run_dir in run_dirs], missing)
    write_html(path, page)


def render(analyses: Sequence[Analysis], missing: Sequence[str] = ()) -> str:
    """The page as text; ``missing`` as in ``write_report``."""
    results = [analysis.result for analysis in analyses]
    ratios = tables.ratios(results)
    return template("report.html.j2").render(
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        succeeded=sum(result.outcome == "succeeded" for result in results),
        lost=_total_lost(results),
        many=any((result.clients or 1) > 1 for result in results),
        rows=_summary(results),
        missing=missing,
        compared=bool(ratios),
        repeated=any(len(group) >= REPEATED_RUNS for group in tables.cells(results).values()),
        pictures=[_svg(figure) for figure in comparison_figures(analyses).values()],
        runs=[
            _section(number, analysis, with_sequence=len(analyses) <= MOST_DIAGRAMS)
            for number, analysis in enumerate(analyses, start=1)
        ],
    )


def _total_lost(results: Sequence[RunResult]) -> str:
    known = [result for result in results if result.requests_lost is not None]
    if not known:
        return NOTHING
    lost = sum(result.requests_lost or 0 for result in known)
    return f"{lost} of {sum(result.requests_sent or 0 for result in known)}"


def _summary(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """The rows of the table: one per strategy and engine, medians over its runs."""
    rows = []
    longest = max((r.service_migration_time_ms or 0.0 for r in results), default=0.0) or 1.0
    ratios = tables.ratios(results)
    number_of = {id(result): number for number, result in enumerate(results, start=1)}
    for (strategy, engine), group in tables.cells(results).items():
        good = [result for result in group if result.outcome == "succeeded"]
        measured = [result for result in group if result.is_measured]

        def spread(values: Sequence[float | None], digits: int = 1) -> tuple[str, str]:
            known = [value for value in values if value is not None]
            middle, _, interval = tables.median_and_interval(known, digits).partition(" ")
            return middle, interval

        times = [r.service_migration_time_ms for r in measured if r.service_migration_time_ms is not None]
        middle = median(times) if times else 0.0
        moved = [r.transferred_bytes for r in measured if r.transferred_bytes is not None]
        rows.append(
            {
                "anchor": f"run-{number_of[id(group[0])]}",
                "strategy": strategy,
                "ratio": tables.number(ratios.get((strategy, engine)), 2),
                "engine": engine,
                "time": spread(list(times)),
                "share": round(100 * middle / longest, 1),
                "downtime": spread([r.container_downtime_ms for r in measured]),
                "overhead": spread([r.connection_overhead_ms for r in measured]),
                "overhead_rtt": spread([tables.overhead_in_rtt(r) for r in measured], 2),
                "rtt": spread([r.rtt_ms for r in measured]),
                "moved": tables.size(round(median(moved)) if moved else None),
                "lost": _total_lost(group),
                "runs": f"{len(good)} of {len(group)}",
                "all_good": len(good) == len(group),
            }
        )
    return rows


def _svg(figure: Any) -> Markup:
    # our own drawing, from numbers and names that matplotlib has escaped
    return Markup(as_svg(figure))  # noqa: S704 - see above


def _section(number: int, analysis: Analysis, *, with_sequence: bool) -> dict[str, Any]:
    result, manifest = analysis.result, analysis.manifest
    return {
        "anchor": f"run-{number}",
        "id": manifest.id,
        "title": tables.title(manifest.spec),
        "engine": manifest.spec.engine,
        "outcome": result.outcome,
        "error": result.error,
        "hint": result.hint,
        "warnings": result.warnings,
        "timeline": _svg(timeline_figure(analysis, titled=False)),
        "caption": _caption(result),
        "sequence": migration_diagram(Path(result.run_dir or "")) if with_sequence else None,
        "measured": describe_measured(result),
        "phases": describe_phases(result),
        "asked": describe_spec(manifest.spec),
        "links": [
            {
                "name": f"{reading.sender} → {reading.receiver}",
                "backend": reading.backend,
                "asked": _shape(reading.asked.delay_ms, reading.asked.rate_mbps, reading.asked.loss_percent),
                "read_back": ", ".join(f"{key} {value}" for key, value in reading.read_back.items())
                or NOTHING,
                "measured": _shape(
                    reading.measured_delay_ms, reading.measured_rate_mbps, reading.measured_loss_percent
                ),
            }
            for reading in manifest.links
            if reading.backend != "plain"
        ],
        "machine": [
            ("made", manifest.created),
            ("kernel", manifest.kernel or NOTHING),
            ("quicferry", manifest.tool_version or NOTHING),
            *sorted(manifest.versions.items()),
        ],
    }


def _shape(delay_ms: float | None, rate_mbps: float | None, loss_percent: float | None) -> str:
    words = []
    if delay_ms is not None:
        words.append(f"{delay_ms:g} ms")
    if rate_mbps is not None:
        words.append(f"{rate_mbps:g} Mbit/s")
    if loss_percent:
        words.append(f"{loss_percent:g} % loss")
    return ", ".join(words) or NOTHING


def _caption(result: RunResult) -> str:
    """The figure in a sentence, also for readers who cannot see it."""
    if result.service_migration_time_ms is None:
        return "Timeline of the move. The client got no service from the new address."
    words = f"The client was without service for {result.service_migration_time_ms:.1f} ms"
    if result.container_downtime_ms is not None:
        words += f"; the server stood still for {result.container_downtime_ms:.1f} ms"
    if result.connection_overhead_ms is not None:
        words += f", and {result.connection_overhead_ms:.1f} ms after it ran again its first useful byte came"
    return words + "."
