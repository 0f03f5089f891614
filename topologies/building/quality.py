"""What a run asks of links besides what its topology makes of them: the client's access, and cuts.

The axes hold for the client's access links, each way; ``flap`` names a link and a direction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from quicferry.emulation.links.trace import read_trace
from quicferry.errors import InvalidInput
from quicferry.model import Link, Shape, Topology

OF_THE_ACCESS = (
    "loss_burst_packets",
    "reorder_percent",
    "duplicate_percent",
    "corrupt_percent",
    "rate_trace",
)
_FLAP = re.compile(r"(?P<where>[^@]+)@(?P<after>\d+(\.\d+)?)\+(?P<length>\d+(\.\d+)?)")
_HOW = "write WHERE@START+LENGTH, such as up@1.5+0.2, access@2+1 or core>edge-2@1+0.5"


def with_quality(topology: Topology, asked: Mapping[str, Any], flap: str | None) -> Topology:
    """The topology with these properties of the client's access, and with these cuts.

    ``asked`` holds values by their name in ``OF_THE_ACCESS``; None and 0 ask for nothing. Raises
    ``InvalidInput``.
    """
    chosen = {name: value for name, value in asked.items() if value}
    if chosen.get("rate_trace") is not None:
        read_trace(chosen["rate_trace"])  # before anything is built
    reorder = {name: chosen.pop(name) for name in ("reorder_percent",) if name in chosen}
    client = topology.parts.get("client", "")
    clients = set(topology.clients)
    links = [
        _reshaped(link, chosen) if chosen and clients & {link.a, link.b} else link for link in topology.links
    ]
    if reorder:
        delayed = _delayed(topology, client)
        links = [_reshaped(link, reorder) if link.name in delayed else link for link in links]
    for words in flap.split(",") if flap else ():
        links = _cut(topology, links, words.strip())
    return msgspec.structs.replace(topology, links=tuple(links))


def _reshaped(link: Link, chosen: Mapping[str, Any]) -> Link:
    def with_chosen(shape: Shape) -> Shape:
        return msgspec.structs.replace(shape, **chosen)

    return msgspec.structs.replace(link, a_to_b=with_chosen(link.a_to_b), b_to_a=with_chosen(link.b_to_a))


def _delayed(topology: Topology, client: str) -> set[str]:
    """The links that delay the way between client and edges: there a packet can overtake others.

    Those of the client, or else those that lead to the edges. Raises ``InvalidInput`` when none has a delay.
    """
    edges = set(topology.service_addresses)
    to_edges = [link for link in topology.links if (link.a in edges) != (link.b in edges)]
    own = [link for name in topology.clients or (client,) for link in topology.links_of(name)]
    for links in (own, to_edges):
        found = {link.name for link in links if link.a_to_b.delay_ms and link.b_to_a.delay_ms}
        if found:
            return found
    raise InvalidInput(
        f"nothing can be reordered in {topology.name}: no link has a delay that a packet could skip",
        hint="give a round-trip time",
    )


def _cut(topology: Topology, links: list[Link], words: str) -> list[Link]:
    found = _FLAP.fullmatch(words)
    if found is None:
        raise InvalidInput(f"cannot read the cut {words!r}", hint=_HOW)
    outage = (float(found["after"]), float(found["length"]))
    ways = _ways(topology, links, found["where"].strip())

    def cut(shape: Shape, way: tuple[str, str]) -> Shape:
        return msgspec.structs.replace(shape, outages=(*shape.outages, outage)) if way in ways else shape

    return [
        msgspec.structs.replace(
            link, a_to_b=cut(link.a_to_b, (link.a, link.b)), b_to_a=cut(link.b_to_a, (link.b, link.a))
        )
        for link in links
    ]


def _ways(topology: Topology, links: list[Link], where: str) -> set[tuple[str, str]]:
    """The directions of links that are meant, as (from, to). Raises ``InvalidInput``."""
    every = {way for link in links for way in ((link.a, link.b), (link.b, link.a))}
    clients = set(topology.clients)
    if where in ("up", "down", "access"):
        up = {way for way in every if way[0] in clients}
        down = {way for way in every if way[1] in clients}
        return {"up": up, "down": down, "access": up | down}[where]
    one_way, _, there = where.partition(">")
    if there:
        ways = {(one_way, there)}
    else:
        a, _, b = where.partition("--")
        ways = {(a, b), (b, a)}
    if not ways <= every:
        names = ", ".join(link.name for link in links)
        raise InvalidInput(f"there is no link {where!r} to cut in {topology.name}", hint=f"it has {names}")
    return ways
