"""A sweep in a command: its store is opened, its runs are made with progress on stderr."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from cli.common.output import print_json, say
from cli.common.progress import progress
from quicferry.errors import InvalidInput
from quicferry.record import RunResult
from session import cluster
from session.scenario import Scenario
from session.session import Session, Watcher
from session.sweep import (
    OnResult,
    PlannedRun,
    SweepEnd,
    SweepStore,
    conditions_now,
    go_on,
    pending,
)

F = TypeVar("F", bound=Callable[..., Any])


LOCAL = "local"


def executor_option(command: F) -> F:
    """``--executor``: where the runs are made."""
    return click.option(
        "--executor",
        default=LOCAL,
        show_default=True,
        metavar="local|dask[://HOST:PORT]",
        help="Where runs are made: here, or on a Dask cluster, one at a time on each machine; docs/sweep.md.",
    )(command)


NEW, KEEP = "new", "keep"


def network_option(command: F) -> F:
    """``--network``: whether each run builds its network, or runs share one."""
    return click.option(
        "--network",
        type=click.Choice((NEW, KEEP)),
        default=NEW,
        show_default=True,
        help="A new network for each run, or keep one for all runs of equal topology and links, which saves "
        "seconds for each; docs/sweep.md.",
    )(command)


def opened(root: Path, scenario: Scenario, conditions: dict[str, str], *, resume: bool) -> SweepStore:
    """The store of a sweep: a new one, or with ``resume`` the one that is there, if runs can be compared."""
    if not resume:
        return SweepStore.create(root, scenario, conditions)
    store = SweepStore.open_(root)
    store.require_same(scenario, conditions)
    return store.with_scenario(scenario)


def sweep_into(
    root: Path,
    scenario: Scenario,
    *,
    resume: bool,
    executor: str = LOCAL,
    network: str = NEW,
    as_json: bool = False,
) -> tuple[SweepStore, SweepEnd]:
    """Open the store, make the runs that are missing, with progress on stderr, and write the table.

    Raises ``InvalidInput`` for a network that is to be kept on other machines.
    """
    if executor != LOCAL and network == KEEP:
        raise InvalidInput(
            "--network keep is for runs on this machine", hint="leave it out beside --executor"
        )
    if executor == LOCAL:
        store = opened(root, scenario, conditions_now(), resume=resume)
        with store.locked():
            return store, _made(
                store, scenario, _local(store, scenario, keep_network=network == KEEP), as_json=as_json
            )
    with cluster.connected(executor) as client:
        store = opened(root, scenario, cluster.common_conditions(client), resume=resume)
        with store.locked():
            return store, _made(store, scenario, _on(client, store, scenario), as_json=as_json)


Make = Callable[[Sequence[PlannedRun], Watcher, OnResult], SweepEnd]


def _local(store: SweepStore, scenario: Scenario, *, keep_network: bool) -> Make:
    def make(runs: Sequence[PlannedRun], watch: Watcher, on_result: OnResult) -> SweepEnd:
        specs = [run.spec for run in runs]
        with Session(specs, store.root, watch, draw=False, keep_network=keep_network) as session:
            return go_on(store, runs, session.perform, on_result, scenario.time_budget_min)

    return make


def _on(client: Any, store: SweepStore, scenario: Scenario) -> Make:
    def make(runs: Sequence[PlannedRun], watch: Watcher, on_result: OnResult) -> SweepEnd:
        done = 0

        def told(planned: PlannedRun, result: RunResult) -> None:
            nonlocal done
            watch(planned.spec, done, None)
            done += 1
            on_result(planned, result)

        return cluster.go_on_in_cluster(store, runs, client, told, scenario.time_budget_min)

    return make


def _made(store: SweepStore, scenario: Scenario, make: Make, *, as_json: bool) -> SweepEnd:
    runs = pending(store, scenario)

    def told(planned: PlannedRun, result: RunResult) -> None:
        if as_json and planned.is_sample:
            print_json(result)

    try:
        with progress(len(runs)) as watch:
            end = make(runs, watch, told)
    except BaseException:
        # a signal, a full disk: what was measured is kept, and the table is of what there is
        say(f"ended early; {len(store.entries())} runs are in {store.root}: --resume goes on")
        store.write_table()
        raise
    store.write_table()
    return end
