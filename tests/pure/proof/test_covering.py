"""Drawn lines: every pair comes, nothing invalid does, and a seed says which."""

from __future__ import annotations

import itertools
from random import Random

import pytest

from proof.explore.command import accepted, line, without_defaults, words
from proof.explore.covering import Covering, pairs
from proof.explore.levels import CONTENDER, SHORT, UNCOVERED, Level, factors
from quicferry.spec import axes
from session.request import to_spec


def _factor(name: str, *values: object) -> list[Level]:
    def level(value: object) -> Level:
        return Level(f"{name}={value}", (f"{name}={value}",), lambda _: {name: value})

    return [level(value) for value in values]


TOY = {
    "a": _factor("a", 0, 1, 2),
    "b": _factor("b", 0, 1, 2, 3),
    "c": _factor("c", False, True),
    "d": _factor("d", 0, 1, 2),
}


def _toy_valid(values) -> bool:
    # c needs a to be 1 or 2; b and d may not both be 2
    return not (values["c"] and values["a"] == 0) and not (values["b"] == 2 and values["d"] == 2)


def _all_toy_pairs() -> set[tuple[str, str]]:
    found = set()
    for chosen in itertools.product(*TOY.values()):
        values = {}
        for level in chosen:
            values |= level.draw(Random(0))
        if _toy_valid(values):
            found |= set(pairs(token for level in chosen for token in level.tokens))
    return found


def test_the_possible_pairs_are_those_of_all_valid_lines() -> None:
    assert Covering(TOY, _toy_valid, 1).possible == _all_toy_pairs()


@pytest.mark.parametrize("seed", range(5))
def test_every_possible_pair_comes_in_few_lines(seed: int) -> None:
    covering = Covering(TOY, _toy_valid, seed)
    seen: set[tuple[str, str]] = set()
    lines = 0
    while covering.covered < len(covering.possible):
        drawn = covering.draw()
        assert _toy_valid(drawn.values)
        seen |= set(pairs(drawn.tokens))
        lines += 1
        assert lines <= 24, "a third of all combinations should do"
    assert seen >= covering.possible


def test_what_a_line_must_have_it_has() -> None:
    covering = Covering(TOY, _toy_valid, 3)
    for _ in range(20):
        assert covering.draw({"a": "a=0"}).values["a"] == 0


def test_a_lean_line_has_few_factors_off_their_defaults() -> None:
    covering = Covering(TOY, lambda _: True, 3)
    while covering.covered < len(covering.possible):
        covering.draw()
    for _ in range(20):
        values = covering.draw(most=1).values
        assert sum(bool(value) for value in values.values()) <= 1


def test_lines_go_on_when_everything_is_covered() -> None:
    covering = Covering(TOY, _toy_valid, 1)
    for _ in range(60):
        covering.draw()
    assert covering.covered == len(covering.possible)
    assert _toy_valid(covering.draw().values)


@pytest.fixture(scope="module")
def real() -> Covering:
    return Covering(factors(), lambda values: accepted(values) is not None, 7)


def test_real_lines_are_accepted_and_soon_cover_nearly_all(real: Covering) -> None:
    for _ in range(80):
        drawn = real.draw()
        to_spec(drawn.values)
        to_spec(without_defaults(drawn.values))
    assert real.covered > 0.8 * len(real.possible)


def test_the_same_seed_draws_the_same_lines() -> None:
    few = dict(list(factors().items())[:8])

    def lines(seed: int) -> list[str]:
        covering = Covering(few, lambda values: accepted(values) is not None, seed)
        return [line(covering.draw().values) for _ in range(10)]

    assert lines(5) == lines(5)
    assert lines(5) != lines(6)


def test_every_axis_is_drawn_with_its_default_first() -> None:
    found = factors()
    assert set(found) | {"strategy", "baseline", *UNCOVERED} == set(axes()) | {CONTENDER}
    for name, levels in found.items():
        default = levels[0].draw(Random(1))
        assert without_defaults(default) == {}, name
        assert len(levels) >= 2, name


def test_every_level_is_within_the_bounds_of_its_axis() -> None:
    random = Random(2)
    known = axes()
    for level in (level for levels in factors().values() for level in levels):
        for name, value in level.draw(random).items():
            axis = known[name]
            if isinstance(value, int | float) and axis.least is not None and axis.most is not None:
                assert axis.least <= value <= axis.most, level.name
                assert axis.kind is not int or isinstance(value, int)


def test_what_is_kept_short_is_an_axis_and_allowed() -> None:
    known = axes()
    for name, (least, upto, most) in SHORT.items():
        assert known[name].least <= least < upto <= most <= known[name].most, name


def test_the_words_of_a_line_ask_for_its_values() -> None:
    values = {
        "strategy": "pool",
        "server_first": True,
        "forwarding": False,
        "rtt_ms": 0.5,
        "clients": 1,
        "faults": ("transfer:link-cut", "restore:client-silent"),
    }
    assert words(values) == [
        *("--strategy", "pool", "--server-first", "--rtt-ms", "0.5", "--no-forwarding", "--clients", "1"),
        *("--fault", "transfer:link-cut", "--fault", "restore:client-silent"),
    ]
    assert line({"topology": "one_lan"}) == "quicferry run --topology one_lan"


def test_a_default_is_left_out() -> None:
    assert without_defaults({"pool": 1, "rtt_ms": 18.0, "baseline": None, "moves": 2, "faults": ()}) == {
        "moves": 2
    }


def test_what_no_engine_can_do_is_not_accepted() -> None:
    assert accepted({"baseline": "ip-move-tcp", "engine": "handoff"}) is None
    assert accepted({"dns_ttl_s": 5}) is None
    assert accepted({"baseline": "tcp-dns", "dns_ttl_s": 5}) is not None
