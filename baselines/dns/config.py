"""What the processes around the service's name are told."""

from __future__ import annotations

import msgspec

from quicferry.model import Endpoint

ZONE = "edge.test."
LABEL = "service"  # of the service within the zone: service.edge.test, the name in its certificate
NAME = f"{LABEL}.{ZONE}"
KEY_NAME = "orchestrator."
KEY_ALGORITHM = "hmac-sha256"  # RFC 8945 §6: the algorithm every implementation has
DNS_PORT = 53


def kind_of(address: str) -> str:
    """The type of the record that holds an address."""
    return "AAAA" if ":" in address else "A"


class NameServerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The authoritative server. ``key`` is a file with the TSIG secret in base64."""

    vantage: str
    listen: str  # the address of its host
    address: str  # what the name stands for at first
    ttl_s: int
    key: str
    other_address: str = ""  # of the other IP version, with dual stack


class UpdaterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What sends the updates, at the orchestrator's host."""

    vantage: str
    server: Endpoint
    ttl_s: int
    key: str


class ResolverConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The client's resolver. ``age_share`` is how much of its life the first cached record has behind it.

    With ``warm`` the record is fetched anew whenever it has run out, as on a host where the name is
    looked up by many; ``age_share`` is then where in that rhythm the run begins.
    """

    server: Endpoint
    name: str = NAME
    kind: str = "A"  # or AAAA: the record that is asked for, with dual stack that of IPv6 (RFC 6724)
    warm: bool = True
    age_share: float = 0.0  # 0 to 1
