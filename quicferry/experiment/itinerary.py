"""Which edges a server visits in a run, one after another."""

from __future__ import annotations

import itertools

from quicferry.model import Topology
from quicferry.spec import RunSpec


def stops(topology: Topology, spec: RunSpec) -> tuple[str, ...]:
    """The edge at which the server begins, and the one to which each move leads: one more than moves."""
    edges = [edge for edge in topology.edges if edge in topology.service_addresses]
    match spec.route:
        case "round":
            circle = edges
        case "along":
            circle = edges + edges[-2:0:-1]
        case _:
            circle = edges[:2]
    return tuple(circle[number % len(circle)] for number in range(spec.moves + 1))


def onward(route: tuple[str, ...], edge: str) -> tuple[str, ...]:
    """Where the server goes from an edge, each time that it leaves it."""
    return tuple(there for here, there in itertools.pairwise(route) if here == edge)
