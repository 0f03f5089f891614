"""How long a server that no engine can move stands still: as long as the engine takes, in this session."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

import baselines
from quicferry.record import RunResult
from quicferry.spec import ReadBy, RunSpec, axes
from quicferry.strategies import Strategy
from session.request import OF_A_DOWNTIME

Perform = Callable[[RunSpec], RunResult]


def same_conditions(result: RunResult, spec: RunSpec) -> bool:
    """Whether an engine moved a server in that run, under the conditions asked for here."""
    return (
        result.is_measured
        and result.kind == "strategy"
        and result.container_downtime_ms is not None
        and (result.engine, result.memory_mib, result.topology)
        == (spec.engine, spec.memory_mib, spec.topology)
        and (result.spec is None or _of_a_downtime(result.spec) == _of_a_downtime(spec))
    )


def _of_a_downtime(spec: RunSpec) -> tuple[object, ...]:
    """What else the downtime of an engine depends on."""
    return tuple(getattr(spec, name) for name in (*OF_A_DOWNTIME, "dirty_mib_s"))


class Downtimes:
    """The downtimes of a session; ``results`` is what it has brought so far, and grows."""

    def __init__(self, results: Sequence[RunResult]) -> None:
        self._results = results
        self._measured: list[RunResult] = []  # by runs that were made only for this

    def perform(self, spec: RunSpec, perform: Perform) -> RunResult:
        """Perform a run; one that needs a downtime is given the latest, or one measured before it."""
        if spec.baseline is None or spec.downtime_ms is not None:
            return perform(spec)
        if not baselines.get(spec.baseline).borrows_downtime:
            return perform(spec)
        known = [result for result in (*self._measured, *self._results) if same_conditions(result, spec)]
        # a run of the same repetition has met the same network and the same state of the machine
        model = next((result for result in known[::-1] if result.seed == spec.seed), None) or (
            known[-1] if known else self._measure(spec, perform)
        )
        if model.container_downtime_ms is None:
            model.error = f"the downtime of {spec.engine} could not be measured: {model.error}"
            return msgspec.structs.replace(model, strategy=spec.baseline, kind="baseline")
        result = perform(msgspec.structs.replace(spec, downtime_ms=model.container_downtime_ms))
        result.warnings.append(
            f"stood still for {model.container_downtime_ms:.1f} ms, as {spec.engine} took in {model.run_id}"
        )
        return result

    def _measure(self, spec: RunSpec, perform: Perform) -> RunResult:
        usual = {axis.name: axis.default for axis in axes().values() if axis.read_by is ReadBy.BASELINES}
        alike = msgspec.structs.replace(spec, baseline=None, strategy=Strategy.PROACTIVE_EXPLICIT, **usual)
        model = perform(alike)
        self._measured.append(model)
        return model
