"""``quicferry sweep``: a scenario file from the first run to the table."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from cli.common.output import json_option, print_json, say, stdout_console
from cli.common.progress import progress
from cli.common.runs import runs_option
from quicferry.record import RunResult
from session.outcomes import raise_for, reasons
from session.scenario import Scenario, read_scenario
from session.selection import sweep_root
from session.session import Session
from session.sweep import PlannedRun, SweepEnd, SweepStore, conditions_now, go_on, pending


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
@click.option("--repetitions", type=click.IntRange(1, 10_000), default=None, help="Instead of the file's.")
@click.option("--warm-up", type=click.IntRange(0, 100), default=None, help="Instead of the file's.")
@click.option(
    "--time-budget-min",
    type=click.FloatRange(0, 100_000, min_open=True),
    default=None,
    help="Begin no run after so many minutes; --resume goes on later.",
)
@runs_option
@json_option
def sweep(
    file: Path,
    output: Path | None,
    resume: bool,
    repetitions: int | None,
    warm_up: int | None,
    time_budget_min: float | None,
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
    root = output or sweep_root(file.stem, runs_root)
    store = opened(root, scenario, resume=resume)
    with store.locked():
        end = _make(store, scenario, as_json=as_json)
        store.write_table()
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


def opened(root: Path, scenario: Scenario, *, resume: bool) -> SweepStore:
    """The store of a sweep: a new one, or with ``resume`` the one that is there, if runs can be compared."""
    if not resume:
        return SweepStore.create(root, scenario, conditions_now())
    store = SweepStore.open_(root)
    store.require_same(scenario, conditions_now())
    return store.with_scenario(scenario)


def _make(store: SweepStore, scenario: Scenario, *, as_json: bool) -> SweepEnd:
    """Make the runs that are missing, with progress on stderr."""
    runs = pending(store, scenario)

    def told(planned: PlannedRun, result: RunResult) -> None:
        if as_json and planned.is_sample:
            print_json(result)

    with progress(len(runs)) as watch:
        session = Session([run.spec for run in runs], store.root, watch, draw=False)
        try:
            return go_on(store, runs, session.perform, told, scenario.time_budget_min)
        except BaseException:
            # a signal, a full disk: what was measured is kept, and the table is of what there is
            done = len(store.entries())
            say(f"ended early; {done} runs are in {store.root}: --resume goes on")
            store.write_table()
            raise
