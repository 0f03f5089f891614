"""Plays stories, from the command line.

    python -m simulation --world protocol --seeds 1000           many, one line for each kind of failure
    python -m simulation --world protocol --seed 17              one, with all that happened
    python -m simulation --world protocol --seed 17 --minimise   the shortest story with the same failure
    python -m simulation --world protocol --story FILE           a story that was written down (JSON)
    python -m simulation --models                                the models, exhaustively

With --seeds, exit status 0: nothing was violated but what is known. With one story, 0: nothing was. 1:
something was; 2: wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from simulation.campaign import campaign, summary_lines
from simulation.known import families
from simulation.minimise import minimised
from simulation.models import findings
from simulation.worlds import WORLDS


def main(argv: list[str] | None = None) -> int:
    """Parse, play, print."""
    parser = argparse.ArgumentParser(prog="python -m simulation", description=__doc__.split("\n\n")[0])
    parser.add_argument("--world", choices=sorted(WORLDS), default="protocol")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seeds", type=int, metavar="N", help="play N stories on all cores")
    what.add_argument("--seed", type=int, help="play this one and tell it")
    what.add_argument("--models", action="store_true", help="explore the models in all of their states")
    what.add_argument("--story", type=Path, help="play a story from a JSON file and tell it")
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed of --seeds")
    parser.add_argument("--minimise", action="store_true", help="shorten the story while it fails the same")
    parser.add_argument("--kind", help="with --minimise: the kind of failure that must stay")
    parser.add_argument("--save", type=Path, help="write the story down there (JSON)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    asked = parser.parse_args(argv)
    if asked.models:
        for line in findings():
            print(line)
        return 0
    if asked.seeds is not None:
        return _many(asked)
    return _one(asked)


def _many(asked: argparse.Namespace) -> int:
    result = campaign(asked.world, range(asked.first, asked.first + asked.seeds), asked.jobs)
    for line in summary_lines(result):
        print(line)
    known = families(asked.world)
    return 1 if any(not kind.startswith(known) for kind in result.failures) else 0


def _one(asked: argparse.Namespace) -> int:
    world = WORLDS[asked.world]
    story = world.draw(asked.seed) if asked.story is None else world.read(asked.story.read_bytes())
    if asked.minimise:
        story = minimised(world, story, asked.kind)
    if asked.save is not None:
        asked.save.write_bytes(world.write(story))
    history = world.play(story)
    for entry in history.entries:
        print(entry)
    print()
    print(world.tell(story))
    print(f"digest {history.digest}")
    for violation in history.violations:
        print(f"VIOLATED {violation.kind}: {violation.text}")
    return 1 if history.violations else 0


if __name__ == "__main__":
    sys.exit(main())
