"""The pictures of a comparison: bars with intervals for each number, and the delivery gaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context

from quicferry.analysis import tables
from quicferry.analysis.analyse import Analysis, study
from quicferry.analysis.figures import timeline as plots

#: bars need at least this many runs of a kind to say more than the table
MANY = 2
_BARS = (
    ("service-migration-time", "Service-migration time", "service_migration_time_ms"),
    ("connection-overhead", "Connection overhead", "connection_overhead_ms"),
)


def comparison_figures(analyses: Sequence[Analysis]) -> dict[str, Any]:
    """File name -> figure; bars only when there is more than one kind of run, or several of one."""
    groups = tables.cells(analysis.result for analysis in analyses)
    figures: dict[str, Any] = {}
    if len(groups) > 1 or any(len(group) >= MANY for group in groups.values()):
        for name, title, attribute in _BARS:
            values = {
                f"{contender} · {engine}": [
                    value for result in group if (value := getattr(result, attribute)) is not None
                ]
                for (contender, engine), group in groups.items()
            }
            if any(values.values()):
                figures[name] = plots.bars_figure(values, title)
    gaps: dict[str, list[float]] = {}
    for analysis in analyses:
        name = f"{tables.cell_name(analysis.result)} · {tables.engine_name(analysis.result)}"
        gaps.setdefault(name, []).extend(plots.delivery_gaps_ms(analysis))
    if any(gaps.values()):
        figures["delivery-gaps"] = plots.gaps_figure(gaps)
    return figures


def save_comparison(run_dirs: Sequence[Path], folder: Path) -> list[Path]:
    """Draw the figures over these runs, as PNG and SVG; returns the files. Raises ``StoreError``."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in comparison_figures([study(run_dir) for run_dir in run_dirs]).items():
        for kind, options in (("png", {"dpi": plots.DPI}), ("svg", {"metadata": {"Date": None}})):
            path = folder / f"{name}.{kind}"
            with rc_context(plots.STYLE):
                figure.savefig(path, **options)
            written.append(path)
    return written
