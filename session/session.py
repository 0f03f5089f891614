"""Runs one after another, each analysed as soon as it is done; a run that fails does not stop the next."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import baselines
from quicferry.analysis.derive import derive
from quicferry.errors import FerryError
from quicferry.events import Event
from quicferry.experiment.launch import launch, needed_probes
from quicferry.experiment.preflight import check as ask_machine
from quicferry.experiment.store import RunStore
from quicferry.model import Topology
from quicferry.record import RunResult, result_of
from quicferry.spec import RunSpec
from session.downtimes import Downtimes
from session.request import check_engine, topology_of


def title(spec: RunSpec) -> str:
    """What a run is called on the screen."""
    if spec.baseline is not None:
        return f"{spec.baseline} · {spec.engine}"
    return f"{spec.strategy}{' server-first' if spec.server_first else ''} · {spec.engine}"


def needs(spec: RunSpec) -> list[str]:
    """What a run needs of the machine, its baseline included. Raises ``InvalidInput`` for an unknown one."""
    needed = needed_probes(spec)
    if spec.baseline is not None:
        needed += [probe for probe in baselines.get(spec.baseline).needs if probe not in needed]
    return needed


def failure(spec: RunSpec, error: FerryError) -> RunResult:
    """The result of a run that could not even begin."""
    return result_of(spec, error.outcome, error=str(error), hint=error.hint)


def refusal(spec: RunSpec, refusals: Mapping[str, FerryError]) -> FerryError | None:
    """Why a run cannot be: what the machine lacks, or an engine that cannot move the baseline's server."""
    for probe in needs(spec):
        if probe in refusals:
            return refusals[probe]
    return check_engine(spec)


class Watcher(Protocol):
    """Whoever wants to know how far a session is, such as a progress bar."""

    def __call__(self, spec: RunSpec, done: int, event: Event | None) -> None:
        """Run ``spec`` begins (``event`` None) or an event of it came; ``done`` runs are over."""


def _nobody(spec: RunSpec, done: int, event: Event | None) -> None:
    """Nobody watches."""


def perform_all(
    specs: Sequence[RunSpec],
    runs_root: Path | None,
    on_result: Callable[[RunResult], None] | None = None,
    watch: Watcher = _nobody,
) -> list[RunResult]:
    """Perform runs one after another and analyse each; a run that fails does not stop the next.

    ``on_result`` is given each result as soon as it is there. Raises ``InvalidInput`` before the first
    run when any of them cannot be meant, and ``Unsupported`` when this machine can do none of them.
    """
    plans = [(spec, topology_of(spec)) for spec in specs]
    store = RunStore(runs_root)
    refusals: dict[str, FerryError] = {}
    for name in sorted({probe for spec in specs for probe in needs(spec)}):
        try:
            ask_machine([name])
        except FerryError as error:
            refusals[name] = error
    refused = [refusal(spec, refusals) for spec in specs]
    if refused and None not in refused:
        raise next(error for error in refused if error is not None)
    results: list[RunResult] = []
    downtimes = Downtimes(results)
    for done, (spec, topology) in enumerate(plans):

        def perform(spec: RunSpec, topology: Topology = topology, done: int = done) -> RunResult:
            watch(spec, done, None)
            on_event = functools.partial(watch, spec, done)
            paths = launch(spec, topology, store, "session.play", on_event, checked=True)
            return derive(paths.root)

        why_not = refused[done]
        result = failure(spec, why_not) if why_not is not None else downtimes.perform(spec, perform)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results
