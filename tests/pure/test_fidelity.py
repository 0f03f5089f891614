"""What ``make fidelity`` makes of the frames that came."""

from __future__ import annotations

import random

import pytest

from bench.fidelity import run_lengths


@pytest.mark.parametrize(
    ("came", "lengths"),
    [
        ([0, 1, 2, 3, 4], []),
        ([0, 1, 4], [2]),
        ([1, 3], [1, 1, 1]),
        ([], [5]),
        ([4, 0, 4, 0], [3]),  # late and twice
    ],
)
def test_runs_of_frames_that_did_not_come(came: list[int], lengths: list[int]) -> None:
    assert run_lengths(came, 5) == lengths


def test_the_runs_together_are_what_was_lost() -> None:
    rng = random.Random(1)
    came = [number for number in range(1000) if rng.random() > 0.3]
    assert sum(run_lengths(came, 1000)) == 1000 - len(came)
