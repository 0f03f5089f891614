"""Single values of nested data replaced."""

from __future__ import annotations

from proof.fuzz.fields import NASTY, places, replaced

DATA = {"a": 1, "b": [2, {"c": 3}]}


def test_every_value_has_a_place() -> None:
    assert [container[key] for container, key in places(DATA)] == [1, [2, {"c": 3}], 2, {"c": 3}, 3]


def test_three_bytes_replace_one_value_of_a_copy() -> None:
    assert replaced(DATA, b"") == DATA
    assert replaced(DATA, b"\0\4\2") == {"a": 1, "b": [2, {"c": NASTY[2]}]}
    assert replaced(DATA, b"\0\1\0\0\0\1") == {"a": NASTY[1], "b": NASTY[0]}
    assert DATA == {"a": 1, "b": [2, {"c": 3}]}


def test_any_bytes_will_do() -> None:
    for number in range(256):
        replaced(DATA, bytes([number, number, number]) * 4)
