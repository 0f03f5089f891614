"""The shortest line that still fails, and what tells a known fault from a new one."""

from __future__ import annotations

import pytest

from proof.explore.findings import Finding, KnownFault, append, known_as, read_known, summary
from proof.explore.minimise import ON_THE_WAY, minimise, repeatedly

LINE = dict.fromkeys("abcdefghij", 1)


@pytest.mark.parametrize("needed", [set(), {"a"}, {"j"}, {"c", "d"}, {"a", "e", "j"}, set("abcdefghij")])
def test_what_is_left_is_what_is_needed(needed: set[str]) -> None:
    found = minimise(LINE, lambda values: needed <= set(values), lambda _: True)
    assert set(found) == needed


def test_few_lines_are_asked_where_one_axis_is_to_blame() -> None:
    asked = []

    def fails(values) -> bool:
        asked.append(values)
        return "g" in values

    assert minimise(LINE, fails, lambda _: True) == {"g": 1}
    assert len(asked) <= 10


def test_only_valid_lines_are_asked() -> None:
    def valid(values) -> bool:
        return "b" in values or "a" not in values  # a needs b

    def fails(values) -> bool:
        assert valid(values)
        return "a" in values

    assert minimise(LINE, fails, valid) == {"a": 1, "b": 1}


def test_it_stops_when_the_time_is_over() -> None:
    asked = []
    minimise(LINE, lambda values: bool(asked.append(values)), lambda _: True, lambda: len(asked) < 3)
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("answers", "verdict", "asked"),
    [
        ([1, 1], True, 2),
        ([0, 1, 1], True, 3),
        ([1, 0, 1], True, 3),
        ([0, 0], False, 2),
        ([1, 0, 0], False, 3),
    ],
)
def test_two_of_three_decide(answers: list[int], verdict: bool, asked: int) -> None:
    left = list(answers)
    assert repeatedly(lambda _: bool(left.pop(0)))({}) is verdict
    assert len(answers) - len(left) == asked


def test_one_of_two_is_enough_on_the_way() -> None:
    left = [False, True]
    assert repeatedly(lambda _: left.pop(0), ON_THE_WAY)({})
    assert left == []


def test_the_known_faults_can_be_read_and_are_regular_expressions() -> None:
    for fault in read_known():
        assert fault.text
        known_as([fault], "overhead", "quicferry run")


def test_a_known_fault_has_its_kind_and_its_words() -> None:
    known = [
        KnownFault(kind="lost|owner", line=["--strategy pool", "--moves"], unless=["-first"], text="pool")
    ]
    assert known_as(known, "lost", "quicferry run --strategy pool --moves 2") == "pool"
    assert known_as(known, "lost", "quicferry run --strategy pool") is None
    assert known_as(known, "overhead", "quicferry run --strategy pool --moves 2") is None
    assert known_as(known, "lost", "quicferry run --strategy pool --server-first --moves 2") is None


def test_findings_are_kept_and_summed_up(tmp_path) -> None:
    new = Finding(kind="lost", words="3 lost", line="long", shortest="short", confirmed=True)
    known = Finding(kind="owner", words="none", line="x", known="pool")
    once = Finding(kind="log", words="differs", line="y")
    for finding in (new, known, once):
        append(tmp_path / "deep" / "findings.jsonl", finding)
    assert len((tmp_path / "deep" / "findings.jsonl").read_text().splitlines()) == 3
    rows = summary([known, new, new, once])
    assert [row.split(":")[0] for row in rows] == ["seen once", "NEW", "known"]
    assert "(2 times)" in rows[1]
    assert "short" in rows[1]
