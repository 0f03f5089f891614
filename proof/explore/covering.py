"""Lines in which every pair of levels meets: a covering array of strength two, made one line at a time.

Greedy, as in Cohen et al., *The AETG System* (IEEE TSE 23(7), 1997): each next line begins with a pair
that is still uncovered and takes, factor by factor, the level that covers most uncovered pairs with those
already in it. What is allowed is asked of a function, never written here: a level that makes the line
invalid is not taken. Deterministic for a seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple

from proof.explore.levels import Level

Pair = tuple[str, str]
Valid = Callable[[Mapping[str, Any]], bool]

CANDIDATES = 6  # lines made for each that is taken
SAMPLES = 4  # draws of a level's range before a pair is called impossible


class Drawn(NamedTuple):
    """A drawn line: axis values, and what it counts as."""

    values: dict[str, Any]
    tokens: tuple[str, ...]


def pairs(tokens: Iterable[str]) -> Iterator[Pair]:
    """All pairs of tokens, each in one order."""
    return itertools.combinations(sorted(tokens), 2)


class Covering:
    """The generator. ``factors``: name -> levels, the default first; ``valid`` judges axis values."""

    def __init__(self, factors: Mapping[str, Sequence[Level]], valid: Valid, seed: int) -> None:
        self._factors = factors
        self._valid = valid
        self._random = Random(seed)
        self._factor_of = {level.name: name for name, levels in factors.items() for level in levels}
        self._levels = {level.name: level for levels in factors.values() for level in levels}
        self._companions = {name: self._find_companions(name) for name in self._levels}
        self._starts = self._find_starts()  # pair -> level names with which a line that has it can begin
        self.possible = frozenset(self._starts)
        self._uncovered = dict.fromkeys(sorted(self.possible))

    @property
    def covered(self) -> int:
        """How many of the possible pairs have been in a line that was taken."""
        return len(self.possible) - len(self._uncovered)

    def draw(self, within: Mapping[str, str] | None = None, most: int | None = None) -> Drawn:
        """The next line. ``within``: factor -> level that the line must have.

        With ``most``, at most so many factors besides those that it begins with are off their default:
        what goes wrong in such a line is easier to see. The line counts as covered at once. When nothing
        is left to cover, lines are drawn at random.
        """
        best: tuple[int, Drawn] | None = None
        for _ in range(CANDIDATES):
            drawn = self._candidate(within or {}, most)
            gain = sum(pair in self._uncovered for pair in pairs(drawn.tokens))
            if best is None or gain > best[0]:
                best = gain, drawn
        assert best is not None
        for pair in pairs(best[1].tokens):
            self._uncovered.pop(pair, None)
        return best[1]

    def _candidate(self, within: Mapping[str, str], most: int | None) -> Drawn:
        random = self._random
        drawn = {name: level.draw(random) for name, level in self._levels.items()}
        chosen = self._begin(within, drawn)
        names = [name for name in self._factors if name not in chosen]
        random.shuffle(names)
        for name in names[:most]:
            ranked = sorted(
                self._factors[name], key=lambda level: (-self._gain(level, chosen), random.random())
            )
            for level in ranked:
                if self._valid(self._values({**chosen, name: level.name}, drawn)):
                    chosen[name] = level.name
                    break
        complete = {factor: chosen.get(factor, levels[0].name) for factor, levels in self._factors.items()}
        tokens = tuple(token for name in complete.values() for token in self._levels[name].tokens)
        return Drawn(self._values(chosen, drawn), tokens)

    def _begin(self, within: Mapping[str, str], drawn: Mapping[str, dict[str, Any]]) -> dict[str, str]:
        """A random uncovered pair with what makes it valid; ``within`` alone when none fits that."""
        left = list(self._uncovered)
        for _ in range(20 if left else 0):
            start = self._starts[self._random.choice(left)]
            chosen = {self._factor_of[name]: name for name in start}
            agrees = all(chosen.get(factor, level) == level for factor, level in within.items())
            if agrees and self._valid(self._values({**chosen, **within}, drawn)):
                return {**chosen, **within}
        return dict(within)

    def _gain(self, level: Level, chosen: Mapping[str, str]) -> int:
        return sum(
            tuple(sorted((mine, theirs))) in self._uncovered
            for mine in level.tokens
            for name in chosen.values()
            for theirs in self._levels[name].tokens
        )

    def _values(
        self, chosen: Mapping[str, str], drawn: Mapping[str, dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        """The axis values of these levels; every other factor has its default level."""
        values: dict[str, Any] = {}
        for factor, levels in self._factors.items():
            name = chosen.get(factor, levels[0].name)
            values |= drawn[name] if drawn is not None else self._levels[name].draw(self._random)
        return values

    def _possible(self, names: Iterable[str]) -> bool:
        chosen = {self._factor_of[name]: name for name in names}
        return any(self._valid(self._values(chosen)) for _ in range(SAMPLES))

    def _find_companions(self, name: str) -> list[tuple[str, ...]]:
        """What must be in a line for this level to be allowed: nothing, or any of these levels."""
        if self._possible([name]):
            return [()]
        mine = self._factor_of[name]
        others = [other for other, factor in self._factor_of.items() if factor != mine]
        return [(other,) for other in others if self._possible([name, other])]

    def _find_starts(self) -> dict[Pair, tuple[str, ...]]:
        starts: dict[Pair, tuple[str, ...]] = {}
        for first, second in itertools.combinations(self._levels, 2):
            if self._factor_of[first] == self._factor_of[second]:
                continue
            tokens = {
                tuple(sorted((a, b))) for a in self._levels[first].tokens for b in self._levels[second].tokens
            }
            if tokens <= starts.keys():
                continue
            start = self._start(first, second)
            if start is not None:
                starts |= dict.fromkeys(tokens, start)  # type: ignore[arg-type]  # sorted() of two is a pair
        for name, level in self._levels.items():  # tokens that one level has by itself
            if self._companions[name]:
                start = (name, *self._companions[name][0])
                starts |= dict.fromkeys(pairs(level.tokens), start)
        return starts

    def _start(self, first: str, second: str) -> tuple[str, ...] | None:
        """Level names that hold both and are valid together; None when there are none."""
        for one, other in itertools.product(self._companions[first], self._companions[second]):
            names = dict.fromkeys((first, second, *one, *other))
            if len({self._factor_of[name] for name in names}) == len(names) and self._possible(names):
                return tuple(names)
        return None
