"""Runs that nobody picked: every name of every axis with every other one, as a seed draws them.

The seed is fixed, so that a change fails or passes by itself; a night draws another one:

    pytest tests/e2e/proof/test_matrix.py --matrix-seed 20260101 --matrix-cells 40
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from proof.explore.command import line
from proof.explore.findings import known_as, read_known
from proof.explore.judge import complaints, kind_of
from proof.explore.machine import unsupported
from proof.explore.matrix import cells
from proof.explore.perform import perform

#: say something of the machine as well
TIMED = ("overhead", "log")


@pytest.fixture(scope="session")
def drawn(pytestconfig: pytest.Config) -> list[dict[str, Any]]:
    """The cells of this session."""
    count = int(pytestconfig.getoption("--matrix-cells"))
    seed = int(pytestconfig.getoption("--matrix-seed"))
    return list(itertools.islice(cells(seed, unsupported()), count))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" in metafunc.fixturenames:
        metafunc.parametrize("cell", range(int(metafunc.config.getoption("--matrix-cells"))))


@pytest.mark.needs("mininet", "tshark")
def test_a_drawn_run_is_right(cell: int, drawn: list[dict[str, Any]], tmp_path: Path) -> None:
    values = drawn[cell]
    known = read_known()
    seen = perform(values, tmp_path)
    wrong = [
        f"{kind_of(each)}: {each.words}"
        for each in complaints(seen)
        if each.kind not in TIMED and known_as(known, kind_of(each), line(values)) is None
    ]
    assert not wrong, f"{line(values)}\n" + "\n".join(wrong)
    assert seen.status == 0, f"{line(values)}\n{seen.stderr}"
