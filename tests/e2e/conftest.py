"""End-to-end tests wait longer on a slow processor, as runs do (docs/adr/0018)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from quicferry.slowness import announce, measure


@pytest.fixture(autouse=True, scope="session")
def _slowness_is_known() -> Iterator[None]:
    """Lets the tests' own processes, and those that they start, multiply what they wait for; usually by 1."""
    announce(measure())
    yield
    announce(1.0)
