"""The same network in IPv4, in IPv6, or with both beside each other (dual stack).

A topology is written in IPv4 with networks of 24 bits. In IPv6 10.0.1.2/24 becomes fd00:a:0:1::2/64: the
first three bytes, in hexadecimal, are the network, the last one is the host. With dual stack every interface
has both; names resolve to both, and clients prefer IPv6 (RFC 6724 section 2.1).
"""

from __future__ import annotations

import ipaddress

import msgspec

from quicferry.errors import InvalidInput
from quicferry.model import Topology

VERSIONS = ("4", "6", "dual")
_PREFIX_BITS = 24


def with_ip(topology: Topology, ip: str) -> Topology:
    """The topology with addresses of that version. Raises ``InvalidInput`` where they cannot be made."""
    if ip not in VERSIONS:
        raise InvalidInput(f"there is no IP version {ip!r}", hint="choose from " + ", ".join(VERSIONS))
    if ip == "4":
        return topology
    replace = msgspec.structs.replace
    dual = ip == "dual"
    return replace(
        topology,
        links=tuple(
            replace(
                link,
                a_address=_six(topology, link.a_address),
                b_address=_six(topology, link.b_address),
                a_other_address=link.a_address if dual else None,
                b_other_address=link.b_address if dual else None,
            )
            for link in topology.links
        ),
        service_addresses={
            edge: str(_twin(ipaddress.IPv4Address(address)))
            for edge, address in topology.service_addresses.items()
        },
        other_service_addresses=topology.service_addresses if dual else {},
    )


def twin_of(address: str) -> str:
    """The interface in IPv6 that is beside one of IPv4 with a network of 24 bits."""
    return f"{_twin(ipaddress.IPv4Interface(address).ip)}/64"


def _twin(address: ipaddress.IPv4Address) -> ipaddress.IPv6Address:
    a, b, c, d = address.packed
    return ipaddress.IPv6Address(f"fd00:{a:x}:{b:x}:{c:x}::{d:x}")


def _six(topology: Topology, address: str | None) -> str | None:
    """An IPv4 interface's twin in IPv6."""
    if address is None:
        return None
    interface = ipaddress.ip_interface(address)
    if interface.version == 6:
        raise InvalidInput(
            f"the topology {topology.name} has IPv6 addresses of its own, such as {address}",
            hint="leave out the axis ip: the topology decides",
        )
    if interface.network.prefixlen != _PREFIX_BITS:
        raise InvalidInput(
            f"the topology {topology.name} has a network of {interface.network.prefixlen} bits, {address}, "
            "that has no twin in IPv6",
            hint=f"give its IPv4 networks {_PREFIX_BITS} bits, or write it in IPv6",
        )
    return f"{_twin(interface.ip)}/64"
