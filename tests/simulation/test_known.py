"""Every fault that is known is still found by its story; when one is not, it is mended, and this list is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulation.campaign import quiet
from simulation.known import DIRECTORY, KNOWN, KnownFault
from simulation.worlds import WORLDS

MENDED = Path(__file__).parent / "mended"


@pytest.mark.parametrize("fault", KNOWN, ids=lambda fault: fault.name)
def test_a_known_fault_is_still_found(fault: KnownFault) -> None:
    quiet()
    world = WORLDS[fault.world]
    kinds = world.play(world.read(fault.story.read_bytes())).kinds()
    assert fault.kind in kinds, (
        f"{fault.name} is not found any more: delete its entry in simulation/known and move "
        f"{fault.story.name} to tests/simulation/mended/{fault.world}/, where it becomes a regression test"
    )
    assert fault.kind.startswith(fault.family)


def test_every_story_has_its_entry() -> None:
    assert {path.stem for path in DIRECTORY.glob("*.json")} == {fault.name for fault in KNOWN}


@pytest.mark.parametrize("path", sorted(MENDED.glob("*/*.json")), ids=lambda path: path.stem)
def test_a_mended_fault_stays_mended(path: Path) -> None:
    quiet()
    world = WORLDS[path.parent.name]
    violations = world.play(world.read(path.read_bytes())).violations
    assert not violations, violations
