"""What the links of a topology add up to, and whether everybody can reach whom he must in a run."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import msgspec

from quicferry.emulation import routing
from quicferry.errors import InvalidInput
from quicferry.model import Route, Shape, Topology

#: parts of a run that must reach each other
_TALK = (("client", "dns"), ("orchestrator", "dns"))


def with_round_trips(topology: Topology) -> Topology:
    """The topology, with the round-trip time from its client to each edge as its links have it."""
    if "client" not in topology.parts:
        return topology
    found: dict[str, float] = {}
    routes = routing.shortest_routes(topology)
    for edge in topology.service_addresses:
        way = links_between(topology, topology.parts["client"], edge, routes)
        if way is not None:
            found[edge] = round(sum(there.delay_ms + back.delay_ms for there, back in way), 6)
    return msgspec.structs.replace(topology, rtts_ms=found)


def links_between(
    topology: Topology, start: str, edge: str, routes: Sequence[Route] | None = None
) -> list[tuple[Shape, Shape]] | None:
    """For each link on the way to an edge's service address its shape there and back; None: no way.

    ``routes`` are the topology's shortest ones, where the caller has them already.
    """
    known = routing.shortest_routes(topology) if routes is None else routes
    gateways = {(route.node, route.network): route.gateway for route in known}
    ends = [end for end in routing.attachments(topology) if end.address is not None]
    owner = {end.host_address: end.node for end in ends}
    service = topology.service_addresses[edge]
    network = next((end.network for end in ends if end.host_address == service), None)
    here, shapes = start, []  # type: str, list[tuple[Shape, Shape]]
    while here != edge:
        own = any(end.node == here and end.up and end.network == network for end in ends)
        gateway = service if own else gateways.get((here, str(network)))
        if gateway is None:
            return None
        following = owner[gateway]
        shapes += _shapes(topology, here, following)
        here = following
    return shapes


def _shapes(topology: Topology, here: str, there: str) -> list[tuple[Shape, Shape]]:
    """The links from a node to a neighbour, which may have switches between them."""
    seen, waiting = {here}, [(here, [])]  # type: tuple[set[str], list[tuple[str, list[tuple[Shape, Shape]]]]]
    switches = {node.name for node in topology.nodes if node.kind.value == "switch"}
    for at, passed in waiting:
        for link in topology.links_of(at):
            if not link.up:
                continue
            other = link.b if link.a == at else link.a
            to, fro = link.a_to_b, link.b_to_a
            step = (to, fro) if link.a == at else (fro, to)
            if other == there:
                return [*passed, step]
            if other in switches and other not in seen:
                seen.add(other)
                waiting.append((other, [*passed, step]))
    return []


def check_ways(topology: Topology) -> None:
    """Raise ``InvalidInput`` when two who must talk to each other in a run have no way to each other."""
    parts = topology.parts
    pairs = [(parts[a], parts[b]) for a, b in _TALK if a in parts and b in parts]
    edges = [edge for edge in topology.edges if edge in topology.service_addresses]
    for edge in edges:
        pairs += [(parts[part], edge) for part in ("client", "orchestrator", "dns") if part in parts]
        pairs += [(edge, other) for other in edges if other != edge]
    addresses = {
        name: topology.service_addresses.get(name) or _first(topology, name)
        for pair in pairs
        for name in pair
    }
    gateways = {(route.node, route.network) for route in routing.shortest_routes(topology)}
    ends = [end for end in routing.attachments(topology) if end.address is not None]
    for start, end in pairs:
        for one, other in ((start, end), (end, start)):
            network = next(e.network for e in ends if e.host_address == addresses[other])
            here = any(e.node == one and e.up and e.network == network for e in ends)
            if not here and (one, network) not in gateways:
                raise InvalidInput(
                    f"topology {topology.name}: there is no path from {one} to {other}",
                    hint="only routers and switches join links: link the two, or set a router between them",
                )


def _first(topology: Topology, name: str) -> str:
    addresses = topology.addresses_of(name)
    if not addresses:
        raise InvalidInput(f"topology {topology.name}: {name} has no link", hint="link it with a router")
    return str(ipaddress.ip_interface(addresses[0]).ip)
