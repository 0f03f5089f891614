"""Breadth-first exploration of all states that a model can reach.

Two questions are answered. Safety: is there a state that must not be? Liveness: is there a *dead end*, a
state from which nothing good can be reached any more even if nothing else goes wrong? For both the answer
is a shortest way there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)


class Edge(NamedTuple, Generic[S]):
    """One thing that can happen. ``fault``: it need not, and after a while it does not any more."""

    label: str
    state: S
    fault: bool = False


@dataclass
class Model(Generic[S]):
    """What is explored."""

    name: str
    start: S
    edges: Callable[[S], Iterator[Edge[S]]]
    wrong: Callable[[S], str | None]  # why a state must not be
    good: Callable[[S], bool]  # what must stay possible


@dataclass
class Finding:
    """A state that must not be, or a dead end, and how one gets there."""

    what: str
    story: list[str]

    def __str__(self) -> str:
        steps = "\n".join(f"  {number:2}. {step}" for number, step in enumerate(self.story, 1))
        return f"{self.what}\n{steps}"


@dataclass
class Exploration(Generic[S]):
    """What was found."""

    states: int = 0
    unsafe: list[Finding] = field(default_factory=list)  # the shortest of each kind
    dead_ends: list[Finding] = field(default_factory=list)


def explore(model: Model[S], most: int = 2_000_000) -> Exploration[S]:
    """Visit every reachable state. Raises ``OverflowError`` when there are more than ``most``."""
    came: dict[S, tuple[S, str] | None] = {model.start: None}
    benign: dict[S, list[S]] = {}  # state -> from where it is reached without a fault
    found = Exploration[S]()
    kinds: set[str] = set()
    queue = deque([model.start])
    while queue:
        state = queue.popleft()
        why = model.wrong(state)
        if why is not None:
            if why not in kinds:
                kinds.add(why)
                found.unsafe.append(Finding(why, _way(came, state)))
            benign.setdefault(state, [])
            continue  # what follows is of no interest
        for label, following, fault in model.edges(state):
            if not fault:
                benign.setdefault(following, []).append(state)
            if following not in came:
                came[following] = (state, label)
                queue.append(following)
                if len(came) > most:
                    raise OverflowError(f"{model.name}: more than {most} states")
    found.states = len(came)
    alive = _reaching(
        [state for state in came if model.good(state) or model.wrong(state) is not None], benign
    )
    for state in came:  # in the order in which they were reached: the nearest first
        if state not in alive:
            found.dead_ends.append(Finding("nothing good can follow", _way(came, state)))
            break
    return found


def _reaching(good: list[S], benign: dict[S, list[S]]) -> set[S]:
    """All states from which one of these can be reached without a fault."""
    reached = set(good)
    queue = deque(good)
    while queue:
        for before in benign.get(queue.popleft(), ()):
            if before not in reached:
                reached.add(before)
                queue.append(before)
    return reached


def _way(came: dict[S, tuple[S, str] | None], state: S) -> list[str]:
    steps: list[str] = []
    while (before := came[state]) is not None:
        state, label = before
        steps.append(label)
    return steps[::-1]
