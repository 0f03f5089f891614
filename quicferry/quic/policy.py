"""Which addresses a client may be sent to.

A server that can name addresses can make its clients send datagrams to third parties (request forgery,
RFC 9000 §21.5). Before it is probed an address must pass here; what it may get before it has answered is
limited by path validation.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from quicferry.quic.wire import Address

IpAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

_BROADCAST = ipaddress.IPv4Address("255.255.255.255")
_SCOPES = ("loopback", "link-local", "private", "global")


@dataclass(frozen=True)
class AddressPolicy:
    """``allowed_networks`` is the allow-list; None allows every network that the rules below leave."""

    allowed_networks: tuple[IpNetwork, ...] | None = None

    @classmethod
    def of(cls, networks: Iterable[str] | None) -> AddressPolicy:
        """A policy from networks in CIDR form. Raises ``ValueError`` when one is not a network."""
        if networks is None:
            return cls()
        return cls(tuple(ipaddress.ip_network(network) for network in networks))

    def denies(self, candidate: Address, peer: Address) -> str | None:
        """Why ``candidate`` must not be probed by a client whose server is at ``peer``; None if it may be."""
        #: wire-format 10.2: A client MUST refuse multicast
        #: RFC 9000 9.6.3: SHOULD use a preferred address from the same address family
        host, port = candidate
        try:
            ip = ipaddress.ip_address(host)
            peer_ip = _unmapped(ipaddress.ip_address(peer[0]))
        except ValueError:
            return "not an IP address"
        if port == 0:
            return "port 0"
        if ip.version == 6 and ip.ipv4_mapped is not None:
            return "IPv4-mapped IPv6 address"
        if ip.version != peer_ip.version:
            return "other address family than the connection's"
        if ip.is_unspecified:
            return "unspecified address"
        if ip.is_multicast:
            return "multicast address"
        if ip == _BROADCAST:
            return "broadcast address"
        # RFC 9000 §21.5.6: a server on a wider network must not reach into a narrower one through us.
        if _SCOPES.index(scope(ip)) < _SCOPES.index(scope(peer_ip)):
            return f"{scope(ip)} address from a {scope(peer_ip)} peer"
        if self.allowed_networks is not None and not any(ip in network for network in self.allowed_networks):
            return "not in an allowed network"
        return None


def scope(ip: IpAddress) -> str:
    """``loopback``, ``link-local``, ``private`` or ``global``."""
    if ip.is_loopback:
        return "loopback"
    if ip.is_link_local:
        return "link-local"
    return "global" if ip.is_global else "private"


def _unmapped(ip: IpAddress) -> IpAddress:
    if ip.version == 6 and ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    return ip
