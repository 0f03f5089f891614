"""Writes the parts of docs/ that are made from the code: events.md, axes.md and faults.md.

``tools/make_docs.py`` writes them, ``tools/make_docs.py --check`` says whether they are current.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from quicferry import events, record
from quicferry.experiment import faults

DOCS = Path(__file__).resolve().parents[1] / "docs"
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
    """docs/axes.md: every axis of an experiment with its default and the comment beside it."""
    lines = [
        "# Axes of an experiment",
        "",
        _MADE,
        "A run has one value for each of these. In a scenario file they stand in `[run]` (one value) or",
        "`[sweep]` (a list); on the command line `strategy` is `--strategy`, `rtt_ms` is `--rtt-ms`, and so",
        "on for all of them.",
        "",
        "| axis | type | default | meaning |",
        "|---|---|---|---|",
    ]
    source = inspect.getsource(record.Asked)
    comments = source.splitlines()
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    defaults = record.Asked()
    for field in tree.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            name = field.target.id
            written = comments[field.lineno - 1 : field.end_lineno]  # the formatter wraps long ones
            comment = next((line.partition("  # ")[2] for line in written if "  # " in line), "")
            value = getattr(defaults, name)
            kind = ast.unparse(field.annotation).replace("|", "or")
            default = (
                "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"
            )
            lines.append(f"| `{name}` | {kind} | {default} | {comment} |")
    return "\n".join(lines) + "\n"


def faults_page() -> str:
    """docs/faults.md: its prose is a file of its own beside this one, its tables come from the code."""
    places = {
        ("source",): "the source",
        ("destination",): "the destination",
        ("source", "destination"): "either",
    }
    rows = [f"| `{row.name}` | {places[row.places]} | {row.why} |" for row in faults.ROWS]
    kinds = []
    for kind, (how, seconds) in faults.MEANS.items():
        kinds.append(f"| `{kind}` | {how} | {'for good' if seconds is None else f'{seconds:g} s'} |")
    points = [
        f"| `{point}` | `{moment.event}` | the {moment.part}'s agent | {moment.meaning} |"
        for point, moment in faults.MOMENTS.items()
    ]
    prose = (Path(__file__).parent / "faults.md.in").read_text()
    return prose.format(
        made=_MADE.strip(), rows="\n".join(rows), kinds="\n".join(kinds), points="\n".join(points)
    )


PAGES: dict[str, Callable[[], str]] = {
    "events.md": events_page,
    "axes.md": axes_page,
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
