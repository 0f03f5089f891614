"""A sweep in a command: its store is opened, its runs are made with progress on stderr."""

from __future__ import annotations

from pathlib import Path

from cli.common.output import print_json, say
from cli.common.progress import progress
from quicferry.record import RunResult
from session.scenario import Scenario
from session.session import Session
from session.sweep import PlannedRun, SweepEnd, SweepStore, conditions_now, go_on, pending


def opened(root: Path, scenario: Scenario, *, resume: bool) -> SweepStore:
    """The store of a sweep: a new one, or with ``resume`` the one that is there, if runs can be compared."""
    if not resume:
        return SweepStore.create(root, scenario, conditions_now())
    store = SweepStore.open_(root)
    store.require_same(scenario, conditions_now())
    return store.with_scenario(scenario)


def make(store: SweepStore, scenario: Scenario, *, as_json: bool = False) -> SweepEnd:
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
