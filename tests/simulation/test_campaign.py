"""Five hundred stories: nothing is found but what is known."""

from __future__ import annotations

import pytest

from simulation.campaign import campaign, summary_lines
from simulation.known import families

#: world -> how many; an ownership story costs twice as much CPU as one of the protocol
STORIES = {"protocol": 350, "ownership": 150}


@pytest.mark.parametrize("world", STORIES)
def test_a_campaign_finds_only_what_is_known(world: str) -> None:
    result = campaign(world, range(STORIES[world]), jobs=1)
    new = [failure for failure in result.failures.values() if not failure.kind.startswith(families(world))]
    assert not new, "\n".join([*summary_lines(result), f"new: {[failure.kind for failure in new]}"])
    assert result.played == STORIES[world]
