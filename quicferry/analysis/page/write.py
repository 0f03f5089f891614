"""Writes the page: summary, figures, tables, timelines, environment; and the same figures for papers.

It holds no secrets: neither keys nor payloads, only what was asked, read back and measured.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from quicferry import __version__
from quicferry.analysis import tables
from quicferry.analysis.export import as_csv, as_latex
from quicferry.analysis.figures.comparison import bars_figure
from quicferry.analysis.figures.papers import cdf_figure, phases_figure
from quicferry.analysis.figures.phases import PHASE_COLOURS
from quicferry.analysis.figures.style import save_figure
from quicferry.analysis.html import template, write_html
from quicferry.analysis.page import charts, words
from quicferry.analysis.page.groups import MEASURES, OF_REQUESTS, Group, grouped
from quicferry.analysis.page.moves import timeline
from quicferry.analysis.statistics import ENOUGH, Comparison
from quicferry.analysis.tidy import Row
from quicferry.errors import StoreError
from quicferry.record import RunResult

MOST_TIMELINES = 24
PAPER_FORMATS = ("pdf", "svg", "png")
_CONFIG = {
    "displaylogo": False,
    "responsive": True,
    "toImageButtonOptions": {"format": "svg"},
    "modeBarButtonsToRemove": ["sendChartToCloud", "select2d", "lasso2d"],
}

#: Draws one run as an SVG element, such as a sequence diagram; None when that run has none.
Diagram = Callable[[Path], str | None]


def write_page(rows: Sequence[Row], path: Path, *, title: str = "", diagram: Diagram | None = None) -> None:
    """Write the page over these runs; warm-ups must not be among them.

    ``diagram`` adds a picture to the timeline of each run that is shown. Raises ``StoreError`` when there is
    no run, or the file cannot be written.
    """
    if not rows:
        raise StoreError("no runs to report on", hint="`quicferry runs list` shows what there is")
    page = render(rows, title=title, diagram=diagram)
    write_html(path, page)


def render(rows: Sequence[Row], *, title: str = "", diagram: Diagram | None = None) -> str:
    """The page as text."""
    groups = grouped(rows)
    pairs = words.comparisons(groups)
    return template("page.html.j2").render(
        title=title or _title(rows),
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        plotly=Markup(get_plotlyjs()),  # noqa: S704 - the library's own code
        sentences=words.summary(groups),
        cautions=words.cautions(groups),
        figures=_figures(groups),
        rows=[_row(group) for group in groups],
        pairs=[_pair(pair) for pair in words.shown_comparisons(pairs)],
        pairs_in_all=len(pairs),
        enough=ENOUGH,
        moves=[_move(place, *of_run, diagram) for place, of_run in enumerate(_shown(groups), 1)],
        typical=len(rows) > MOST_TIMELINES,
        without_timeline=max(0, len(groups) - MOST_TIMELINES) if len(rows) > MOST_TIMELINES else 0,
        environment=words.environment(row.result for row in rows),
    )


def _title(rows: Sequence[Row]) -> str:
    sweeps = list(dict.fromkeys(row.sweep for row in rows if row.sweep))
    return ", ".join(sweeps) or ("One move" if len(rows) == 1 else f"{len(rows)} moves")


def _figures(groups: Sequence[Group]) -> list[dict[str, Any]]:
    found: list[tuple[str, str, str, Any]] = [
        (measure.key, measure.title, measure.text, charts.bars(groups, measure))
        for measure in (*MEASURES, *OF_REQUESTS)
    ]
    found.append(
        (
            "phases",
            "Phases of the move",
            "What the move was spent on, by the events of the agents.",
            charts.phases(groups),
        )
    )
    found.append(
        (
            "distribution",
            "Distribution of the service-migration time",
            "Each step is one run: the further left a line, the shorter its clients were without service.",
            charts.distribution(groups),
        )
    )
    return [
        {"key": key, "title": title, "text": text, "html": _html(figure, f"figure-{key}")}
        for key, title, text, figure in found
        if figure is not None
    ]


def _html(figure: Any, name: str) -> Markup:
    # not plotly's to_html: that names a server in the page to which a figure can be sent
    described = figure.to_json().replace("<", "\\u003c")
    config = msgspec.json.encode(_CONFIG).decode()
    text = (
        f'<div id="{name}"></div><script>{{const f = {described}; '
        f'Plotly.newPlot("{name}", f.data, f.layout, {config})}}</script>'
    )
    return Markup(text)  # noqa: S704 - numbers and names as JSON in which no tag can end


def _row(group: Group) -> dict[str, Any]:
    results = group.results
    lost = sum(result.requests_lost or 0 for result in results)
    return {
        "contender": group.contender,
        "engine": group.engine,
        "measures": [words.interval_words(group, place) for place in range(len(MEASURES))],
        "overhead_rtt": tables.median_and_interval(
            [value for result in group.good if (value := tables.overhead_in_rtt(result)) is not None], 2
        ),
        "lost": f"{lost} of {sum(result.requests_sent or 0 for result in results)}",
        "runs": f"{len(group.good)} of {len(results)}",
        "all_good": len(group.good) == len(results),
    }


def _pair(pair: Comparison) -> dict[str, Any]:
    return {
        "one": pair.one,
        "other": pair.other,
        "difference": f"{pair.difference:+.1f} [{pair.low:+.1f}, {pair.high:+.1f}]",
        "delta": f"{pair.delta:+.2f} ({pair.effect})",
        "p": f"{pair.p:.3f}" if pair.p >= 0.001 else "< 0.001",
        "clear": pair.is_clear,
    }


def _shown(groups: Sequence[Group]) -> list[tuple[str, RunResult]]:
    """The runs whose timelines are shown: all when they are few, else the typical one of each combination."""
    every = [(group.name, result) for group in groups for result in group.results]
    if len(every) <= MOST_TIMELINES:
        return every
    typical = [(group.name, group.typical) for group in groups[:MOST_TIMELINES]]
    return [(name, result) for name, result in typical if result is not None]


def _move(place: int, name: str, result: RunResult, diagram: Diagram | None) -> dict[str, Any]:
    figure = timeline(result)
    drawn = diagram(Path(result.run_dir)) if diagram is not None and result.run_dir else None
    return {
        "name": name,
        "run_id": result.run_id or "no run",
        "outcome": result.outcome,
        "error": result.error,
        "html": _html(figure, f"timeline-{place}") if figure is not None else None,
        "diagram": Markup(drawn) if drawn else None,  # noqa: S704 - our own drawing
        "time": tables.number(result.service_migration_time_ms),
        "warnings": result.warnings,
    }


def save_figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write the figures as PDF, SVG and PNG, and the table as LaTeX and CSV; returns the files.

    Raises ``StoreError``.
    """
    groups = grouped(rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written: list[Path] = []
        for measure in (*MEASURES, *OF_REQUESTS):
            values = {group.name: group.values(measure) for group in groups}
            if any(values.values()):
                written += save_figure(bars_figure(values, measure.title), folder, measure.key, PAPER_FORMATS)
        lengths = {group.name: {name: group.phase_ms(name) for name in PHASE_COLOURS} for group in groups}
        if any(any(length is not None for length in own.values()) for own in lengths.values()):
            written += save_figure(phases_figure(lengths), folder, "phases", PAPER_FORMATS)
        values = {group.name: group.values(MEASURES[0]) for group in groups}
        if any(len(own) > 1 for own in values.values()):
            written += save_figure(cdf_figure(values), folder, "distribution", PAPER_FORMATS)
        as_latex(rows, folder / "table.tex")
        as_csv(rows, folder / "runs.csv")
    except OSError as error:
        raise StoreError(
            f"cannot write into {folder}: {error.strerror}", hint="choose another folder"
        ) from error
    return [*written, folder / "table.tex", folder / "runs.csv"]
