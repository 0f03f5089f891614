"""Runs one after another, each analysed as soon as it is done; a run that fails does not stop the next."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Self

from quicferry.errors import FerryError, Unsupported
from quicferry.events import Event
from quicferry.experiment.known_answers import check_unless_known as ask_machine
from quicferry.experiment.known_answers import forget
from quicferry.experiment.launch import launch
from quicferry.experiment.stage import FreshStage, KeptStage, Stage
from quicferry.experiment.store import RunStore
from quicferry.record import RunResult, result_of
from quicferry.spec import RunSpec
from session import fit
from session.downtimes import Downtimes
from session.request import needs, parts_of, refusal

PLAYER = "session.play"  # plays runs, in their private root


def derive(run_dir: Path, *, draw: bool = True) -> RunResult:
    """``quicferry.analysis.derive.derive``, loaded when it is needed: it takes half a second."""
    from quicferry.analysis.derive import derive

    return derive(run_dir, draw=draw)


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


class Session:
    """Performs runs in a store, one at a time, and knows from the start which this machine cannot make.

    ``specs`` are all that may be asked for. ``draw`` makes a picture of each timeline, which takes longer
    than the rest of the analysis. With ``keep_network`` runs of an equal topology share a deployed network,
    which ends with the session: use it as a context manager. Raises ``InvalidInput`` when any of them cannot
    be meant, and ``Unsupported`` when this machine can do none of them.
    """

    def __init__(
        self,
        specs: Sequence[RunSpec],
        runs_root: Path | None,
        watch: Watcher = _nobody,
        *,
        draw: bool = True,
        keep_network: bool = False,
    ) -> None:
        self._parts = {spec: parts_of(spec) for spec in specs}
        self._store = RunStore(runs_root)
        self._watch = watch
        self._draw = draw
        self._stage: Stage = KeptStage(PLAYER, self._store.root) if keep_network else FreshStage(PLAYER)
        self._entered = False
        self._refused = self._ask()
        if specs and None not in self._refused.values():
            raise next(error for error in self._refused.values() if error is not None)
        self.results: list[RunResult] = []
        self._downtimes = Downtimes(self.results)

    def _ask(self) -> dict[RunSpec, FerryError | None]:
        """Ask this machine, once, for all that the runs need; each run with the reason why it cannot be."""
        needed = {spec: needs(spec, parts) for spec, parts in self._parts.items()}
        refusals = _refusals(sorted({probe for names in needed.values() for probe in names}))
        return {
            spec: next((refusals[probe] for probe in needed[spec] if probe in refusals), None)
            or refusal(spec, parts)
            or _no_room(spec)
            for spec, parts in self._parts.items()
        }

    def perform(self, spec: RunSpec, done: int) -> RunResult:
        """Perform one of the runs and analyse it; ``done`` are over. A run that fails gives a result, too."""
        topology = self._parts[spec].topology

        def perform(spec: RunSpec) -> RunResult:
            self._watch(spec, done, None)
            on_event = functools.partial(self._watch, spec, done)
            paths = launch(spec, topology, self._store, self._stage, on_event)
            if self._entered and done + 1 < len(self._parts):
                self._stage.prepare()  # beside the analysis
            return derive(paths.root) if self._draw else derive(paths.root, draw=False)

        why_not = self._refused[spec]
        result = failure(spec, why_not) if why_not is not None else self._downtimes.perform(spec, perform)
        if result.outcome == "failed":
            forget()
        self.results.append(result)
        return result

    @property
    def stage(self) -> Stage:
        """Where the runs are played."""
        return self._stage

    def __enter__(self) -> Self:
        """Start ahead what the first run needs, and load the analysis meanwhile."""
        self._entered = True
        if any(why_not is None for why_not in self._refused.values()):
            self._stage.prepare()
            self._load()
        return self

    def _load(self) -> None:
        """Load now what is needed after the run, when something waits for it."""
        importlib.import_module("quicferry.analysis.derive")
        if self._draw:
            importlib.import_module("quicferry.analysis.figures.timeline")

    def __exit__(self, *_: object) -> None:
        """End the network that is kept."""
        self._stage.close()


def perform_all(
    specs: Sequence[RunSpec],
    runs_root: Path | None,
    on_result: Callable[[RunResult], None] | None = None,
    watch: Watcher = _nobody,
    *,
    keep_network: bool = False,
) -> list[RunResult]:
    """Perform runs one after another and analyse each; a run that fails does not stop the next.

    ``on_result`` is given each result as soon as it is there. Raises as ``Session`` does.
    """
    with Session(specs, runs_root, watch, keep_network=keep_network) as session:
        for done, spec in enumerate(specs):
            result = session.perform(spec, done)
            if on_result is not None:
                on_result(result)
    return session.results


def _no_room(spec: RunSpec) -> FerryError | None:
    try:
        fit.check_memory(spec)
    except Unsupported as error:
        return error
    return None


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
