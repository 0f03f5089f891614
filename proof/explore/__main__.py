"""``make explore``: draw lines, perform them, and say what is wrong.

    python -m proof.explore [--count 100] [--seed 1] [--minutes 60] [--dry-run]

Ends when so many lines were performed, the time is over, or every pair was covered. Exit status 1 when
there is a confirmed fault that ``known.toml`` does not have.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

from proof.explore.command import accepted, line, without_defaults
from proof.explore.covering import Covering, Drawn
from proof.explore.findings import Finding, append, as_test, known_as, read_known, summary
from proof.explore.judge import Complaint, Observation, complaints, kind_of
from proof.explore.levels import factors
from proof.explore.load import too_much
from proof.explore.machine import can, unsupported
from proof.explore.minimise import ON_THE_WAY, minimise, repeatedly
from proof.explore.perform import perform
from quicferry.experiment.faults import ROWS
from quicferry.paths import RUNS

FAULT_FREE = 0.6  # of the lines
LEAN, LEAN_FACTORS = 0.5, 8  # of the lines so many have at most so many axes off their defaults
TWO_FAULTS = 0.1  # of the lines with a fault have another one, where both can happen
REFUSALS = 0.05  # of the lines are requests that must be refused
MINIMISED = 12  # kinds of faults; a broken build is not to be minimised for a day
MINIMISE_S = 300.0  # for one fault


class Explorer:
    """Draws lines for one machine and judges them; ``findings`` grows."""

    def __init__(self, seed: int, runs: Path, lean: float = LEAN, lean_factors: int = LEAN_FACTORS) -> None:
        self._random = Random(seed)
        self._runs = runs
        self._lean, self._lean_factors = lean, lean_factors
        self._refused = unsupported()
        self._known = read_known()
        self.covering = Covering(factors(), self._wanted, seed)
        self.findings: list[Finding] = []
        self._minimised: dict[str, str] = {}  # kind -> shortest line

    def _wanted(self, values: Mapping[str, Any]) -> bool:
        """Whether the line can be run here and says something: the link carries what it offers."""
        spec = accepted(values)
        return spec is not None and can(spec, self._refused) and too_much(spec) is None

    def draw(self) -> Drawn:
        """The next line."""
        within = {"faults": "faults=none"} if self._random.random() < FAULT_FREE else {}
        most = self._lean_factors if self._random.random() < self._lean else None
        drawn = self.covering.draw(within, most)
        drawn.values["seed"] = self._random.randrange(1, 10_000)
        if drawn.values.get("faults") and self._random.random() < TWO_FAULTS:
            second = self._random.choice(ROWS).name
            both = {**drawn.values, "faults": (*drawn.values["faults"], second)}
            if self._wanted(both):
                return drawn._replace(values=both)
        return drawn

    def draw_refusal(self) -> dict[str, Any]:
        """A request that makes no sense: levels of all axes without asking whether they go together."""
        while True:
            values: dict[str, Any] = {}
            for levels in factors().values():
                if self._random.random() < 0.2:
                    values |= self._random.choice(levels).draw(self._random)
            if accepted(values) is None:
                return values

    def perform(self, values: Mapping[str, Any]) -> Observation:
        """Perform a line; a run directory without a complaint is removed."""
        seen = perform(values, self._runs)
        if not complaints(seen) and seen.result is not None and seen.result.run_dir is not None:
            shutil.rmtree(seen.result.run_dir, ignore_errors=True)
        return seen

    def judge(self, values: Mapping[str, Any], deadline: float) -> list[Finding]:
        """Perform a line; what is new is performed again and minimised, if there is time."""
        seen = self.perform(values)
        own = without_defaults(values)
        found = []
        further: list[set[str]] = []  # what further runs of the line complained of: they serve all kinds
        for kind, complaint in {kind_of(each): each for each in complaints(seen)}.items():
            text = known_as(self._known, kind, line(own))
            finding = Finding(kind=kind, words=complaint.words, line=line(own), known=text)
            if seen.result is not None:
                finding.run_dir = seen.result.run_dir
            if text is None and time.monotonic() < deadline and kind not in self._minimised:
                self._confirm(own, complaint, finding, further)
            append(self._runs / "findings.jsonl", finding)
            found.append(finding)
        self.findings += found
        return found

    def _confirm(
        self, values: Mapping[str, Any], complaint: Complaint, finding: Finding, further: list[set[str]]
    ) -> None:
        kind = kind_of(complaint)
        tries = itertools.count()

        def again(line_values: Mapping[str, Any]) -> bool:
            number = next(tries)
            if number == len(further):
                further.append(set(map(kind_of, complaints(self.perform(line_values)))))
            return kind in further[number]

        def once(line_values: Mapping[str, Any]) -> bool:
            return any(kind_of(each) == kind for each in complaints(self.perform(line_values)))

        fails = repeatedly(once)
        print(f"    {kind}: {complaint.words}\n    once more", flush=True)
        finding.confirmed = repeatedly(again)(values)
        if finding.confirmed and len(self._minimised) < MINIMISED:
            until = time.monotonic() + MINIMISE_S
            refusal = accepted(values) is None

            def valid(rest: Mapping[str, Any]) -> bool:
                return accepted(rest) is None if refusal else self._wanted(rest)

            shortest = minimise(values, repeatedly(once, ON_THE_WAY), valid, lambda: time.monotonic() < until)
            shortest = shortest if fails(shortest) else dict(values)
            finding.shortest, finding.test = line(shortest), as_test(shortest, kind)
            self._minimised[kind] = finding.shortest


def main() -> int:
    """Explore, and say what was found."""
    parser = argparse.ArgumentParser(description="Draw command lines, perform them and judge them.")
    parser.add_argument("--count", type=int, default=100, help="lines")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=None, help="no new line after so long")
    parser.add_argument("--runs", type=Path, default=RUNS / "explore", help="runs with faults stay here")
    parser.add_argument("--lean", type=float, default=LEAN, help="part of the lines that are short, 0 to 1")
    parser.add_argument("--lean-factors", type=int, default=LEAN_FACTORS, help="axes of a short line")
    parser.add_argument("--dry-run", action="store_true", help="only print the lines")
    arguments = parser.parse_args()
    begun = time.monotonic()
    deadline = begun + 60 * arguments.minutes if arguments.minutes else float("inf")
    explorer = Explorer(arguments.seed, arguments.runs, arguments.lean, arguments.lean_factors)
    random = Random(arguments.seed + 1)
    covering, lines = explorer.covering, 0
    while lines < arguments.count and time.monotonic() < deadline:
        lines += 1
        refusal = random.random() < REFUSALS
        values = explorer.draw_refusal() if refusal else explorer.draw().values
        own = without_defaults(values)
        print(f"[{lines}] {covering.covered}/{len(covering.possible)} pairs  {line(own)}", flush=True)
        if arguments.dry_run:
            continue
        for finding in explorer.judge(own, deadline):
            word = "known" if finding.known else "NEW" if finding.confirmed else "seen once"
            print(f"    {word}: {finding.kind}: {finding.words}", flush=True)
            if finding.shortest:
                print(f"    shortest: {finding.shortest}", flush=True)
                print(textwrap.indent(finding.test, "    "), flush=True)
    print(
        f"{lines} lines, {covering.covered} of {len(covering.possible)} pairs, "
        f"{len(explorer.findings)} findings, {time.monotonic() - begun:.0f} s"
    )
    for words in summary(explorer.findings):
        print(words)
    new = [each for each in explorer.findings if each.confirmed and each.known is None]
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
