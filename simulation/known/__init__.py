"""Faults that are known and not mended yet, each with a story in which it shows.

A test plays every story and demands that the fault is still there: when it is mended, the test fails and
says so. Then delete the entry here, and move its story to ``tests/simulation/mended/``, where it is
played for ever and must violate nothing.

Until then a campaign may find the *families* listed here, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).parent


@dataclass(frozen=True)
class KnownFault:
    """``name``: its story is the file ``<name>.json`` here. ``kind``: what the story violates.

    ``seed``: whose story that was, before it was minimised. ``family``: the beginning of all kinds that
    this fault is met as.
    """

    name: str
    world: str
    kind: str
    seed: int
    issue: str
    family: str

    @property
    def story(self) -> Path:
        """Where the story is written down."""
        return DIRECTORY / f"{self.name}.json"


def families(world: str) -> tuple[str, ...]:
    """What a campaign in that world may find."""
    return tuple(sorted({fault.family for fault in KNOWN if fault.world == world}))


KNOWN: tuple[KnownFault, ...] = ()
