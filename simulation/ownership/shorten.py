"""Stories of the world of ownership with a little less in them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from quicferry.strategies import Strategy
from simulation.ownership.story import Story

_replace = msgspec.structs.replace


def shorter(story: Story) -> Iterator[Story]:
    """Each differs in one thing, which is then missing or as plain as can be; the boldest first."""
    for at in range(len(story.faults)):
        yield _replace(story, faults=story.faults[:at] + story.faults[at + 1 :])
    if len(story.moves) > 1:
        yield _replace(story, moves=story.moves[:-1])
    for name, plain in (("edges", 2), ("edge_rtt_s", 0.001), ("core_rtt_s", 0.01), ("interval_s", 0.1)):
        if getattr(story, name) != plain and not (name == "edges" and any(m.to > 2 for m in story.moves)):
            yield _replace(story, **{name: plain})
    if story.clocks_ahead_s:
        yield _replace(story, clocks_ahead_s=[])
    if story.forwarding:
        yield _replace(story, forwarding=False)
    for at, move in enumerate(story.moves):
        for name, wanted in (("strategy", Strategy.SYMMETRIC), ("server_first", True), ("after_s", 0.3)):
            if getattr(move, name) != wanted:
                plain_move = _replace(move, **{name: wanted})
                yield _replace(story, moves=[*story.moves[:at], plain_move, *story.moves[at + 1 :]])
    for at, fault in enumerate(story.faults):
        if fault.delay_s:
            yield _replace(
                story, faults=[*story.faults[:at], _replace(fault, delay_s=0.0), *story.faults[at + 1 :]]
            )
        if fault.seconds > 0.1:
            less = _replace(fault, seconds=round(fault.seconds / 2, 3))
            yield _replace(story, faults=[*story.faults[:at], less, *story.faults[at + 1 :]])
