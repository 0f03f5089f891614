"""Makes a story shorter for as long as it still fails in the same way."""

from __future__ import annotations

from typing import Any

from simulation.campaign import quiet
from simulation.worlds import World

PLAYS_MOST = 400


def minimised(world: World, story: Any, kind: str | None = None) -> Any:
    """The shortest story found that violates ``kind`` (None: the first that ``story`` violates).

    Greedy: each shorter story that fails the same replaces the one before, until none does. Raises
    ``ValueError`` when the story does not fail so.
    """
    quiet()
    found = world.play(story).kinds()
    if kind is None and found:
        kind = found[0]
    if kind not in found:
        raise ValueError(f"the story violates {found or 'nothing'}, not {kind}")
    plays = 0
    progress = True
    while progress:
        progress = False
        for candidate in world.shorter(story):
            plays += 1
            if plays > PLAYS_MOST:
                return story
            if kind in world.play(candidate).kinds():
                story = candidate
                progress = True
                break
    return story
