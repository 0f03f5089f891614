"""Which edges a server visits in a run, one after another."""

from __future__ import annotations

import itertools

from quicferry.errors import InvalidInput
from quicferry.model import Topology
from quicferry.spec import RunSpec


def stops(topology: Topology, spec: RunSpec) -> tuple[str, ...]:
    """The edge at which the server begins, and the one to which each move leads: one more than moves."""
    if spec.mobility == "alone":
        return (topology.parts["source"],) * (spec.moves + 1)
    return _visited(topology, spec)


def _visited(topology: Topology, spec: RunSpec) -> tuple[str, ...]:
    edges = [edge for edge in topology.edges if edge in topology.service_addresses]
    match spec.route:
        case "round":
            circle = edges
        case "along":
            circle = edges + edges[-2:0:-1]
        case _:
            circle = edges[:2]
    return tuple(circle[number % len(circle)] for number in range(spec.moves + 1))


def client_links(topology: Topology, spec: RunSpec) -> tuple[str, ...]:
    """The link at which a mobile client is at first, and to which it changes with each move.

    Its links stand in the order of the edges: at the site of the edge that the server would visit. Raises
    ``InvalidInput`` for a client with one link only.
    """
    own = [link.name for link in topology.links_of(topology.parts["client"])]
    if len(own) == 1:
        raise InvalidInput(
            f"the client of {topology.name} has one access router only and cannot change it",
            hint="choose --topology chain or ring, or a file whose client has links that are not up",
        )
    edges = list(topology.edges)
    return tuple(own[edges.index(stop) % len(own)] for stop in _visited(topology, spec))


def onward(route: tuple[str, ...], edge: str) -> tuple[str, ...]:
    """Where the server goes from an edge, each time that it leaves it."""
    return tuple(there for here, there in itertools.pairwise(route) if here == edge)
