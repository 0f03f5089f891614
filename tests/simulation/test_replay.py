"""One seed, one history: in this process, in another one, with another order of sets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest

from quicferry.strategies import Strategy
from simulation.campaign import quiet
from simulation.minimise import minimised
from simulation.protocol.applications import Service
from simulation.protocol.story import Ending, Fault, Move, ServerAddress, Story, Traffic, draw
from simulation.worlds import WORLDS

SEEDS = {"protocol": (3, 12, 52), "ownership": (2, 16)}
_SCRIPT = """
import json
from simulation.campaign import quiet
from simulation.worlds import WORLDS
quiet()
seeds = {seeds}
print(json.dumps({{w: [WORLDS[w].play(WORLDS[w].draw(s)).digest for s in seeds[w]] for w in seeds}}))
"""


def digests() -> dict[str, list[str]]:
    return {
        name: [WORLDS[name].play(WORLDS[name].draw(seed)).digest for seed in seeds]
        for name, seeds in SEEDS.items()
    }


def test_a_seed_replays_exactly() -> None:
    quiet()
    first = digests()
    assert digests() == first
    assert len({digest for each in first.values() for digest in each}) == 5
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT.format(seeds=SEEDS)],
        env={**os.environ, "PYTHONHASHSEED": "4711"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert json.loads(done.stdout) == first


@pytest.mark.parametrize("world", sorted(WORLDS))
def test_a_story_survives_being_written_down(world: str) -> None:
    for seed in range(50):
        story = WORLDS[world].draw(seed)
        assert WORLDS[world].read(WORLDS[world].write(story)) == story
        assert WORLDS[world].tell(story)


def test_some_servers_do_not_know_their_address_and_the_rest_of_a_story_stays_as_it_was() -> None:
    stories = [draw(seed) for seed in range(2000)]
    counts = Counter(story.server_address for story in stories)
    assert set(counts) == set(ServerAddress)
    assert 0.12 < 1 - counts[ServerAddress.KNOWN] / len(stories) < 0.18
    with mock.patch("simulation.protocol.story.ADDRESSLESS", 0.0):
        assert [draw(seed) for seed in range(2000)] == [
            msgspec.structs.replace(story, server_address=ServerAddress.KNOWN) for story in stories
        ]


def test_a_failing_story_becomes_shorter_and_fails_the_same() -> None:
    long = Story(
        seed=1,
        moves=[
            Move(to=2, strategy=Strategy.SYMMETRIC),
            Move(to=3, strategy=Strategy.SYMMETRIC, ending=Ending.FENCED, served_s=0.05, ready_wait_s=0.06),
        ],
        faults=[Fault(kind="jitter", seconds=1.0, amount=0.002), Fault(kind="rebind", delay_s=9.0)],
        process_moves=True,
        rtt_s=0.06,
    )
    world = WORLDS["protocol"]
    take = Service.take

    def wrong(self: Service, *args: Any) -> bytes | None:
        answer = take(self, *args)
        return None if answer is None else answer[:-1] + b"!"

    with mock.patch.object(Service, "take", wrong):
        short = minimised(world, long, "bytes:answer")
        with pytest.raises(ValueError, match="not no-such-kind"):
            minimised(world, short, "no-such-kind")
    assert not short.faults and not short.moves
    assert (short.traffic, short.rtt_s, short.process_moves) == (Traffic.IDLE, 0.018, False)
    assert len(msgspec.json.encode(short)) < len(msgspec.json.encode(long))
