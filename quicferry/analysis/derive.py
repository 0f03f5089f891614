"""Writes ``derived/`` of a run: its result, its timeline as a table, and the picture of it.

``derived/`` can be thrown away and made again from the raw files at any time.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from quicferry.analysis import timeline
from quicferry.analysis.analyse import Analysis, analyse
from quicferry.analysis.verdict import fail
from quicferry.errors import disk_error
from quicferry.record import RunPaths, RunResult, write_json


def derive(run_dir: Path, *, draw: bool = True, must_write: bool = True) -> RunResult:
    """Analyse a run and write result.json, timeline.parquet, timeline.svg and timeline.png.

    Without ``draw`` the pictures, which take longer than the rest, are left out. Of a run that never came
    to a measurement only result.json is written. Returns the result; one that could not be written has
    failed, unless it need not be: then it has a warning. Raises ``StoreError`` when there is no readable
    manifest.
    """
    analysis = analyse(run_dir)
    try:
        _write(analysis, RunPaths(run_dir), draw=draw)
    except OSError as error:
        wrong = disk_error("what was derived from the run cannot be written", error)
        if must_write:
            fail(analysis.result, str(wrong), wrong.hint)
        else:
            analysis.result.warnings.append(str(wrong))
    return analysis.result


def _write(analysis: Analysis, paths: RunPaths, *, draw: bool) -> None:
    """Write all that is derived. Raises ``OSError``."""
    paths.derived.mkdir(exist_ok=True)
    write_json(paths.result, analysis.result)
    if analysis.metrics is not None:
        moments = analysis.metrics.moments()
        table = timeline.as_table(moments, analysis.events, analysis.packets, analysis.zero_ns)
        table.write_parquet(paths.derived / "timeline.parquet")
        if draw:
            # matplotlib takes half a second to load
            from quicferry.analysis.figures.timeline import save_timeline

            save_timeline(analysis, paths.derived)


def read_result(run_dir: Path) -> RunResult:
    """The result of a run as it was written, or derived now when there is none yet.

    Raises ``StoreError`` for a result of another version that cannot be made again.
    """
    path = RunPaths(run_dir).result
    try:
        result = msgspec.json.decode(path.read_bytes(), type=RunResult)
    except (OSError, msgspec.DecodeError):
        return derive(run_dir, must_write=False)
    result.run_dir = str(run_dir)
    return result
