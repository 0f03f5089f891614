"""Plays many stories on all cores, and counts what was violated, by kind."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from simulation.known import families
from simulation.worlds import WORLDS


@dataclass
class Failure:
    """A kind of failure and where it was seen."""

    kind: str
    seeds: list[int] = field(default_factory=list)
    text: str = ""  # of the first


@dataclass
class Campaign:
    """What many plays came to."""

    world: str
    played: int = 0
    failed: int = 0
    seconds: float = 0.0
    failures: dict[str, Failure] = field(default_factory=dict)


Result = tuple[int, list[tuple[str, str]]]


def campaign(world: str, seeds: Sequence[int], jobs: int = 1) -> Campaign:
    """Play the stories of these seeds."""
    result = Campaign(world)
    began = time.monotonic()
    for seed, violations in _results(world, seeds, jobs):
        result.played += 1
        result.failed += bool(violations)
        for kind, text in violations:
            failure = result.failures.setdefault(kind, Failure(kind, text=text))
            failure.seeds.append(seed)
            if seed == min(failure.seeds):
                failure.text = text
    result.seconds = time.monotonic() - began
    return result


def summary_lines(result: Campaign) -> Iterator[str]:
    """One line for each kind: first what is new, then what is known, the most frequent first."""
    known = families(result.world)
    rate = result.played / max(result.seconds, 1e-9)
    yield (
        f"{result.world}: {result.failed} of {result.played} stories failed in {len(result.failures)} kinds "
        f"({result.seconds:.1f} s, {rate:.0f} stories/s)"
    )
    for failure in sorted(
        result.failures.values(), key=lambda each: (each.kind.startswith(known), -len(each.seeds))
    ):
        mark = "known" if failure.kind.startswith(known) else "NEW  "
        seed = min(failure.seeds)
        yield f"{mark} {len(failure.seeds):5}  {failure.kind}  --seed {seed}  {failure.text}"


def _results(world: str, seeds: Sequence[int], jobs: int) -> Iterator[Result]:
    work = [(world, seed) for seed in seeds]
    if jobs <= 1:
        quiet()
        yield from map(_play, work)
        return
    # the hash seed of strings decides the order of sets: children share ours
    with multiprocessing.get_context("fork").Pool(jobs, quiet) as pool:
        yield from pool.imap_unordered(_play, work, chunksize=8)


def quiet() -> None:
    """What connections log of their failures is no news here: the history has it."""
    logging.getLogger("quic").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.simplefilter("ignore")
    os.environ["GRPC_VERBOSITY"] = "NONE"


def _play(work: tuple[str, int]) -> Result:
    world = WORLDS[work[0]]
    history = world.play(world.draw(work[1]))
    return work[1], [(violation.kind, violation.text) for violation in history.violations]
