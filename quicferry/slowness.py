"""How many times slower than usual this machine's processor is, and how much longer it is waited for.

A run measures it once (``measure``) and hands it to its processes by their environment; each multiplies what
it waits for by it (``longer``). Only bounds on what a processor has to do are longer: leases, idle timeouts
and what clients are told are the protocol's, the same everywhere (docs/adr/0018).
"""

from __future__ import annotations

import os
import time

#: Name of the environment variable by which a run's processes know it.
VARIABLE = "QUICFERRY_SLOWNESS"

#: Processor time of the trial, in seconds, on the machine where all bounds were chosen (11.5 ms there).
USUAL_S = 0.012

#: Of less than this nothing is made: all bounds have that much to spare, and equal runs stay equal.
LEAST = 3.0
MOST = 100.0

#: That of a processor which QEMU emulates on an idle host: probes' limits are chosen for it.
EMULATED = 20.0
_TRIALS = 3


def measure() -> float:
    """How many times slower than usual this processor does some Python, 1 (usual) to 100.

    Processor time, the best of three: that others work on the machine as well does not count.
    """
    return rated(min(_trial_s() for _ in range(_TRIALS)))


def rated(trial_s: float) -> float:
    """The slowness of a machine on which the trial takes so long: 1 below ``LEAST``, 100 at most."""
    slower = round(trial_s / USUAL_S, 1)
    return min(MOST, slower) if slower >= LEAST else 1.0


def _trial_s() -> float:
    begun_s = time.thread_time()
    table: dict[int, int] = {}
    for number in range(100_000):
        table[number % 1000] = table.get(number % 1000, 0) + number
    return time.thread_time() - begun_s


def announce(slower: float) -> None:
    """Let this process, and those that it starts from now on, wait so many times longer."""
    if slower > 1:
        os.environ[VARIABLE] = f"{slower:g}"
    else:
        os.environ.pop(VARIABLE, None)


def slowness() -> float:
    """What the run has measured; 1 in a process of no run, and where the word is not one of ours."""
    try:
        return min(MOST, max(1.0, float(os.environ.get(VARIABLE, "1"))))
    except ValueError:
        return 1.0


def longer(seconds: float) -> float:
    """How long to wait here for what is waited for ``seconds`` on a usual machine."""
    return seconds * slowness()


def longer_than_emulated(seconds: float) -> float:
    """How long to wait here for what is waited for ``seconds`` on an emulated processor of an idle host.

    Measures: probes are asked before a run has. Only who has waited that long needs to know.
    """
    return seconds * max(1.0, measure() / EMULATED)
