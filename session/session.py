"""Runs one after another, each analysed as soon as it is done; a run that fails does not stop the next."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import baselines
from quicferry.analysis.analyse import analyse
from quicferry.errors import FerryError, Unsupported
from quicferry.events import Event
from quicferry.experiment.launch import launch, needed_probes
from quicferry.experiment.preflight import check as ask_machine
from quicferry.experiment.store import RunStore
from quicferry.model import Topology
from quicferry.record import Asked, RunResult
from session.downtimes import Downtimes
from session.request import build_topology
from session.scenario import check


def title(asked: Asked) -> str:
    """What a run is called on the screen."""
    if asked.baseline is not None:
        return f"{asked.baseline} · {asked.engine}"
    return f"{asked.strategy}{' server-first' if asked.server_first else ''} · {asked.engine}"


def needs(asked: Asked) -> list[str]:
    """What a run needs of the machine, its baseline included. Raises ``InvalidInput`` for an unknown one."""
    needed = needed_probes(asked)
    if asked.baseline is not None:
        needed += [probe for probe in baselines.get(asked.baseline).needs if probe not in needed]
    return needed


def failure(asked: Asked, error: FerryError) -> RunResult:
    """The result of a run that could not even begin."""
    return RunResult(
        outcome=error.outcome,
        strategy=asked.baseline or str(asked.strategy),
        kind="strategy" if asked.baseline is None else "baseline",
        engine=asked.engine,
        seed=asked.seed,
        topology=asked.topology,
        server_first=asked.server_first,
        pool=asked.pool,
        memory_mib=asked.memory_mib,
        loss_percent=asked.loss_percent,
        rtt_asked_ms=asked.rtt_ms,
        error=str(error),
        hint=error.hint,
    )


def refusal(asked: Asked, refusals: Mapping[str, FerryError]) -> FerryError | None:
    """Why a run cannot be: what the machine lacks, or an engine that cannot move the baseline's server."""
    for probe in needs(asked):
        if probe in refusals:
            return refusals[probe]
    if asked.baseline is not None:
        try:
            baselines.check_engine(asked.baseline, asked.engine)
        except Unsupported as error:
            return error
    return None


class Watcher(Protocol):
    """Whoever wants to know how far a session is, such as a progress bar."""

    def __call__(self, spec: Asked, done: int, event: Event | None) -> None:
        """Run ``spec`` begins (``event`` None) or an event of it came; ``done`` runs are over."""


def _nobody(spec: Asked, done: int, event: Event | None) -> None:
    """Nobody watches."""


def perform_all(
    wanted: Sequence[Asked],
    runs_root: Path | None,
    on_result: Callable[[RunResult], None] | None = None,
    watch: Watcher = _nobody,
) -> list[RunResult]:
    """Perform runs one after another and analyse each; a run that fails does not stop the next.

    ``on_result`` is given each result as soon as it is there. Raises ``InvalidInput`` before the first
    run when any of them cannot be meant, and ``Unsupported`` when this machine can do none of them.
    """
    plans = [(check(asked), build_topology(asked)) for asked in wanted]
    store = RunStore(runs_root)
    refusals: dict[str, FerryError] = {}
    for name in sorted({probe for asked in wanted for probe in needs(asked)}):
        try:
            ask_machine([name])
        except FerryError as error:
            refusals[name] = error
    refused = [refusal(asked, refusals) for asked in wanted]
    if refused and None not in refused:
        raise next(error for error in refused if error is not None)
    results: list[RunResult] = []
    downtimes = Downtimes(results)
    for done, (asked, topology) in enumerate(plans):

        def perform(asked: Asked, topology: Topology = topology, done: int = done) -> RunResult:
            watch(asked, done, None)
            on_event = functools.partial(watch, asked, done)
            paths = launch(asked, topology, store, "session.play", on_event, checked=True)
            return analyse(paths.root)

        why_not = refused[done]
        result = failure(asked, why_not) if why_not is not None else downtimes.perform(asked, perform)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results
