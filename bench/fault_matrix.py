"""``make faults``: every fault with every engine and strategy, some runs at a time.

    python -m bench.fault_matrix [--engine handoff …] [--strategy symmetric …] [--fault pages: …]

Prints a line for each run that is not as the table of faults says, and fails when there is one. Without
options that is more than a thousand runs, 2 to 4 s each on two cores. The tests perform each point and
kind once, by the same functions.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from quicferry.analysis.analyse import analyse
from quicferry.errors import FerryError, Unsupported
from quicferry.events import read_events
from quicferry.experiment import preflight
from quicferry.experiment.faults import ROWS, engines_of, parse, row_of
from quicferry.experiment.launch import launch
from quicferry.experiment.store import RunStore
from quicferry.migration.engines.registry import engines as known_engines
from quicferry.record import RunPaths, RunResult
from quicferry.spec import FaultPoint, RunSpec
from quicferry.strategies import RULES, Strategy
from session.request import needs, parts_of, to_spec

AT_ONCE = 4
#: Where memory follows the server, enough of it that it takes a second: else there is nothing to disturb.
FOLLOWING: dict[str, Any] = {"memory_mib": 24, "inter_edge_mbps": 200.0}


class Case(NamedTuple):
    """One run: faults as on the command line, joined by ``+``."""

    fault: str
    engine: str = "handoff"
    strategy: str = str(Strategy.PROACTIVE_EXPLICIT)

    def __str__(self) -> str:
        return "-".join(self)

    @property
    def faults(self) -> tuple[str, ...]:
        """Each of them."""
        return tuple(self.fault.split("+"))

    def spec(self) -> RunSpec:
        """The run that this is. Raises ``InvalidInput`` when it cannot be."""
        values: dict[str, Any] = {
            "engine": self.engine,
            "strategy": self.strategy,
            "faults": self.faults,
            "before_s": 0.3,
            "after_s": 0.3,
            "interval_ms": 20.0,
        }
        if any(parse(fault).point is FaultPoint.PAGES for fault in self.faults):
            values |= FOLLOWING
        return to_spec(values)


def every_case(engines: Sequence[str], strategies: Sequence[str], words: Sequence[str]) -> list[Case]:
    """The whole matrix, or the rows that begin with one of the words."""
    return [
        Case(row.name, engine, strategy)
        for engine in engines
        for strategy in strategies
        for row in ROWS
        if engine in (engines_of(row) or known_engines())
        and (row.point is not FaultPoint.NOTICE or RULES[Strategy(strategy)].notice)
        and (not words or row.name.startswith(tuple(words)))
    ]


def perform(case: Case, runs: Path) -> RunResult:
    """Perform it in a private root and read its captures. May be called by several threads at a time.

    Raises ``FerryError`` for what could not even begin. The machine is not asked whether it can.
    """
    spec = case.spec()
    paths = launch(spec, parts_of(spec).topology, RunStore(runs), "session.play")
    return analyse(paths.root).result


def complaints(case: Case, result: RunResult) -> list[str]:
    """What is not as the table says; nothing is as it should be."""
    found = [] if result.outcome == "succeeded" else [f"the run {result.outcome}: {result.error}"]
    rows = [row_of(parse(fault)) for fault in case.faults]
    if not all(result.served_by in row.places for row in rows):
        found.append(f"the server is at {result.served_by}")
    if (result.requests_lost, result.requests_duplicated, result.state_ok) != (0, 0, True):
        found.append(
            f"{result.requests_lost} requests lost, {result.requests_duplicated} executed twice, "
            f"state ok: {result.state_ok}"
        )
    if (result.requests_sent or 0) <= 10:
        found.append(f"{result.requests_sent} requests only")
    found += [words for words in result.warnings if "nonce" in words or "could not be injected" in words]
    if result.run_dir is not None:
        events = read_events(RunPaths(Path(result.run_dir)).events)
        injected = sorted(event.detail["fault"] for event in events if event.name == "fault.injected")
        if injected != sorted(row.name for row in rows):
            found.append(f"injected: {', '.join(injected) or 'nothing'}")
    return found


def able(engines: Sequence[str]) -> list[str]:
    """Those engines that this machine can use; says why of the others."""
    usable = []
    for engine in engines:
        try:
            spec = to_spec({"engine": engine})
            preflight.check(needs(spec, parts_of(spec)))
        except Unsupported as error:
            sys.stderr.write(f"faults: {engine} is left out: {error}\n")
        else:
            usable.append(engine)
    return usable


def main() -> int:
    """Run all of it, print what is wrong, and say whether anything is."""
    parser = argparse.ArgumentParser(description="Every fault with every engine and strategy.")
    parser.add_argument("--engine", nargs="+", choices=list(known_engines()), default=list(known_engines()))
    parser.add_argument(
        "--strategy", nargs="+", choices=[str(each) for each in Strategy], default=[str(s) for s in Strategy]
    )
    parser.add_argument("--fault", nargs="+", default=[], help="beginnings of names of faults")
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    parser.add_argument("--runs", type=Path, default=None, help="keep the runs here")
    arguments = parser.parse_args()
    cases = every_case(able(arguments.engine), arguments.strategy, arguments.fault)
    begun = time.monotonic()
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.at_once) as pool:
        runs = arguments.runs or Path(scratch)

        def judged(case: Case) -> list[str]:
            try:
                return complaints(case, perform(case, runs))
            except FerryError as error:
                return [str(error)]

        for case, found in zip(cases, pool.map(judged, cases), strict=True):
            wrong += bool(found)
            for words in found:
                print(f"{case}: {words}", flush=True)
    print(f"{len(cases)} runs, {wrong} not as the table says, {time.monotonic() - begun:.0f} s")
    return 1 if wrong or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
