"""From a drawn line to a finding, with a command in the place of the real one that fails as the test says."""

from __future__ import annotations

import msgspec
import pytest

from proof.explore import __main__ as explore
from proof.explore.command import accepted
from proof.explore.findings import Finding, KnownFault
from proof.explore.judge import Observation
from tests.explored import GOOD

LATER = float("inf")


class Command:
    """Loses requests in every line that ``loses`` says; notes what it was asked."""

    def __init__(self, loses) -> None:
        self.loses = loses
        self.asked: list[dict] = []

    def __call__(self, values, runs) -> Observation:
        self.asked.append(dict(values))
        result = msgspec.structs.replace(GOOD, requests_lost=3 if self.loses(values) else 0)
        spec = accepted(values)
        status = 2 if spec is None else 0
        return Observation(
            spec=spec, status=status, elapsed_s=1.0, cpu_s=1.0, stderr="hint:" if status else "",
            result=None if status else result, built=not status,
        )  # fmt: skip


@pytest.fixture
def explorer(monkeypatch, tmp_path):
    """An explorer on a machine that can do everything, in the hands of such a command."""
    monkeypatch.setattr(explore, "unsupported", frozenset)
    every = explore.factors()
    few = {name: every[name][:3] for name in (*list(every)[:8], "faults")}
    monkeypatch.setattr(explore, "factors", lambda: few)

    def make(loses, known=()):
        command = Command(loses)
        monkeypatch.setattr(explore, "perform", command)
        monkeypatch.setattr(explore, "read_known", lambda: list(known))
        return explore.Explorer(1, tmp_path), command

    return make


LINE = {"strategy": "pool", "rtt_ms": 40.0, "pool": 3, "memory_mib": 2, "interval_ms": 20.0}


def test_a_line_that_is_right_is_performed_once(explorer) -> None:
    made, command = explorer(lambda values: False)
    assert made.judge(LINE, LATER) == []
    assert len(command.asked) == 1


def test_a_new_fault_is_confirmed_and_shortened_and_written_down(explorer, tmp_path) -> None:
    made, _ = explorer(lambda values: values.get("pool", 1) > 1 and values.get("rtt_ms", 18.0) > 30)
    (found,) = made.judge(LINE, LATER)
    assert (found.kind, found.confirmed, found.known) == ("lost", True, None)
    assert found.shortest == "quicferry run --pool 3 --rtt-ms 40"
    assert found.test.startswith("def test_lost(tmp_path: Path) -> None:")
    assert "perform({'rtt_ms': 40.0, 'pool': 3}, tmp_path)" in found.test and "'lost' not in" in found.test
    (written,) = (tmp_path / "findings.jsonl").read_bytes().splitlines()
    assert msgspec.json.decode(written, type=Finding) == found


def test_what_does_not_come_again_was_seen_once(explorer) -> None:
    answers = iter([True, False, False])
    made, command = explorer(lambda values: next(answers))
    (found,) = made.judge(LINE, LATER)
    assert (found.confirmed, found.shortest) == (False, None)
    assert len(command.asked) == 3


def test_a_known_fault_costs_no_more_runs(explorer) -> None:
    made, command = explorer(lambda values: True, [KnownFault(kind="lost", line=["pool"], text="as it is")])
    (found,) = made.judge(LINE, LATER)
    assert found.known == "as it is"
    assert len(command.asked) == 1


def test_when_the_time_is_over_nothing_is_performed_again(explorer) -> None:
    made, command = explorer(lambda values: True)
    made.judge(LINE, 0.0)
    assert len(command.asked) == 1


def test_drawn_lines_can_be_run_and_say_something(explorer) -> None:
    made, _ = explorer(lambda values: False)
    for _ in range(30):
        values = made.draw().values
        assert made._wanted(values)
        assert values["seed"] > 0


def test_drawn_refusals_are_refused(explorer) -> None:
    made, _ = explorer(lambda values: False)
    for _ in range(20):
        values = made.draw_refusal()
        assert accepted(values) is None
        assert made.judge(values, LATER) == []
