"""Static routes and neighbours of a topology, as pure functions.

Nodes that share an IP network without a router between them (a cable, or everything around a set of
bridges) form a *segment*. Only routers forward; a path is a sequence of segments joined by routers,
and the cheapest one is taken (each link costs 1 unless it says otherwise, so usually the one of fewest
hops), in a tie the one whose link stands first in the topology. So a network that only end systems are
in, such as a cable between two edges, has no route from elsewhere.

With dual stack everything is done once for each IP version. A node does not use its own links that are
down; others know the way to what is behind them.
"""

from __future__ import annotations

import hashlib
import heapq
import ipaddress
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from quicferry.errors import InvalidInput
from quicferry.model import Link, NodeKind, Route, Topology, network_of

_MOST_INTERFACE_NAME = 15  # IFNAMSIZ - 1
_DEFAULTS = ("0.0.0.0/0", "::/0")  # of IPv4, of IPv6


class Attachment(NamedTuple):
    """One end of a link: which node, which interface there, which address."""

    node: str
    link: str  # "a--b"
    interface: str
    address: str | None  # CIDR form; None at a switch
    other_address: str | None = None  # of the other IP version, with dual stack
    up: bool = True
    cost: float = 1.0

    @property
    def host_address(self) -> str | None:
        """The address without its prefix length."""
        return None if self.address is None else self.address.partition("/")[0]

    @property
    def network(self) -> str | None:
        """The IP network in CIDR form."""
        return None if self.address is None else network_of(self.address)

    @property
    def mac(self) -> str:
        """A locally administered address made of the IP address, or of the interface's name.

        10.0.1.2 and fd00:a:0:1::2, its twin in dual stack, give the same one.
        """
        if self.address is not None:
            packed = ipaddress.ip_interface(self.address).ip.packed
            if len(packed) > 4:
                short = bytes((packed[3], packed[5], packed[7], packed[15]))
                is_twin = packed == b"\xfd\0\0%c\0%c\0%c\0\0\0\0\0\0\0%c" % tuple(short)
                packed = short if is_twin else hashlib.sha256(packed).digest()
            return "02:00:" + ":".join(f"{byte:02x}" for byte in packed[:4])
        tail = sum(ord(c) << (7 * i) for i, c in enumerate(self.interface)).to_bytes(16, "big")[-4:]
        return "06:00:" + ":".join(f"{byte:02x}" for byte in tail)


class Neighbour(NamedTuple):
    """At ``node``: ``address`` on ``interface`` is at ``mac``."""

    node: str
    interface: str
    address: str
    mac: str


def attachments(topology: Topology) -> tuple[Attachment, ...]:
    """Both ends of every link, in the topology's order: a's end, then b's.

    Interfaces are named as Mininet names them, ``core-eth2``, counted from 0 (at a switch from 1).
    """
    counters = {node.name: int(node.kind is NodeKind.SWITCH) for node in topology.nodes}
    found = []
    for link in topology.links:
        for end, address, other in (
            (link.a, link.a_address, link.a_other_address),
            (link.b, link.b_address, link.b_other_address),
        ):
            number = counters[end]
            counters[end] += 1
            name = f"{end}-eth{number}"
            if len(name) > _MOST_INTERFACE_NAME:
                name = f"{end}-e{number}"
            found.append(Attachment(end, link.name, name, address, other, link.up, link.cost))
    return tuple(found)


def segments(topology: Topology) -> tuple[tuple[Attachment, ...], ...]:
    """Groups of addressed link ends that hear each other without a router, in the topology's order."""
    switches = {node.name for node in topology.nodes if node.kind is NodeKind.SWITCH}
    group_of: dict[str, int] = {}
    group_of_switch: dict[str, int] = {}
    for number, link in enumerate(topology.links):
        touched = [end for end in (link.a, link.b) if end in switches]
        old = {group_of_switch[end] for end in touched if end in group_of_switch}
        group = min(old, default=number)
        for names in (group_of, group_of_switch):
            for name, value in names.items():
                if value in old:
                    names[name] = group
        group_of[link.name] = group
        group_of_switch.update(dict.fromkeys(touched, group))
    members: dict[int, list[Attachment]] = {}
    for end in attachments(topology):
        if end.address is not None:
            members.setdefault(group_of[end.link], []).append(end)
    return tuple(tuple(members[group]) for group in sorted(members))


def by_version(topology: Topology) -> tuple[Topology, ...]:
    """The topology, and with dual stack once more with the addresses of the other IP version alone."""
    replace = msgspec.structs.replace
    if not any(link.a_other_address or link.b_other_address for link in topology.links):
        return (topology,)
    first, other = (
        replace(
            topology,
            links=tuple(
                replace(link, a_address=a, b_address=b, a_other_address=None, b_other_address=None)
                for link, a, b in addressed
            ),
            service_addresses=services,
            other_service_addresses={},
        )
        for addressed, services in (
            (((x, x.a_address, x.b_address) for x in topology.links), topology.service_addresses),
            (
                ((x, x.a_other_address, x.b_other_address) for x in topology.links),
                topology.other_service_addresses,
            ),
        )
    )
    return first, other


def neighbours(topology: Topology) -> tuple[Neighbour, ...]:
    """Every neighbour of every node, so that no packet ever waits for ARP."""
    return tuple(
        Neighbour(here.node, here.interface, there.host_address or "", there.mac)
        for view in by_version(topology)
        for segment in segments(view)
        for here in segment
        for there in segment
        if here.node != there.node and here.network == there.network and here.up and there.up
    )


def shortest_routes(topology: Topology) -> tuple[Route, ...]:
    """For every node, one route to every network that it can reach and is not in itself."""
    ends = [node.name for node in topology.nodes if node.kind is not NodeKind.SWITCH]
    return _shortest(topology, ends)


def _shortest(topology: Topology, starts: Sequence[str]) -> tuple[Route, ...]:
    """As ``shortest_routes``, for these nodes only."""
    found = []
    for view in by_version(topology):
        parts = segments(view)
        for name in starts:
            for network, gateway in _first_gateways(view, parts, name).items():
                found.append(Route(name, network, gateway))
    return tuple(found)


def routes(topology: Topology) -> tuple[Route, ...]:
    """The routes to set.

    A router's are one per network; an end system's are its default gateway, and one for each network
    that is nearer by another gateway.
    """
    routers = [node.name for node in topology.nodes if node.kind is NodeKind.ROUTER]
    found = list(_shortest(topology, routers))
    only = _only_gateways(topology)
    ends = [node.name for node in topology.nodes if node.kind in {NodeKind.HOST, NodeKind.EDGE}]
    nearest: dict[tuple[str, str], list[Route]] = {}
    for route in _shortest(topology, [name for name in ends if name not in only]):
        nearest.setdefault((route.node, _default_of(route.network)), []).append(route)
    for name in ends:
        for default in _DEFAULTS:
            if name in only:
                if default in only[name]:
                    found.append(Route(name, default, only[name][default]))
            elif here := nearest.get((name, default)):
                gateway = Counter(route.gateway for route in here).most_common(1)[0][0]
                found.append(Route(name, default, gateway))
                found.extend(route for route in here if route.gateway != gateway)
    return tuple(found)


def _default_of(network: str) -> str:
    """The default network of its IP version."""
    return _DEFAULTS[":" in network]


def _only_gateways(topology: Topology) -> dict[str, dict[str, str]]:
    """End systems with one link and one router at it: default network to that router, where it leads on.

    What is nearest needs not be looked for there, which is what a network of a thousand hosts waits for.
    """
    routers = {node.name for node in topology.nodes if node.kind is NodeKind.ROUTER}
    links = Counter(end for link in topology.links for end in (link.a, link.b))
    found: dict[str, dict[str, str]] = {name: {} for name, count in links.items() if count == 1}
    for view in by_version(topology):
        parts = segments(view)
        lead_on = Counter(end.node for part in parts for end in part if end.up)
        for part in parts:
            here = [end for end in part if end.node in routers]
            for end in part:
                if end.node not in found or end.node in routers:
                    continue
                up = [router for router in here if router.up and router.network == end.network]
                if not end.up or len(here) != 1 or len(up) != 1:
                    del found[end.node]
                elif lead_on[up[0].node] > 1:
                    gateway = up[0].host_address or ""
                    found[end.node][_default_of(gateway)] = gateway
    return {name: gateways for name, gateways in found.items() if gateways}


def path(topology: Topology, start: str, end: str) -> tuple[str, ...]:
    """The nodes (switches left out) that a packet from ``start`` to ``end``'s first address passes.

    Raises ``InvalidInput`` when there is no way.
    """
    no_way = InvalidInput(f"topology {topology.name}: there is no way from {start} to {end}")
    addresses = [a.partition("/")[0] for a in topology.addresses_of(end)]
    if not addresses:
        raise no_way
    ends = attachments(topology)
    table = {(route.node, route.network): route.gateway for route in shortest_routes(topology)}
    owner = {a.host_address: a.node for a in ends if a.address is not None}
    network = network_of(topology.addresses_of(end)[0])
    here, passed = start, [start]
    while here != end:
        if any(a.node == here and a.network == network for a in ends):
            passed.append(end)
            break
        gateway = table.get((here, network))
        if gateway is None:
            raise no_way
        here = owner[gateway]
        passed.append(here)
    return tuple(passed)


def connected_pairs(topology: Topology) -> Iterator[tuple[str, str]]:
    """Ordered pairs of end systems of which the first can reach the second's first address."""
    hosts = [n.name for n in topology.nodes if n.kind in {NodeKind.HOST, NodeKind.EDGE}]
    for start in hosts:
        for end in hosts:
            if start == end:
                continue
            try:
                path(topology, start, end)
                path(topology, end, start)
            except InvalidInput:
                continue
            yield start, end


def first_address(topology: Topology, host: str) -> str:
    """The host's first address that is up, without its prefix length. Raises ``InvalidInput`` for none."""
    topology.node(host)
    ends = [end for end in attachments(topology) if end.node == host and end.host_address is not None]
    if not ends:
        raise InvalidInput(f"{host} has no address")
    here = next((end for end in ends if end.up), ends[0])
    return here.host_address or ""


def handed_over(topology: Topology, host: str, link_name: str) -> Topology:
    """The topology after a mobile host has changed to another of its links. Raises ``InvalidInput``."""
    link = link_between(topology, link_name)
    if host not in (link.a, link.b):
        own = ", ".join(each.name for each in topology.links_of(host))
        raise InvalidInput(f"{host} is not at the link {link_name}", hint=f"it has {own}")
    return msgspec.structs.replace(
        topology,
        links=tuple(
            msgspec.structs.replace(each, up=each.name == link_name) if host in (each.a, each.b) else each
            for each in topology.links
        ),
    )


def link_between(topology: Topology, name: str) -> Link:
    """The link of that name (``a--b``). Raises ``InvalidInput``."""
    for link in topology.links:
        if link.name == name:
            return link
    raise InvalidInput(
        f"topology {topology.name} has no link {name!r}",
        hint="it has " + ", ".join(link.name for link in topology.links),
    )


def _first_gateways(
    topology: Topology, parts: tuple[tuple[Attachment, ...], ...], start: str
) -> dict[str, str]:
    """Network to first gateway for one node: Dijkstra's algorithm over the segments."""
    routers = {node.name for node in topology.nodes if node.kind is NodeKind.ROUTER}
    own = {end.network for part in parts for end in part if end.node == start and end.up}
    at: dict[str, list[tuple[Attachment, tuple[Attachment, ...]]]] = {}
    for part in parts:
        for end in part:
            if end.up or end.node != start:
                at.setdefault(end.node, []).append((end, part))
    gateways: dict[str, str] = {}
    settled: set[str] = set()
    order = itertools.count()  # in a tie, what was found first
    waiting: list[tuple[float, int, str, str | None]] = [(0.0, next(order), start, None)]
    while waiting:
        cost, _, here, first = heapq.heappop(waiting)
        if here in settled:
            continue
        settled.add(here)
        for mine, part in at.get(here, ()):
            if mine.network is not None and mine.network not in own and first is not None:
                gateways.setdefault(mine.network, first)
            for there in part:
                if there.node not in routers or there.node in settled or there.network != mine.network:
                    continue
                if not there.up and start in (here, there.node):
                    continue
                step = max(mine.cost, there.cost)
                gateway = first if first is not None else there.host_address
                heapq.heappush(waiting, (cost + step, next(order), there.node, gateway))
    return gateways
