"""What may happen to a datagram on its way, one small class each, and the wire that asks them all.

An impairment looks at copies of a datagram (one, to begin with) and returns what is left of them: none,
the same later, more, or damaged. All randomness is the wire's ``random.Random``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from simulation.clock import VirtualLoop

Address = tuple[str, int]

UP, DOWN, BOTH = "up", "down", "both"


class Datagram(NamedTuple):
    """One datagram on one path. ``direction``: up is from the client; ``edge`` is the server's end."""

    data: bytes
    direction: str
    edge: Address


class Copy(NamedTuple):
    """What is on its way of it: it arrives after ``delay_s``."""

    delay_s: float
    data: bytes


class Impairment(Protocol):
    """One thing that a network does."""

    def apply(self, datagram: Datagram, copies: list[Copy], rng: random.Random) -> list[Copy]:
        """What becomes of the copies."""
        ...


@dataclass(frozen=True)
class Where:
    """The datagrams that are meant: a direction, and the edges; no edges are all."""

    direction: str = BOTH
    edges: frozenset[Address] = frozenset()

    def meets(self, datagram: Datagram) -> bool:
        """Whether this one is meant."""
        return self.direction in (BOTH, datagram.direction) and (
            not self.edges or datagram.edge in self.edges
        )


@dataclass
class Blackhole:
    """Nothing gets through."""

    where: Where = field(default_factory=Where)

    def apply(self, datagram: Datagram, copies: list[Copy], rng: random.Random) -> list[Copy]:
        return [] if self.where.meets(datagram) else copies


@dataclass
class BurstLoss:
    """Gilbert-Elliott: a good state that loses nothing and a bad one that loses ``lost`` of all datagrams.

    ``enter`` and ``leave`` are the probabilities of a change of state at each datagram.
    """

    enter: float
    leave: float
    lost: float = 1.0
    where: Where = field(default_factory=Where)
    bad: bool = False

    def apply(self, datagram: Datagram, copies: list[Copy], rng: random.Random) -> list[Copy]:
        if not self.where.meets(datagram):
            return copies
        self.bad = rng.random() >= self.leave if self.bad else rng.random() < self.enter
        return [copy for copy in copies if not (self.bad and rng.random() < self.lost)]


@dataclass
class Jitter:
    """Uniform up to ``most_s`` more: it reorders."""

    most_s: float
    where: Where = field(default_factory=Where)

    def apply(self, datagram: Datagram, copies: list[Copy], rng: random.Random) -> list[Copy]:
        if not self.where.meets(datagram):
            return copies
        return [copy._replace(delay_s=copy.delay_s + rng.uniform(0.0, self.most_s)) for copy in copies]


@dataclass
class Duplicate:
    """A second copy, up to ``after_s`` later; long enough, it is an attacker's replay."""

    share: float
    after_s: float = 0.001
    where: Where = field(default_factory=Where)

    def apply(self, datagram: Datagram, copies: list[Copy], rng: random.Random) -> list[Copy]:
        if not self.where.meets(datagram) or rng.random() >= self.share:
            return copies
        later = [copy._replace(delay_s=copy.delay_s + rng.uniform(0.0, self.after_s)) for copy in copies]
        return copies + later


@dataclass
class LoseOne:
    """One datagram is lost: that before which ``passing`` others have gone."""

    passing: int
    where: Where = field(default_factory=Where)

    def apply(self, datagram: Datagram, copies: list[Copy], rng: random.Random) -> list[Copy]:
        if not self.where.meets(datagram):
            return copies
        self.passing -= 1
        return copies if self.passing != -1 else []


@dataclass
class Corrupt:
    """One bit is changed."""

    share: float
    where: Where = field(default_factory=Where)

    def apply(self, datagram: Datagram, copies: list[Copy], rng: random.Random) -> list[Copy]:
        if not self.where.meets(datagram):
            return copies
        return [
            copy._replace(data=_flipped(copy.data, rng)) if rng.random() < self.share else copy
            for copy in copies
        ]


@dataclass
class SmallMtu:
    """Datagrams of more than ``most_bytes`` (UDP payload) are lost, without a word."""

    most_bytes: int
    where: Where = field(default_factory=Where)

    def apply(self, datagram: Datagram, copies: list[Copy], rng: random.Random) -> list[Copy]:
        return [] if self.where.meets(datagram) and len(datagram.data) > self.most_bytes else copies


def _flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


class Wire:
    """Carries datagrams, each path with a delay of its own and all impairments in the order they came."""

    def __init__(self, loop: VirtualLoop, rng: random.Random, one_way_s: dict[Address, float]) -> None:
        self._loop = loop
        self._rng = rng
        self.one_way_s = one_way_s
        self.impairments: list[Impairment] = []
        self.carried = 0
        self.lost = 0

    def send(self, datagram: Datagram, arrive: Callable[[bytes], None]) -> None:
        """Send one datagram; ``arrive`` is called for each copy that gets through."""
        copies = [Copy(self.one_way_s[datagram.edge], datagram.data)]
        for impairment in self.impairments:
            copies = impairment.apply(datagram, copies, self._rng)
        self.lost += not copies
        for copy in copies:
            self.carried += 1
            self._loop.physics(copy.delay_s, arrive, copy.data)
