"""``quicferry run``: one move, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cli.common.axes import axis_options
from cli.common.output import json_option, print_json, say, stdout_console
from cli.common.progress import progress
from quicferry.errors import FerryError, InvalidInput
from quicferry.record import RunResult
from session.outcomes import exit_code
from session.request import to_spec
from session.session import failure, perform_all


class RunFailed(FerryError):
    """A run was performed and did not succeed; its result has been printed."""

    already_printed = True

    def __init__(self, result: RunResult) -> None:
        is_adjective = result.outcome in ("degraded", "overloaded")
        said = f"was {result.outcome}" if is_adjective else result.outcome
        super().__init__(f"the run {said}: {result.error}", hint=result.hint)
        self.exit_code = exit_code(result)


@click.command()
@axis_options()
@json_option
def run(runs_root: Path | None, as_json: bool, **values: Any) -> None:
    """Move a live server from one edge to another, once, and measure how long it was gone."""
    if values["baseline"] is not None and values["strategy"] is not None:
        raise InvalidInput(
            "a run has a strategy or a baseline, not both", hint="`quicferry compare` runs both in turn"
        )
    spec = to_spec(values)
    try:
        with progress(1) as watch:
            result = perform_all([spec], runs_root, watch=watch)[0]
    except FerryError as error:
        if as_json:
            print_json(failure(spec, error))
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
