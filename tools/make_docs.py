"""Writes the parts of docs/ that are made from the code: events.md, axes.md, columns.md and faults.md.

``tools/make_docs.py`` writes them, ``tools/make_docs.py --check`` says whether they are current.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import baselines
from quicferry import events
from quicferry.analysis import tidy
from quicferry.experiment import faults
from quicferry.experiment.fault_kinds import KINDS
from quicferry.paths import CHECKOUT
from quicferry.spec import Axis, ReadBy, axes

DOCS = CHECKOUT / "docs"
_MADE = "<!-- Made by tools/make_docs.py; change the code instead. -->\n"


def events_page() -> str:
    """docs/events.md: every event name with its meaning."""
    lines = [
        "# Events",
        "",
        _MADE,
        "Every process of a run writes what happened as JSON lines; `events.jsonl` in the run directory",
        "holds them all, sorted by time. Each has `t_ns` (CLOCK_MONOTONIC, nanoseconds), `vantage` (the host",
        "that saw it, or `run` for the tool itself), `name` and `detail`. A *phase* is three events:",
        "`NAME.started` and then `NAME.complete` or `NAME.failed`.",
        "",
        "| name | meaning |",
        "|---|---|",
    ]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in events.NAMES.items()]
    return "\n".join(lines) + "\n"


def axes_page() -> str:
    """docs/axes.md: every axis of an experiment, from ``quicferry.spec``."""
    lines = [
        "# Axes of an experiment",
        "",
        _MADE,
        "A run has one value for each of these. In a scenario file they stand in `[run]` (one value) or",
        "`[sweep]` (a list); on the command line `strategy` is `--strategy`, `rtt_ms` is `--rtt-ms`, and so",
        "on for all of them; a fault is `--fault`, and may be given several times. *Read by* says in which",
        "runs an axis has an effect: in all, in those of the extension (with a strategy), where an engine",
        "moves the server, or in those of some baselines. A run is refused that gives an axis which nobody",
        "reads in it; a sweep crosses an axis only with what reads it.",
        "",
        "| axis | type | allowed | default | read by | meaning |",
        "|---|---|---|---|---|---|",
    ]
    for axis in axes().values():
        kind = "faults" if axis.kind == "faults" else getattr(axis.kind, "__name__", "str")
        default = (
            "none"
            if axis.default in (None, ())
            else f"`{str(axis.default).lower() if axis.kind is bool else axis.default}`"
        )
        readers = ", ".join(names_of_readers(axis)) if axis.read_by is ReadBy.BASELINES else str(axis.read_by)
        honouring = [name for name in baselines.names() if axis.name in baselines.get(name).honours]
        readers += ", " + ", ".join(honouring) if honouring else ""
        refusing = [name for name in baselines.names() if axis.name in baselines.get(name).refuses]
        readers += " but " + ", ".join(refusing) if refusing else ""
        lines.append(f"| `{axis.name}` | {kind} | {axis.bounds} | {default} | {readers} | {axis.text} |")
    return "\n".join(lines) + "\n"


def names_of_readers(axis: Axis) -> list[str]:
    """The baselines that read an axis."""
    return [name for name in baselines.names() if axis.name in baselines.get(name).reads]


def faults_page() -> str:
    """docs/faults.md: its prose is a file of its own beside this one, its tables come from the code."""
    places = {
        ("source",): "the source",
        ("destination",): "the destination",
        ("source", "destination"): "either",
    }
    rows = [f"| `{row.name}` | {places[row.places]} | {row.why} |" for row in faults.ROWS]
    kinds = []
    for kind, means in KINDS.items():
        lasts = "for good" if means.seconds is None else f"{means.seconds:g} s"
        kinds.append(f"| `{kind}` | {means.how} | {lasts} |")
    points = [
        f"| `{point}` | `{trigger.event}` | the {trigger.part}'s agent | {trigger.meaning} |"
        for point, trigger in faults.TRIGGERS.items()
    ]
    prose = (Path(__file__).parent / "faults.md.in").read_text()
    return prose.format(
        made=_MADE.strip(), rows="\n".join(rows), kinds="\n".join(kinds), points="\n".join(points)
    )


def columns_page() -> str:
    """docs/columns.md: every column of the table over many runs, from ``quicferry.analysis.tidy``."""
    lines = [
        "# Columns of the table over many runs",
        "",
        _MADE,
        "`table.parquet` of a sweep and `quicferry export` have a row for each run and these columns. What",
        "is not known is empty. See [sweep.md](sweep.md).",
        "",
        "| column | type | unit | meaning |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{column.name}` | {column.kind} | {column.unit} | {column.text} |"
        for column in tidy.columns().values()
    ]
    return "\n".join(lines) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "events.md": events_page,
    "axes.md": axes_page,
    "columns.md": columns_page,
    "faults.md": faults_page,
}


def main() -> int:
    """Write the pages, or with --check say which are out of date (status 1)."""
    stale = []
    for name, make in PAGES.items():
        page, path = make(), DOCS / name
        if path.is_file() and path.read_text() == page:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(page)
    for name in stale:
        print(f"docs/{name} {'is out of date' if '--check' in sys.argv else 'written'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
