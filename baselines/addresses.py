"""Addresses besides a topology's own, and who must be told where they are."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from quicferry.emulation import routing
from quicferry.errors import InvalidInput
from quicferry.model import NodeKind, Topology


def free_address(topology: Topology, host: str, besides: Collection[str] = ()) -> str:
    """A free address in the network of a host's first address, in CIDR form.

    ``besides`` are addresses that are taken, too. Raises ``InvalidInput`` when there is none.
    """
    own = ipaddress.ip_interface(topology.addresses_of(host)[0])
    taken = {
        address.partition("/")[0] for node in topology.nodes for address in topology.addresses_of(node.name)
    }
    for address in own.network.hosts():
        if str(address) not in taken and str(address) not in besides:
            return f"{address}/{own.network.prefixlen}"
    raise InvalidInput(
        f"there is no free address in {own.network} beside {host}",
        hint="choose a topology with larger networks",
    )


def ways(topology: Topology, node: str, edges: Collection[str]) -> dict[str, str]:
    """For each edge that a node can reach, the neighbour to whom it hands what is for the edge's service.

    That is the edge itself where they hear each other.
    """
    ends = routing.attachments(topology)
    routes = {
        route.network: route.gateway for route in routing.shortest_routes(topology) if route.node == node
    }
    own = {end.network for end in ends if end.node == node and end.network is not None}
    found: dict[str, str] = {}
    for edge in edges:
        address = topology.service_addresses[edge]
        for end in ends:
            if end.node == edge and end.host_address == address and end.network is not None:
                if end.network in own:
                    found[edge] = address
                elif end.network in routes:
                    found[edge] = routes[end.network]
    return found


def first_hops(topology: Topology, edges: Collection[str]) -> dict[str, dict[str, str]]:
    """The nodes that must know where an address is which moves between these edges, and their ways.

    Routers, and a client that is in one network with an edge: it is its own first router.
    """
    found = {}
    for node in topology.nodes:
        if node.kind is NodeKind.ROUTER or node.name == topology.parts.get("client"):
            there = ways(topology, node.name, edges)
            direct = any(gateway == topology.service_addresses[edge] for edge, gateway in there.items())
            if len(there) == len(edges) and (node.kind is NodeKind.ROUTER or direct):
                found[node.name] = there
    return found
