"""Every fault that is known is still found by its story; one that is not is mended, and the list is wrong."""

from __future__ import annotations

from pathlib import Path

from simulation.campaign import quiet
from simulation.known import DIRECTORY, KNOWN, KnownFault
from simulation.worlds import WORLDS

MENDED = Path(__file__).parent / "mended"


def test_every_known_fault_has_its_story_and_is_still_found() -> None:
    assert {path.stem for path in DIRECTORY.glob("*.json")} == {fault.name for fault in KNOWN}
    quiet()
    for fault in KNOWN:
        is_still_found(fault)


def is_still_found(fault: KnownFault) -> None:
    world = WORLDS[fault.world]
    kinds = world.play(world.read(fault.story.read_bytes())).kinds()
    assert fault.kind in kinds, (
        f"{fault.name} is not found any more: delete its entry in simulation/known and move "
        f"{fault.story.name} to tests/simulation/mended/{fault.world}/, where it becomes a regression test"
    )
    assert fault.kind.startswith(fault.family)


def test_mended_faults_stay_mended() -> None:
    quiet()
    paths = sorted(MENDED.glob("*/*.json"))
    assert paths, f"no story in {MENDED}"
    for path in paths:
        world = WORLDS[path.parent.name]
        violations = world.play(world.read(path.read_bytes())).violations
        assert not violations, f"{path.stem}: {violations}"
