"""``quicferry run``: one move, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import baselines
from cli.axes import axis_options
from cli.progress import perform_shown
from cli.support import json_option, print_json, say, stdout_console
from quicferry.errors import FerryError, InvalidInput
from quicferry.migration.engines.base import ENGINES
from quicferry.record import RunResult
from quicferry.strategies import Strategy
from session.scenario import check, to_asked
from session.session import failure


class RunFailed(FerryError):
    """A run was performed and did not succeed; its result has been printed."""

    already_printed = True

    def __init__(self, result: RunResult) -> None:
        super().__init__(f"the run {result.outcome}: {result.error}", hint=result.hint)
        self.exit_code = {"unsupported": 127, "invalid": 2}.get(result.outcome, 1)


@click.command()
@click.option(
    "--strategy",
    type=click.Choice([str(strategy) for strategy in Strategy]),
    default=str(Strategy.PROACTIVE_EXPLICIT),
    show_default=True,
    help="How client and server find each other again.",
)
@click.option(
    "--baseline",
    type=click.Choice(list(baselines.names())),
    default=None,
    help="Run an alternative to the extension instead of a strategy.",
)
@click.option(
    "--engine",
    type=click.Choice(list(ENGINES)),
    default="handoff",
    show_default=True,
    help="How the server's process moves.",
)
@click.option(
    "--clients",
    type=int,
    default=1,
    show_default=True,
    help="How many clients there are, 1 to 500, each with a connection of its own.",
)
@click.option(
    "--mixed-strategies",
    is_flag=True,
    help="Each client agrees to one strategy only, all of them in turn.",
)
@click.option(
    "--plain-clients",
    type=int,
    default=0,
    show_default=True,
    help="How many of them do not know the extension.",
)
@click.option(
    "--moves",
    type=int,
    default=1,
    show_default=True,
    help="How often the server moves, to and fro; times are then medians over all moves.",
)
@click.option(
    "--fault",
    "faults",
    multiple=True,
    metavar="POINT:KIND[=SECONDS]",
    help="Make this go wrong, see `quicferry faults`; may be given several times.",
)
@axis_options
@json_option
@click.pass_context
def run(
    context: click.Context,
    /,
    strategy: str,
    baseline: str | None,
    engine: str,
    runs_root: Path | None,
    as_json: bool,
    **axes: Any,
) -> None:
    """Move a live server from one edge to another, once, and measure how long it was gone."""
    given = context.get_parameter_source("strategy") is ParameterSource.COMMANDLINE
    if baseline is not None and given:
        raise InvalidInput(
            "a run has a strategy or a baseline, not both", hint="`quicferry compare` runs both in turn"
        )
    asked = to_asked({"strategy": strategy, "baseline": baseline, "engine": engine, **axes})
    try:
        check(asked)
        result = perform_shown([asked], runs_root)[0]
    except FerryError as error:
        if as_json:
            print_json(failure(asked, error))
        error.already_printed = True
        raise
    if as_json:
        print_json(result)
    else:
        from quicferry.analysis.tables import result_table

        stdout_console().print(result_table([result]))
        for warning in result.warnings:
            say(f"warning: {warning}")
        say(f"run directory: {result.run_dir}")
    if result.outcome != "succeeded":
        raise RunFailed(result)
