"""``make nightly``: everything that draws, with one fresh seed.

    python -m proof.nightly [--seed N] [--seeds 10000] [--minutes 60] [--seconds 60] [--cells 40] [STEP …]

Prints the seed first: with it, simulation, explorer and matrix draw the same again. A step that finds
something new does not keep the others from being done. Exit status 1 when any step found something.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import NamedTuple

from quicferry.paths import CHECKOUT
from quicferry.process import Popen


class Step(NamedTuple):
    """``programs``: the words after the interpreter, with the options of ``main`` in braces."""

    title: str
    programs: tuple[str, ...]


_STORIES = "-W ignore -m simulation --world {world} --seeds {{seeds}} --from {{seed}}"
STEPS: dict[str, Step] = {
    "simulate": Step(
        "drawn stories of each world",
        tuple(_STORIES.format(world=world) for world in ("protocol", "ownership")),
    ),
    "models": Step("the models in all of their states", ("-m simulation --models",)),
    "explore": Step(
        "drawn command lines", ("-m proof.explore --count 100000 --seed {seed} --minutes {minutes}",)
    ),
    "fuzz": Step("drawn bytes", ("-m proof.fuzz --seconds {seconds}",)),
    "matrix": Step(
        "end-to-end runs of every name with every other one",
        ("-m pytest -q tests/e2e/proof/test_matrix.py --matrix-seed {seed} --matrix-cells {cells}",),
    ),
}


def words_of(step: str, options: Mapping[str, object]) -> list[list[str]]:
    """What is to be performed for a step, one list of words for each program."""
    return [program.format(**options).split() for program in STEPS[step].programs]


def main(argv: list[str] | None = None) -> int:
    """Perform the steps and say how each ended."""
    parser = argparse.ArgumentParser(prog="python -m proof.nightly", description="A night's proof.")
    parser.add_argument("--seed", type=int, default=int(time.strftime("%Y%m%d%H%M")))
    parser.add_argument("--seeds", type=int, default=10_000, help="stories of each world")
    parser.add_argument("--minutes", type=float, default=60, help="of drawn command lines")
    parser.add_argument("--seconds", type=int, default=60, help="of drawn bytes for each decoder")
    parser.add_argument("--cells", type=int, default=40, help="end-to-end runs of the matrix")
    parser.add_argument("step", nargs="*", metavar="STEP", help=f"of {', '.join(STEPS)}; none: all")
    asked = parser.parse_args(argv)
    unknown = set(asked.step) - set(STEPS)
    if unknown:
        parser.error(f"no such step: {', '.join(sorted(unknown))} (there are {', '.join(STEPS)})")
    print(
        f"nightly: seed {asked.seed}; `make nightly NIGHT_SEED={asked.seed}` draws the same again", flush=True
    )
    ended: dict[str, bool] = {}
    for name in asked.step or STEPS:
        print(f"\n--- {name}: {STEPS[name].title}", flush=True)
        statuses = [_perform(words) for words in words_of(name, vars(asked))]
        ended[name] = not any(statuses)
    print()
    for name, good in ended.items():
        print(f"nightly: {name:10} {'nothing new' if good else 'FOUND SOMETHING, see above'}")
    return 0 if all(ended.values()) else 1


def _perform(words: list[str]) -> int:
    """The exit status; what it prints is ours."""
    begun = time.monotonic()
    status = Popen([sys.executable, *words], cwd=CHECKOUT).wait()
    print(f"({time.monotonic() - begun:.0f} s, exit status {status})", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
