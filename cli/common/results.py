"""The results of several runs on the screen and in files: table, reasons, page and figures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from cli.common.output import say, stdout_console
from quicferry.errors import disk_error
from quicferry.record import RunResult
from session.outcomes import reasons


def check_places(report: Path | None, figures: Path | None) -> None:
    """Raise ``StoreError`` when page or figures cannot be written where they are wanted.

    Before the first run: an hour of runs is not to end with a page that cannot be written.
    """
    for place, option, is_folder in ((report, "--report", False), (figures, "--figures", True)):
        if place is None:
            continue
        try:
            folder = place if is_folder else place.parent
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"?")
        except OSError as error:
            error.filename = None  # that of the file that was tried
            raise disk_error(f"cannot write {place}", error, option) from error


def show(results: Sequence[RunResult], report: Path | None, figures: Path | None = None) -> None:
    """The table of all cells, why some are not there, and page and figures if they were asked for."""
    from quicferry.analysis.tables import comparison_table

    stdout_console().print(comparison_table(results))
    for reason in reasons(results):
        say(reason)
    write(results, report, figures)


def write(results: Sequence[RunResult], report: Path | None, figures: Path | None) -> None:
    """Page and figures over these runs, if they were asked for."""
    directories = [Path(result.run_dir) for result in results if result.run_dir]
    if figures is not None and directories:
        from quicferry.analysis.figures.comparison import save_comparison

        say("figures: " + ", ".join(str(path) for path in save_comparison(directories, figures)))
    if report is not None and directories:
        from quicferry.analysis.report import write_report

        write_report(directories, report, reasons(results))
        say(f"report: {report}")
