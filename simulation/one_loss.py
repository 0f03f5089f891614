"""Any one datagram is lost, exhaustively: what a drawn story loses by chance, these lose one by one.

    python -m simulation.one_loss                       every datagram of every life
    python -m simulation.one_loss --every 20 --seed 3   each twentieth, from an offset that the seed draws
    python -m simulation.one_loss --save DIRECTORY      the first story of each kind of failure, as JSON

A life is a strategy, what is under way, who speaks first at the destination, and one, two or three moves:
out, back to where the server came from, and to a third place. It is played once without loss, to know how
many datagrams it has from its beginning on, and then once for each of them, which is lost. Process and
hand-off take turns. A story that fails is played and minimised like any other (``python -m simulation
--story``).

Exit status 0: nothing was violated; 1: something was; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from quicferry.strategies import RULES, Strategy, speaks_first
from simulation.campaign import quiet
from simulation.protocol.fault_kinds import FOREVER
from simulation.protocol.play import play
from simulation.protocol.story import Fault, Move, Story, Traffic
from simulation.worlds import WORLDS

ROUTE = (2, 1, 3)
APART_S = 1.1  # a client takes no two announcements within a second
TRANSFER_BYTES = 60_000
MESSAGE_BYTES = 300


@dataclass
class Found:
    """What a run came to. ``failures``: the first story of each kind of failure, and how many there were."""

    lives: int = 0
    played: int = 0
    failed: int = 0
    failures: dict[str, tuple[Story, int]] = field(default_factory=dict)


def lives() -> Iterator[Story]:
    """Every strategy with all kinds of traffic, whoever speaks first, with one to three moves."""
    number = 0
    for strategy in RULES:
        for traffic in Traffic:
            for first in sorted({speaks_first(strategy, asked) for asked in (False, True)}):
                for moves in range(1, len(ROUTE) + 1):
                    number += 1
                    yield life(
                        Strategy(strategy), traffic, server_first=first, moves=moves, process=number % 2 == 0
                    )


def life(strategy: Strategy, traffic: Traffic, *, server_first: bool, moves: int, process: bool) -> Story:
    """One of them, in which nothing is lost."""
    is_transfer = traffic in (Traffic.DOWNLOAD, Traffic.UPLOAD)
    size_bytes = TRANSFER_BYTES if is_transfer else 1 if traffic is Traffic.DATAGRAMS else MESSAGE_BYTES
    return Story(
        seed=0,
        moves=[
            Move(
                to=to,
                strategy=strategy,
                server_first=server_first,
                after_s=APART_S if number else 0.0,
                downtime_s=0.05,
            )
            for number, to in enumerate(ROUTE[:moves])
        ],
        traffic=traffic,
        size_bytes=size_bytes,
        interval_s=0.05,
        before_s=0.02,
        process_moves=process,
        strategies=[strategy],
        pool=list(ROUTE) if RULES[strategy].pool else [],
    )


def without(story: Story, number: int) -> Story:
    """The same life, in which the datagram of that number is lost."""
    loss = Fault(kind="lose-one", seconds=FOREVER, amount=number)
    return msgspec.structs.replace(story, faults=[loss])


def datagrams(story: Story) -> int:
    """How many there are from the beginning of a life on."""
    history = play(story)
    begun_s = next(entry.t_s for entry in history.entries if entry.what == "start")
    return sum(t_s >= begun_s for t_s in history.packet_times_s)


def stories(life: Story, every: int, seed: int) -> list[Story]:
    """Those of one life: each ``every``-th of its datagrams is lost."""
    named = WORLDS["protocol"].tell(life)
    offset = random.Random(f"{seed} {named}").randrange(every)
    return [without(life, number) for number in range(offset, datagrams(life), every)]


def search(every: int, seed: int, jobs: int) -> Found:
    """Play them."""
    found = Found()
    work = [(life, every, seed) for life in lives()]
    with multiprocessing.get_context("fork").Pool(jobs, quiet) as pool:
        for played, failed in pool.imap_unordered(_search_one, work):
            found.lives += 1
            found.played += played
            found.failed += len(failed)
            for story, kind in failed:
                first, count = found.failures.get(kind, (story, 0))
                found.failures[kind] = (first, count + 1)
    return found


def _search_one(work: tuple[Story, int, int]) -> tuple[int, list[tuple[Story, str]]]:
    every = [work[0], *stories(*work)]
    return len(every), [(story, kinds[0]) for story in every if (kinds := play(story).kinds())]


def main(argv: list[str] | None = None) -> int:
    """Search, and say what was found."""
    parser = argparse.ArgumentParser(
        prog="python -m simulation.one_loss", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--every", type=int, default=1, metavar="N", help="lose each N-th datagram only")
    parser.add_argument("--seed", type=int, default=0, help="with --every: draws which ones")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--save", type=Path, help="write the first story of each kind of failure into it")
    asked = parser.parse_args(argv)
    if asked.every < 1 or asked.jobs < 1:
        parser.error("--every and --jobs must be at least 1")
    begun = time.monotonic()
    found = search(asked.every, asked.seed, asked.jobs)
    print(
        f"one loss: {found.failed} of {found.played} stories of {found.lives} lives failed in "
        f"{len(found.failures)} kinds ({time.monotonic() - begun:.1f} s)"
    )
    for kind, (story, count) in sorted(found.failures.items(), key=lambda each: -each[1][1]):
        print(f"{count:5}  {kind}\n{WORLDS['protocol'].tell(story)}")
        if asked.save is not None:
            asked.save.mkdir(parents=True, exist_ok=True)
            path = asked.save / f"{kind.replace(':', '-')}.json"
            path.write_bytes(WORLDS["protocol"].write(story))
            print(f"  --story {path}")
    return 1 if found.failed else 0


if __name__ == "__main__":
    sys.exit(main())
