"""``make faults``: every fault with every engine and strategy, over several networks, some runs at a time.

    python -m bench.fault_matrix [--engine handoff …] [--strategy symmetric …] [--fault pages: …]
    python -m bench.fault_matrix --pairwise --shard 1/4 --save faults.jsonl

Prints a line for each run that is not as the table of faults says, and fails when there is one. Without
options that is more than ten thousand runs, 2 to 10 s each on two cores. ``--pairwise`` takes as many as it
needs for each pair of row, engine, strategy and network to meet. With ``--save`` a line of JSON is kept for
each run, and those that are there already are not run again. The tests perform each point and kind once, by
the same functions.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from quicferry.analysis.analyse import analyse
from quicferry.errors import UNDECODABLE, FerryError, InvalidInput, Unsupported
from quicferry.events import read_events
from quicferry.experiment import preflight
from quicferry.experiment.faults import DESTINATION, ROWS, engines_of, parse, row_of
from quicferry.experiment.launch import launch
from quicferry.experiment.stage import FreshStage
from quicferry.experiment.store import RunStore
from quicferry.migration.engines.registry import engines as known_engines
from quicferry.record import RunPaths, RunResult
from quicferry.spec import FaultPoint, RunSpec
from quicferry.strategies import RULES, Strategy
from session.request import needs, parts_of, to_spec
from session.session import PLAYER

AT_ONCE = 4
NO_FAULT = "none"
CANDIDATES = 40
#: Where memory follows the server, enough of it that it takes a second: else there is nothing to disturb.
FOLLOWING: dict[str, Any] = {"memory_mib": 24, "inter_edge_mbps": 200.0}


#: The paths to the clients. A longer one needs time for its first round trips, and after the move.
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rtt-200": {"rtt_ms": 200.0, "before_s": 1.0, "after_s": 1.0},
    "loss-5": {"loss_percent": 5.0, "after_s": 1.0},
    "rtt-2000": {"rtt_ms": 2000.0, "before_s": 1.0, "after_s": 1.0, "interval_ms": 100.0},
    "rtt-4000": {"rtt_ms": 4000.0, "before_s": 1.0, "after_s": 1.0, "interval_ms": 100.0},
}
#: what ``make faults`` takes unless it is told otherwise
USUAL_NETWORKS = ("plain", "rtt-200", "loss-5")


class Case(NamedTuple):
    """One run: faults as on the command line, joined by ``+``; without any (``none``) a plain move."""

    fault: str
    engine: str = "handoff"
    strategy: str = str(Strategy.PROACTIVE_EXPLICIT)
    network: str = "plain"

    def __str__(self) -> str:
        return "-".join(self[:3] if self.network == "plain" else self)

    @property
    def faults(self) -> tuple[str, ...]:
        """Each of them."""
        return tuple(self.fault.split("+")) if self.fault != NO_FAULT else ()

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
        return to_spec(values | NETWORKS[self.network])


def every_case(
    engines: Sequence[str],
    strategies: Sequence[str],
    words: Sequence[str],
    networks: Sequence[str] = ("plain",),
) -> list[Case]:
    """The whole matrix, or the rows that begin with one of the words. ``none`` is a move without a fault."""
    plain = [
        Case(NO_FAULT, engine, strategy, network)
        for network in networks
        for engine in engines
        for strategy in strategies
        if not words or NO_FAULT in words
    ]
    return [case for case in plain if _goes_with(case.engine, case.strategy)] + [
        Case(row.name, engine, strategy, network)
        for network in networks
        for engine in engines
        for strategy in strategies
        for row in ROWS
        if engine in (engines_of(row) or known_engines())
        and (row.point is not FaultPoint.NOTICE or RULES[Strategy(strategy)].notice)
        and (not words or row.name.startswith(tuple(words)))
        and _goes_with(engine, strategy, row.name)
    ]


@functools.cache
def _goes_with(engine: str, strategy: str, fault: str = NO_FAULT) -> bool:
    """Whether such a run can be asked for: a procedure may not go with a strategy, a fault with neither."""
    try:
        Case(fault, engine, strategy).spec()
    except InvalidInput:
        return False
    return True


def pairwise(cases: Sequence[Case], seed: int = 1) -> list[Case]:
    """Some of these cases, in which every pair of values meets that meets in any of them.

    Greedy: of a few dozen candidates the one with most new pairs, beginning with a pair that is missing.
    """
    draw = random.Random(seed)
    pairs_of = {
        case: frozenset(itertools.combinations(enumerate(case), 2)) for case in draw.sample(cases, len(cases))
    }
    having: dict[Any, list[Case]] = {}
    for case, pairs in pairs_of.items():
        for pair in pairs:
            having.setdefault(pair, []).append(case)
    missing = dict.fromkeys(sorted(having, key=lambda pair: (len(having[pair]), pair)))
    chosen: list[Case] = []
    while missing:
        first = next(iter(missing))
        candidates = (
            having[first] if len(having[first]) <= CANDIDATES else draw.sample(having[first], CANDIDATES)
        )
        best = max(candidates, key=lambda case: sum(pair in missing for pair in pairs_of[case]))
        chosen.append(best)
        for pair in pairs_of[best]:
            missing.pop(pair, None)
    return chosen


def perform(case: Case, runs: Path) -> RunResult:
    """Perform it in a private root and read its captures. May be called by several threads at a time.

    Raises ``FerryError`` for what could not even begin. The machine is not asked whether it can.
    """
    spec = case.spec()
    paths = launch(spec, parts_of(spec).topology, RunStore(runs), FreshStage(PLAYER))
    return analyse(paths.root).result


def complaints(case: Case, result: RunResult) -> list[str]:
    """What is not as the table says; nothing is as it should be."""
    found = [] if result.outcome == "succeeded" else [f"the run {result.outcome}: {result.error}"]
    rows = [row_of(parse(fault)) for fault in case.faults]
    if not all(result.served_by in row.places for row in rows) or (
        not rows and result.served_by != DESTINATION
    ):
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


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file of ``--save``: what was run, and what was wrong with it."""

    fault: str
    engine: str
    strategy: str
    network: str
    wrong: list[str]
    seconds: float

    @property
    def case(self) -> Case:
        """What was run."""
        return Case(self.fault, self.engine, self.strategy, self.network)


def read_kept(path: Path | None) -> dict[Case, Kept]:
    """What was run already, the last line of each case; a line that was cut off is left out."""
    kept: dict[Case, Kept] = {}
    if path is None or not path.exists():
        return kept
    for line in path.read_bytes().splitlines():
        try:
            each = msgspec.json.decode(line, type=Kept)
        except UNDECODABLE:
            continue
        kept[each.case] = each
    return kept


def shard_of(cases: Sequence[Case], words: str) -> list[Case]:
    """Every n-th case from the k-th on, for ``k/n``. Raises ``ValueError``."""
    number, of = (int(word) for word in words.split("/"))
    if not 1 <= number <= of:
        raise ValueError(f"{words}: there is no such part")
    return list(cases[number - 1 :: of])


def perform_all(
    cases: Sequence[Case], runs: Path, at_once: int, save: Path | None, until: float | None
) -> int:
    """Perform the cases that are still to be run, until that moment; returns how many are wrong."""
    kept = read_kept(save)

    def judged(case: Case) -> Kept | None:
        begun = time.monotonic()
        if until is not None and begun > until:
            return None
        try:
            wrong = complaints(case, perform(case, runs))
        except FerryError as error:
            wrong = [str(error)]
        return Kept(**case._asdict(), wrong=wrong, seconds=round(time.monotonic() - begun, 1))

    wrong = sum(bool(kept[case].wrong) for case in cases if case in kept)
    with ThreadPoolExecutor(at_once) as pool:
        for each in pool.map(judged, [case for case in cases if case not in kept]):
            if each is None:
                continue
            kept[each.case] = each
            wrong += bool(each.wrong)
            for words in each.wrong:
                print(f"{each.case}: {words}", flush=True)
            if save is not None:
                with save.open("ab") as file:
                    file.write(msgspec.json.encode(each) + b"\n")
    done = sum(case in kept for case in cases)
    print(f"{done} of {len(cases)} runs, {wrong} not as the table says", flush=True)
    return wrong + (len(cases) - done)


def main() -> int:
    """Run all of it, print what is wrong, and say whether anything is."""
    parser = argparse.ArgumentParser(description="Every fault with every engine and strategy.")
    parser.add_argument("--engine", nargs="+", choices=list(known_engines()), default=list(known_engines()))
    parser.add_argument(
        "--strategy", nargs="+", choices=[str(each) for each in Strategy], default=[str(s) for s in Strategy]
    )
    parser.add_argument("--network", nargs="+", choices=list(NETWORKS), default=list(USUAL_NETWORKS))
    parser.add_argument(
        "--fault", nargs="+", default=[], help="beginnings of names of faults; none: no fault"
    )
    parser.add_argument("--pairwise", action="store_true", help="so many that every pair of values meets")
    parser.add_argument("--shard", default="1/1", metavar="K/N", help="the K-th of N parts")
    parser.add_argument("--save", type=Path, default=None, help="keep a line per run here, and go on from it")
    parser.add_argument("--minutes", type=float, default=None, help="begin no run after so long")
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    parser.add_argument("--runs", type=Path, default=None, help="keep the runs here")
    arguments = parser.parse_args()
    usable = able(arguments.engine)
    cases = every_case(usable, arguments.strategy, arguments.fault, arguments.network)
    if arguments.pairwise:
        cases = pairwise(cases)
    try:
        cases = shard_of(cases, arguments.shard)
    except ValueError as error:
        parser.error(f"--shard takes K/N, such as 1/4: {error}")
    until = time.monotonic() + arguments.minutes * 60 if arguments.minutes is not None else None
    with tempfile.TemporaryDirectory() as scratch:
        wrong = perform_all(cases, arguments.runs or Path(scratch), arguments.at_once, arguments.save, until)
    return 1 if wrong or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
