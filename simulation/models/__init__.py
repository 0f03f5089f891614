"""Models of the protocols, explored exhaustively: every order of every event, for small bounds.

The state machines' steps come from the tables that run (``quicferry/migration/states.py`` and
``quicferry/quic/tables.py``); what is around them (what is written down when, who asks whom) is written
here once more, small enough to be read. A model finds what no seed need ever draw; it cannot find what
its text leaves out.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import TypeVar

from quicferry.strategies import Strategy
from simulation.models import notice, ownership
from simulation.models.explorer import Model, explore
from simulation.models.ownership import Faults

__all__ = ["findings"]

S = TypeVar("S", bound=Hashable)


def findings() -> Iterator[str]:
    """All models in all of their states, and the shortest way to whatever is wrong."""
    for faults in (Faults.NONE, Faults.LOSS | Faults.CRASH, *Faults):
        yield from _lines(ownership.model(faults))
    for strategy in Strategy:
        for server_first in (False, True):
            for client_asks in (False, True):
                yield from _lines(notice.model(strategy, server_first, client_asks))


def _lines(model: Model[S]) -> Iterator[str]:
    found = explore(model)
    good = "" if found.unsafe or found.dead_ends else ", nothing wrong"
    yield f"{model.name}: {found.states} states{good}"
    for finding in found.unsafe + found.dead_ends:
        yield str(finding)
