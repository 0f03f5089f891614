"""The two tables of each world's faults: every kind that can be drawn does something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simulation.ownership import fault_kinds as ownership_kinds
from simulation.ownership.faults import ACTIONS as OWNERSHIP_ACTIONS
from simulation.protocol import fault_kinds as protocol_kinds
from simulation.protocol.faults import ACTIONS as PROTOCOL_ACTIONS

ROOT = Path(__file__).resolve().parents[2]


def test_every_kind_has_an_action_and_every_action_a_kind() -> None:
    assert set(PROTOCOL_ACTIONS) == set(protocol_kinds.KINDS)
    assert set(OWNERSHIP_ACTIONS) == set(ownership_kinds.KINDS)


@pytest.mark.parametrize("world", ("protocol", "ownership"))
def test_a_story_is_drawn_without_the_actions(world: str) -> None:
    code = (
        f"import sys; from simulation.{world}.story import draw; draw(1)\n"
        f"print([name for name in ('faults', 'world') if f'simulation.{world}.{{name}}' in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout == "[]\n"
