"""The page of what things cost: its rows, and their tables in Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from jinja2 import Environment, StrictUndefined

from quicferry.analysis.statistics import Summary, summarise
from quicferry.experiment.machine import machine
from quicferry.units import figures

PAGE = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


class Row(NamedTuple):
    """One line of the page."""

    title: str
    grows: str
    quantity: str
    limit_is: str
    series: str
    x: float
    limit: float | None
    summary: Summary | None
    ratio: float | None  # to the first point of the series
    measured: str = ""  # when, and on which machine


def now_and_here() -> str:
    """When and where a table is measured that begins now: the day, the machine and its load."""
    here, day = machine(), datetime.now(UTC).date().isoformat()
    return (
        f"{day}, {here['cpu']}, {here['cores']} cores, load average {os.getloadavg()[0]:.1f} at the beginning"
    )


def merged(known: Sequence[Row], fresh: Sequence[Row]) -> list[Row]:
    """All rows, those of a table that was measured anew instead of what was known of it."""
    of_title: dict[str, list[Row]] = {}
    for row in known:
        of_title.setdefault(row.title, []).append(row)
    for title in {row.title for row in fresh}:
        of_title[title] = []
    for row in fresh:
        of_title[row.title].append(row)
    return [row for rows in of_title.values() for row in rows]


def own_rows(
    title: str,
    grows: str,
    quantity: str,
    series: str,
    seen: Sequence[tuple[float, Sequence[float]]],
    *,
    limit_is: str = "none",
    limit: float | None = None,
) -> list[Row]:
    """The rows of what was measured without runs: each with its place and its values."""
    summaries = [summarise(list(values)) for _, values in seen]
    first = summaries[0].median
    return [
        Row(
            title,
            grows,
            quantity,
            limit_is,
            series,
            x,
            limit,
            summary,
            summary.median / first if first else None,
        )
        for (x, _), summary in zip(seen, summaries, strict=True)
    ]


TEXT = """\
# What things cost as they grow

<!-- Made by `make bench-cost`; measure again instead of editing. -->

Runs in a kept network, those of one table interleaved. Medians; in brackets the 95 % interval of the median, from
six values on; *n*: how many were measured. *Ratio*: to the first line of the same kind. *Limit*: what no
implementation gets below, unless the table says otherwise.
{% for title, rows in tables %}

## {{ title }}

Limit: {{ rows[0].limit_is }}. Measured: {{ rows[0].measured }}.

| | {{ rows[0].grows }} | {{ rows[0].quantity }} | n | ratio | limit |
|---|---|---|---|---|---|
{% for row in rows %}
| {{ row.series }} | {{ "%g" | format(row.x) }} | {{ shown(row.summary) }} | {{ row.summary.runs if row.summary else 0 }} | {{ "" if row.ratio is none else "%.2f" | format(row.ratio) }} | {{ "" if row.limit is none else figures(row.limit) }} |
{% endfor %}
{% endfor %}
"""  # noqa: E501 - a table's line is one line


def shown(summary: Summary | None) -> str:
    """Median and interval."""
    if summary is None:
        return "not measured"
    if summary.low is None or summary.high is None:
        return figures(summary.median)
    return f"{figures(summary.median)} [{figures(summary.low)}, {figures(summary.high)}]"


def page(rows: Sequence[Row]) -> str:
    """All tables, in Markdown."""
    titles = list(dict.fromkeys(row.title for row in rows))
    tables = [(title, [row for row in rows if row.title == title]) for title in titles]
    text = PAGE.from_string(TEXT).render(tables=tables, shown=shown, figures=figures)
    return text.rstrip() + "\n"
