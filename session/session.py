"""Runs one after another, each analysed as soon as it is done; a run that fails does not stop the next."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from quicferry.analysis.derive import derive
from quicferry.errors import FerryError
from quicferry.events import Event
from quicferry.experiment.launch import launch
from quicferry.experiment.preflight import check as ask_machine
from quicferry.experiment.store import RunStore
from quicferry.model import Topology
from quicferry.record import RunResult, result_of
from quicferry.spec import RunSpec
from session.downtimes import Downtimes
from session.request import needs, parts_of, refusal


def title(spec: RunSpec) -> str:
    """What a run is called on the screen."""
    if spec.baseline is not None:
        return f"{spec.baseline} · {spec.engine}"
    return f"{spec.strategy}{' server-first' if spec.server_first else ''} · {spec.engine}"


def failure(spec: RunSpec, error: FerryError) -> RunResult:
    """The result of a run that could not even begin."""
    return result_of(spec, error.outcome, error=str(error), hint=error.hint)


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
    plans = [(spec, parts_of(spec)) for spec in specs]
    store = RunStore(runs_root)
    refusals = _refusals(sorted({probe for spec, parts in plans for probe in needs(spec, parts)}))
    refused = [
        next((refusals[probe] for probe in needs(spec, parts) if probe in refusals), None)
        or refusal(spec, parts)
        for spec, parts in plans
    ]
    if refused and None not in refused:
        raise next(error for error in refused if error is not None)
    results: list[RunResult] = []
    downtimes = Downtimes(results)
    for done, (spec, parts) in enumerate(plans):

        def perform(spec: RunSpec, topology: Topology = parts.topology, done: int = done) -> RunResult:
            watch(spec, done, None)
            on_event = functools.partial(watch, spec, done)
            paths = launch(spec, topology, store, "session.play", on_event)
            return derive(paths.root)

        why_not = refused[done]
        result = failure(spec, why_not) if why_not is not None else downtimes.perform(spec, perform)
        results.append(result)
        if on_result is not None:
            on_result(result)
    return results


def _refusals(names: list[str]) -> dict[str, FerryError]:
    """What this machine cannot do of that; each with the reason."""
    try:
        ask_machine(names)
    except FerryError:
        pass
    else:
        return {}
    refusals: dict[str, FerryError] = {}
    for name in names:  # the first one that said no is not the only one perhaps
        try:
            ask_machine([name])
        except FerryError as error:
            refusals[name] = error
    return refusals
