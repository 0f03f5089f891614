"""The instrument on the real command: a plain line has nothing wrong with it, a senseless one is refused."""

from __future__ import annotations

import pytest

from proof.explore.judge import complaints
from proof.explore.perform import perform

#: say something of the machine as well
TIMED = ("overhead", "log")


@pytest.mark.needs("mininet", "tshark")
def test_a_plain_line_is_right(tmp_path) -> None:
    seen = perform({"strategy": "symmetric", "before_s": 0.3, "after_s": 0.3}, tmp_path)
    assert [each for each in complaints(seen) if each.kind not in TIMED] == []
    assert seen.status == 0
    assert seen.result is not None
    assert seen.result.served_by == "destination"


def test_a_line_that_makes_no_sense_is_refused(tmp_path) -> None:
    seen = perform({"strategy": "symmetric", "dns_ttl_s": 5}, tmp_path)
    assert complaints(seen) == []
    assert seen.status == 2
    assert not any(tmp_path.iterdir())
