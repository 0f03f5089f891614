"""``quicferry sweep``: a scenario file from the first run to the table."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from cli.common.output import json_option, say, stdout_console
from cli.common.runs import runs_option
from cli.common.sweeping import executor_option, network_option, sweep_into
from session.outcomes import raise_for, reasons
from session.scenario import read_scenario
from session.selection import sweep_root


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="The sweep's directory.  [default: sweeps/NAME-OF-FILE among the runs]",
)
@click.option("--resume", is_flag=True, help="Go on with the sweep that is there.")
@click.option(
    "--repetitions",
    type=click.IntRange(1, 10_000),
    default=None,
    help="Of every combination, instead of the file's.",
)
@click.option("--warm-up", type=click.IntRange(0, 100), default=None, help="Instead of the file's.")
@click.option(
    "--time-budget-min",
    type=click.FloatRange(0, 100_000, min_open=True),
    default=None,
    help="Begin no run after so many minutes; --resume goes on later.",
)
@executor_option
@network_option
@runs_option
@json_option
def sweep(
    file: Path,
    output: Path | None,
    resume: bool,
    repetitions: int | None,
    warm_up: int | None,
    time_budget_min: float | None,
    executor: str,
    network: str,
    runs_root: Path | None,
    as_json: bool,
) -> None:
    """Run every combination of a scenario's axes, repeated, in random order.

    docs/sweep.md has the form of the file. The sweep can be interrupted at any moment, even by SIGKILL or a
    full disk, and goes on with --resume.
    With --json each run is one line as soon as it is done.
    """
    given = {"repetitions": repetitions, "warm_up": warm_up, "time_budget_min": time_budget_min}
    scenario = msgspec.structs.replace(
        read_scenario(file), **{name: value for name, value in given.items() if value is not None}
    )
    if repetitions is not None:
        scenario = msgspec.structs.replace(scenario, fewer=[])
    root = output or sweep_root(file.stem, runs_root)
    store, end = sweep_into(
        root, scenario, resume=resume, executor=executor, network=network, as_json=as_json
    )
    samples = [row.result for row in store.rows() if row.repetition > 0]
    if not as_json:
        from quicferry.analysis.tables import comparison_table

        stdout_console().print(comparison_table(samples))
        for reason in reasons(samples):
            say(reason)
    say(f"table: {store.table}")
    if end.missing:
        say(f"{end.reason}: {end.missing} runs are missing; --resume goes on")
    raise_for(samples)
