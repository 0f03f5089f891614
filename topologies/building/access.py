"""Clients with an access of their own: each on a host of its own, behind a link of its own."""

from __future__ import annotations

import ipaddress

import msgspec

from quicferry.errors import InvalidInput
from quicferry.model import Link, Node, Topology
from topologies.building.addresses import twin_of

MOST_CLIENTS = 50  # a process, a capture and a link each


def with_own_access(topology: Topology, clients: int) -> Topology:
    """The topology with so many clients, each as its first one is. Raises ``InvalidInput``."""
    first = topology.parts["client"]
    if clients > MOST_CLIENTS:
        raise InvalidInput(
            f"{clients} clients with an access of their own",
            hint=f"give at most {MOST_CLIENTS}, or leave out --access: they share one then",
        )
    if len(f"{first}-{clients}") > 10:
        raise InvalidInput(f"the client is called {first}, which is too long", hint="call it client")
    nodes, links = list(topology.nodes), list(topology.links)
    taken = {a.partition("/")[0] for node in topology.nodes for a in topology.addresses_of(node.name)}
    number = 0
    for client in range(2, clients + 1):
        nodes.append(Node(name=f"{first}-{client}"))
        for link in topology.links_of(first):
            links.append(_copy(link, first, f"{first}-{client}", number, taken))
            number += 1
    return msgspec.structs.replace(topology, nodes=tuple(nodes), links=tuple(links))


def _copy(link: Link, first: str, client: str, number: int, taken: set[str]) -> Link:
    """A link like that of the first client, with addresses of its own."""
    here, there = ("a", "b") if link.a == first else ("b", "a")
    values: dict[str, str | None] = {here: client}
    behind_a_switch = getattr(link, f"{there}_address") is None
    for field in ("address", "other_address"):
        own = getattr(link, f"{here}_{field}")
        if own is None:
            continue
        if behind_a_switch:
            values[f"{here}_{field}"] = _next_to(own, taken)
            continue
        network = f"10.{200 + number // 256}.{number % 256}"
        for end, last in ((here, 2), (there, 1)):
            address = f"{network}.{last}/24"
            values[f"{end}_{field}"] = twin_of(address) if ":" in own else address
    return msgspec.structs.replace(link, **values)


def _next_to(own: str, taken: set[str]) -> str:
    interface = ipaddress.ip_interface(own)
    for host in interface.network.hosts():
        # far from those that a topology gives by hand
        if int(host) & 0xFF >= 100 and str(host) not in taken:
            taken.add(str(host))
            return f"{host}/{interface.network.prefixlen}"
    raise InvalidInput(f"there is no free address beside {own}", hint="ask for fewer clients")
