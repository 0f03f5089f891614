"""How long a server that no engine can move stands still: as long as the engine takes, in this session."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

import baselines
from quicferry.record import Asked, RunResult
from quicferry.strategies import Strategy

Perform = Callable[[Asked], RunResult]


def same_conditions(result: RunResult, asked: Asked) -> bool:
    """Whether an engine moved a server in that run, under the conditions asked for here."""
    return (
        result.outcome == "succeeded"
        and result.kind == "strategy"
        and result.container_downtime_ms is not None
        and (result.engine, result.memory_mib, result.topology)
        == (asked.engine, asked.memory_mib, asked.topology)
    )


class Downtimes:
    """The downtimes of a session; ``results`` is what it has brought so far, and grows."""

    def __init__(self, results: Sequence[RunResult]) -> None:
        self._results = results
        self._measured: list[RunResult] = []  # by runs that were made only for this

    def perform(self, asked: Asked, perform: Perform) -> RunResult:
        """Perform a run; one that needs a downtime is given the latest, or one measured before it."""
        if asked.baseline is None or asked.downtime_ms is not None:
            return perform(asked)
        if not baselines.get(asked.baseline).borrows_downtime:
            return perform(asked)
        known = [result for result in (*self._measured, *self._results) if same_conditions(result, asked)]
        # a run of the same repetition has met the same network and the same state of the machine
        model = next((result for result in known[::-1] if result.seed == asked.seed), None) or (
            known[-1] if known else self._measure(asked, perform)
        )
        if model.container_downtime_ms is None:
            model.error = f"the downtime of {asked.engine} could not be measured: {model.error}"
            return msgspec.structs.replace(model, strategy=asked.baseline, kind="baseline")
        result = perform(msgspec.structs.replace(asked, downtime_ms=model.container_downtime_ms))
        result.warnings.append(
            f"stood still for {model.container_downtime_ms:.1f} ms, as {asked.engine} took in {model.run_id}"
        )
        return result

    def _measure(self, asked: Asked, perform: Perform) -> RunResult:
        model = perform(msgspec.structs.replace(asked, baseline=None, strategy=Strategy.PROACTIVE_EXPLICIT))
        self._measured.append(model)
        return model
