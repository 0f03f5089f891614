"""Writes runs for other programs: one row per run as CSV, Parquet or JSON; one row per cell as LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from quicferry.analysis import tables
from quicferry.analysis.statistics import summarise
from quicferry.analysis.tidy import Row, described, tidy, write_table
from quicferry.record import RunResult

#: heading, digits, value: the columns of a LaTeX table
_COLUMNS: tuple[tuple[str, int, Callable[[RunResult], float | None]], ...] = (
    ("service-migration time, ms", 1, lambda r: r.service_migration_time_ms),
    ("downtime, ms", 1, lambda r: r.container_downtime_ms),
    ("overhead, ms", 1, lambda r: r.connection_overhead_ms),
)
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


def as_csv(rows: Sequence[Row], path: Path) -> None:
    """One row per run; a value that is not known is empty."""
    tidy(rows).write_csv(path)


def as_parquet(rows: Sequence[Row], path: Path) -> None:
    """One row per run, with the meaning of each column in the file's metadata."""
    write_table(tidy(rows), path)


def as_json(rows: Sequence[Row], path: Path) -> None:
    """An object with ``columns`` (unit and meaning of each) and ``runs``, a list of objects."""
    document = {"columns": described(), "runs": tidy(rows).to_dicts()}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")


def as_latex(rows: Sequence[Row], path: Path) -> None:
    """A table for the package booktabs: the medians of each cell with their 95 % intervals."""
    path.write_text(latex(rows), encoding="utf-8")


#: format -> how it is written
FORMATS: dict[str, Callable[[Sequence[Row], Path], None]] = {
    "csv": as_csv,
    "parquet": as_parquet,
    "json": as_json,
    "latex": as_latex,
}


def latex(rows: Sequence[Row]) -> str:
    """The text of ``as_latex``."""
    groups = tables.cells(row.result for row in rows)
    headings = ["strategy", "engine", *(heading for heading, _, _ in _COLUMNS), "runs"]
    lines = [
        "% needs \\usepackage{booktabs}; medians with exact 95 % confidence intervals",
        f"\\begin{{tabular}}{{ll{'r' * (len(_COLUMNS) + 1)}}}",
        "\\toprule",
        " & ".join(map(escape, headings)) + r" \\",
        "\\midrule",
    ]
    for (contender, engine), group in groups.items():
        good = [result for result in group if result.outcome == "succeeded"]
        cells = [escape(contender), escape(engine)]
        for _, digits, value in _COLUMNS:
            cells.append(_median([v for r in good if (v := value(r)) is not None], digits))
        cells.append(f"{len(good)}/{len(group)}")
        lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])


def _median(values: Sequence[float], digits: int) -> str:
    if not values:
        return "--"
    summary = summarise(values)
    if summary.low is None or summary.high is None:
        return f"{summary.median:.{digits}f}"
    return f"{summary.median:.{digits}f} [{summary.low:.{digits}f}, {summary.high:.{digits}f}]"


def escape(text: str) -> str:
    """Text with everything escaped that means something to LaTeX."""
    return "".join(_SPECIAL.get(sign, sign) for sign in text)
