"""``quicferry compare``: many runs, interleaved and with the same seeds, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import baselines
from cli.common.axes import axis_options
from cli.common.output import json_option, print_json
from cli.common.progress import perform_shown
from cli.common.results import check_places, show, write
from cli.common.sweeping import KEEP, network_option
from quicferry.errors import Unsupported
from quicferry.experiment.store import RunStore
from quicferry.migration.engines.registry import engines as known_engines
from quicferry.strategies import strategies as known_strategies
from session.outcomes import raise_for
from session.scenario import Scenario
from session.session import failure

#: Compared when nothing else is asked for: the two ends of what there is, so that it stays quick.
QUICK_ENGINES = ("handoff", "criu-cold")


@click.command()
@click.option(
    "--strategy",
    "strategies",
    type=click.Choice(list(known_strategies())),
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
    type=click.Choice(list(known_engines())),
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
@network_option
@axis_options(leave_out=("strategy", "baseline", "engine"))
@json_option
def compare(
    strategies: tuple[str, ...],
    baseline_names: tuple[str, ...],
    engines: tuple[str, ...],
    repetitions: int,
    report: Path | None,
    figures: Path | None,
    network: str,
    runs_root: Path | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Run strategies and baselines with every engine; print medians with 95 % intervals.

    Runs are interleaved, one repetition of all cells before the next, and the cells of one
    repetition share a seed. With --json each run is one line as soon as it is done.
    """
    if not strategies and not baseline_names:
        strategies = tuple(known_strategies())
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
    check_places(report, figures)
    try:
        results = perform_shown(
            specs, runs_root, print_json if as_json else None, keep_network=network == KEEP
        )
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
