"""Two kinds of one measurement that take turns: extended and stock, each in a process of its own."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from quicferry.process import run

ROUNDS = 9
ROOT = Path(__file__).resolve().parents[1]


def ratio_by_turns(module: str, rounds: int) -> float:
    """The median of ``ratios_by_turns``."""
    return statistics.median(ratios_by_turns(module, rounds))


def ratios_by_turns(module: str, rounds: int) -> list[float]:
    """Of each round (throughput of ours) / (throughput of stock), pair by pair.

    ``module``, with ``stock`` or ``extended`` as its argument, prints the seconds of one measurement. Each
    has a process of its own: in one process the interpreter's inline caches, which know the class they were
    made for, would serve neither of the two kinds well.
    """
    ratios: list[float] = []
    for number in range(rounds):
        times: dict[str, float] = {}
        for kind in ("stock", "extended") if number % 2 else ("extended", "stock"):
            done = run([sys.executable, "-m", module, kind], cwd=ROOT, timeout_s=300)
            times[kind] = float(done.stdout)
        ratios.append(times["stock"] / times["extended"])
    return ratios


def show(what: str, ratio: Callable[[], float], fastest_s: Callable[[bool], float]) -> None:
    """Print the ratio; with ``stock`` or ``extended`` as argument the seconds of one measurement."""
    if sys.argv[1:]:
        print(fastest_s(sys.argv[1] == "extended"))
    else:
        print(f"{what}: {ratio():.3f}")
