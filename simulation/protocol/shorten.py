"""Stories of the protocol's world with a little less in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from quicferry.strategies import EXTENSION_STRATEGIES, RULES
from simulation.protocol.story import Ending, Fault, Move, ServerAddress, Story, Traffic

_replace = msgspec.structs.replace


def shorter(story: Story) -> Iterator[Story]:
    """Each differs in one thing, which is then missing or as plain as can be; the boldest first."""
    for at in range(len(story.faults)):
        yield _replace(story, faults=story.faults[:at] + story.faults[at + 1 :])
    for at in range(len(story.moves)):
        yield _without_move(story, at)
    yield from _plainer(
        story,
        traffic=Traffic.IDLE,
        pool=[],
        process_moves=False,
        max_datagram_bytes=1200,
        server_address=ServerAddress.KNOWN,
        rtt_s=0.018,
        before_s=0.3,
        size_bytes=100,
        interval_s=0.05,
    )
    if all(RULES[move.strategy].extended for move in story.moves):
        yield from _plainer(story, strategies=list(EXTENSION_STRATEGIES))
    for at, move in enumerate(story.moves):
        for plain in _plainer(
            move,
            ending=Ending.COMMIT,
            company=False,
            forwarding=True,
            server_first=False,
            ready_wait_s=0.0,
            announced_s=None,
            notice_s=1.0,
            downtime_s=0.1,
            after_s=0.3,
        ):
            yield _replace(story, moves=[*story.moves[:at], plain, *story.moves[at + 1 :]])
    for at, fault in enumerate(story.faults):
        for plain in _plainer(fault, delay_s=0.0, direction="both", edge=None):
            yield _replace(story, faults=[*story.faults[:at], plain, *story.faults[at + 1 :]])
        if fault.seconds > 0.05 and fault.seconds < 1e5:
            less = _replace(fault, seconds=round(fault.seconds / 2, 3))
            yield _replace(story, faults=[*story.faults[:at], less, *story.faults[at + 1 :]])


def _plainer(value: Any, **plain: Any) -> Iterator[Any]:
    for name, content in plain.items():
        if getattr(value, name) != content:
            yield _replace(value, **{name: content})


def _without_move(story: Story, gone: int) -> Story:
    """Faults that were anchored to that move go with it; those of later moves are renumbered."""
    moves: list[Move] = story.moves[:gone] + story.moves[gone + 1 :]
    faults: list[Fault] = []
    for fault in story.faults:
        window, _, number = fault.anchor.partition(" ")
        if not number or int(number) - 1 < gone:
            faults.append(fault)
        elif int(number) - 1 > gone:
            faults.append(_replace(fault, anchor=f"{window} {int(number) - 1}"))
    return _replace(story, moves=moves, faults=faults)
