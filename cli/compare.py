"""``quicferry compare``: many runs, interleaved and with the same seeds, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import baselines
from cli.axes import axis_options
from cli.progress import perform_shown
from cli.support import json_option, print_json, say, stdout_console
from quicferry.errors import FerryError, Unsupported
from quicferry.experiment.store import RunStore
from quicferry.migration.engines.base import ENGINES
from quicferry.record import RunResult
from quicferry.strategies import Strategy
from session.scenario import Scenario, read_scenario
from session.session import failure

#: Compared when nothing else is asked for: the two ends of what there is, so that it stays quick.
QUICK_ENGINES = ("handoff", "criu-cold")


class SomeFailed(FerryError):
    """Not every run succeeded; all results have been printed."""

    already_printed = True


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


def reasons(results: Sequence[RunResult]) -> list[str]:
    """Why some of what was asked for cannot be had here, a line each."""
    return sorted({why_not(result) for result in results if result.outcome == "unsupported"})


def why_not(result: RunResult) -> str:
    """Why a run could not be made here, in a line."""
    hint = f" ({result.hint})" if result.hint else ""
    return f"{result.strategy} · {result.engine}: unsupported: {result.error}{hint}"


def is_not_meant(result: RunResult) -> bool:
    """Whether that engine cannot move that baseline's server on any machine."""
    if result.kind != "baseline" or result.outcome != "unsupported":
        return False
    try:
        baselines.check_engine(result.strategy, result.engine)
    except Unsupported:
        return True
    return False


def raise_for(results: Sequence[RunResult]) -> None:
    """Raise when a run did not succeed: ``Unsupported`` when none could, else ``SomeFailed``.

    A cell that no machine can fill is told in the table and is no failure as long as others are filled.
    """
    bad = [result for result in results if result.outcome != "succeeded"]
    if any(result.outcome == "succeeded" for result in results):
        bad = [result for result in bad if not is_not_meant(result)]
    if not bad:
        return
    first = bad[0]
    message = f"{len(bad)} of {len(results)} runs did not succeed; the first one: {first.error}"
    if all(result.outcome == "unsupported" for result in results):
        error: FerryError = Unsupported(message, hint=first.hint)
        error.already_printed = True
        raise error
    raise SomeFailed(message, hint=first.hint)


@click.command()
@click.option(
    "--strategy",
    "strategies",
    type=click.Choice([str(strategy) for strategy in Strategy]),
    multiple=True,
    help="A strategy to compare; may be given several times.  [default: all, or none beside --baseline]",
)
@click.option(
    "--baseline",
    "baseline_names",
    type=click.Choice(list(baselines.names())),
    multiple=True,
    help="A baseline to compare; may be given several times.",
)
@click.option(
    "--engine",
    "engines",
    type=click.Choice(list(ENGINES)),
    multiple=True,
    help=f"An engine to compare; may be given several times.  [default: {', '.join(QUICK_ENGINES)}]",
)
@click.option(
    "--repetitions",
    type=click.IntRange(1, 10_000),
    default=1,
    show_default=True,
    help="How often each cell is run.",
)
@click.option(
    "--scenario",
    "scenario_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    default=None,
    help="Take everything from a scenario file instead (see scenarios/).",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Also write a self-contained HTML page to this file.",
)
@click.option(
    "--figures",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Draw bars with intervals and the delivery gaps here.  [default: figures/ beside the runs; with "
    "--json none]",
)
@axis_options(leave_out=("strategy", "baseline", "engine"))
@json_option
def compare(
    strategies: tuple[str, ...],
    baseline_names: tuple[str, ...],
    engines: tuple[str, ...],
    repetitions: int,
    scenario_file: Path | None,
    report: Path | None,
    figures: Path | None,
    runs_root: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Run strategies and baselines with every engine; print medians with 95 % intervals.

    Runs are interleaved, one repetition of all cells before the next, and the cells of one
    repetition share a seed. With --json each run is one line as soon as it is done.
    """
    if scenario_file is not None:
        scenario = read_scenario(scenario_file)
    else:
        if not strategies and not baseline_names:
            strategies = tuple(str(strategy) for strategy in Strategy)
        scenario = Scenario(
            title="compare",
            repetitions=repetitions,
            run=values,
            sweep={
                "engine": list(engines or QUICK_ENGINES),
                "strategy": list(strategies),
                "baseline": list(baseline_names),
            },
        )
    specs = list(scenario.runs())
    try:
        results = perform_shown(specs, runs_root, print_json if as_json else None)
    except Unsupported as error:
        if as_json:
            for spec in specs:
                print_json(failure(spec, error))
            error.already_printed = True
        raise
    if as_json:
        write(results, report, figures)
    else:
        show(results, report, figures or RunStore(runs_root).root / "figures")
    raise_for(results)
