"""The pure model of an emulated network: nodes, links and what a link does to packets.

Nothing here touches a kernel. Values are checked when they are made, so that a bad value is
refused before anything is built.
"""

from __future__ import annotations

import enum
import functools
import ipaddress
import math
from collections.abc import Iterable
from typing import NamedTuple, Self

import msgspec

from quicferry.errors import InvalidInput


def host_of(endpoint: str) -> str:
    """The address in the words of an endpoint: ``10.0.1.2:4433`` -> ``10.0.1.2``; empty without a port."""
    return endpoint.rpartition(":")[0].strip("[]")


class Endpoint(NamedTuple):
    """A transport address: IPv4 or IPv6 text and a UDP or TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, words: str) -> Self:
        """The endpoint of such words as ``str`` makes: ``10.0.1.2:4433``, ``[fd00::2]:4433``.

        Raises ``ValueError``.
        """
        return cls(host_of(words), int(words.rpartition(":")[2]))

    @property
    def is_ipv6(self) -> bool:
        """Whether the address is one of IPv6."""
        return ":" in self.host

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NodeKind(enum.StrEnum):
    """What a node of the topology is."""

    HOST = "host"  # an end system
    EDGE = "edge"  # an end system that can hold the server and be its source or destination
    ROUTER = "router"  # forwards IP packets
    SWITCH = "switch"  # a Linux bridge: forwards frames, has no address


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A node of the topology. ``name`` is also its Mininet name: at most 10 of ``[a-z0-9-]``."""

    name: str
    kind: NodeKind = NodeKind.HOST

    def __post_init__(self) -> None:
        good = self.name and len(self.name) <= 10 and self.name[0].isalpha()
        if not good or not all(c.isdigit() or c == "-" or "a" <= c <= "z" for c in self.name):
            raise InvalidInput(
                f"bad node name {self.name!r}",
                hint="use at most 10 of a-z, 0-9 and '-', a letter first (interface names are made of it)",
            )


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What one direction of a link does to packets. The default does nothing.

    Losses come in bursts with ``loss_burst_packets`` (the model of Gilbert, 1960: in its bad state the link
    loses everything, and the mean stay there is that many packets). A packet that is reordered leaves without
    the delay, and so overtakes those under way. ``rate_trace`` is a file of Mahimahi: each line a
    millisecond at which 1500 bytes may pass; it begins with the load, and again when it is over. During an
    ``outage`` (its beginning in seconds after that of the load, and its length) nothing passes.
    """

    delay_ms: float = 0.0  # one-way, 0..10 000
    jitter_ms: float = 0.0  # standard deviation of a normal distribution around the delay, at most the delay
    rate_mbps: float | None = None  # 10^6 bit/s; None is as fast as the machine
    loss_percent: float = 0.0  # independent for each packet, 0..100
    queue_packets: int | None = None  # None: twice the bandwidth-delay product, at least 100
    loss_burst_packets: float | None = None  # mean length, at least 1; None: losses are independent
    reorder_percent: float = 0.0
    duplicate_percent: float = 0.0
    corrupt_percent: float = 0.0  # packets of which one bit is flipped
    rate_trace: str | None = None  # a file, instead of rate_mbps
    outages: tuple[tuple[float, float], ...] = ()  # (after_s, length_s)

    def __post_init__(self) -> None:
        def refuse(what: str, hint: str) -> InvalidInput:
            return InvalidInput(f"a link cannot have {what}", hint=hint)

        if not (math.isfinite(self.delay_ms) and 0 <= self.delay_ms <= 10_000):
            raise refuse(f"a delay of {self.delay_ms} ms", "give 0 to 10000 ms")
        if not (math.isfinite(self.jitter_ms) and 0 <= self.jitter_ms <= self.delay_ms):
            raise refuse(f"a jitter of {self.jitter_ms} ms", "give 0 up to the delay")
        if self.rate_mbps is not None and not (
            math.isfinite(self.rate_mbps) and 0 < self.rate_mbps <= 100_000
        ):
            raise refuse(
                f"a rate of {self.rate_mbps} Mbit/s", "give more than 0, at most 100000, or leave it out"
            )
        if not (math.isfinite(self.loss_percent) and 0 <= self.loss_percent <= 100):
            raise refuse(f"a loss of {self.loss_percent} %", "give 0 to 100")
        if self.queue_packets is not None and not 1 <= self.queue_packets <= 1_000_000:
            raise refuse(f"a queue of {self.queue_packets} packets", "give 1 to 1000000")
        for name in ("reorder_percent", "duplicate_percent", "corrupt_percent"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0 <= value <= 100):
                raise refuse(f"a {name} of {value}", "give 0 to 100")
        if self.reorder_percent and not self.delay_ms:
            raise refuse("reordering without a delay", "give it a delay: what is reordered skips it")
        burst = self.loss_burst_packets
        if burst is not None:
            least = max(1.0, self.loss_percent / max(1e-9, 100 - self.loss_percent))
            if not (math.isfinite(burst) and least <= burst <= 1e6):
                raise refuse(f"bursts of {burst} lost packets", f"give {least:g} to 1000000 for this loss")
        if self.rate_trace is not None and self.rate_mbps is not None:
            raise refuse("a rate and a trace of rates", "give one of them")
        for after_s, length_s in self.outages:
            if not (0 <= after_s <= 3600 and 0 < length_s <= 3600):  # also refuses NaN
                raise refuse(
                    f"an outage of {length_s} s after {after_s} s", "give lengths above 0, and at most 3600"
                )

    @property
    def by_packet(self) -> bool:
        """Whether it treats packets one by one, so that none may be handed over in trains."""
        percents = (self.loss_percent, self.reorder_percent, self.duplicate_percent, self.corrupt_percent)
        return bool(any(percents) or self.jitter_ms or self.rate_trace)

    @property
    def does_nothing(self) -> bool:
        """Whether a plain wire would be the same."""
        return self == Shape()

    def queue_limit(self, mtu_bytes: int) -> int:
        """Packets the queue holds: as asked, or twice the bandwidth-delay product, at least 100."""
        if self.queue_packets is not None:
            return self.queue_packets
        if self.rate_mbps is None:
            return 1_000 if self.rate_trace is not None else 100_000
        in_flight_bits = self.rate_mbps * 1e3 * (self.delay_ms + 3 * self.jitter_ms)
        return max(100, math.ceil(2 * in_flight_bits / (8 * mtu_bytes)))


@functools.lru_cache(maxsize=4096)
def network_of(address: str) -> str:
    """The IP network of an interface address, both in CIDR form. Raises ``ValueError``.

    Remembered: a sweep builds thousands of topologies with the same few addresses.
    """
    return str(ipaddress.ip_interface(address).network)


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A cable between two nodes, each direction with a shape of its own.

    Addresses are interfaces in CIDR form (``10.0.1.2/24``); the end at a switch has none. With dual stack an
    end has another address beside it, of the other IP version. A link that is not ``up`` is there, but
    down at first: a mobile host may change to it.
    """

    a: str
    b: str
    a_address: str | None = None
    b_address: str | None = None
    a_to_b: Shape = Shape()
    b_to_a: Shape = Shape()
    mtu_bytes: int = 1500
    a_other_address: str | None = None
    b_other_address: str | None = None
    up: bool = True
    cost: float = 1.0  # routes take the cheapest way; in equal units all over the topology

    def __post_init__(self) -> None:
        if self.a == self.b:
            raise InvalidInput(f"a link from {self.a} to itself", hint="name two different nodes")
        if not 1280 <= self.mtu_bytes <= 65_535:
            raise InvalidInput(f"an MTU of {self.mtu_bytes} bytes", hint="give 1280 to 65535")
        if not (math.isfinite(self.cost) and self.cost > 0):
            raise InvalidInput(f"a link cannot cost {self.cost}", hint="give more than 0")
        for address in (self.a_address, self.b_address, self.a_other_address, self.b_other_address):
            if address is not None:
                try:
                    network_of(address)
                except ValueError as error:
                    raise InvalidInput(
                        f"bad interface address {address!r}", hint="write it like 10.0.1.2/24"
                    ) from error

    @property
    def name(self) -> str:
        """``a--b``, as used in events, captures and reports."""
        return f"{self.a}--{self.b}"

    @property
    def is_plain(self) -> bool:
        """Whether neither direction is shaped: such a link is one veth pair."""
        return self.a_to_b.does_nothing and self.b_to_a.does_nothing


class Route(NamedTuple):
    """At ``node``: packets to ``network`` (CIDR) go to ``gateway``, the neighbour's address on the link."""

    node: str
    network: str
    gateway: str


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """A whole emulated network and who plays which part in it.

    ``parts`` says which node is what for a run: ``client``, ``source``, ``destination``,
    ``orchestrator``, ``dns``; ``pool`` lists nodes that may be destinations, the true one among them.
    ``service_addresses`` maps an edge to the address at which clients reach a server there, with dual stack
    ``other_service_addresses`` to that of the other IP version. ``rtts_ms`` is the round-trip time that
    the links between the client and an edge add up to, jitter left out.
    """

    name: str
    summary: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    parts: dict[str, str] = {}
    pool: tuple[str, ...] = ()
    service_addresses: dict[str, str] = {}
    other_service_addresses: dict[str, str] = {}
    rtts_ms: dict[str, float] = {}

    def longest_rtt_ms(self, *asked_ms: float | None) -> float:
        """The longest of these round trips and its own, without jitter; None is one that nobody asked for."""
        return max(0.0, *(each for each in asked_ms if each is not None), *self.rtts_ms.values())

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        if len(set(names)) != len(names):
            raise InvalidInput(f"topology {self.name}: two nodes of one name", hint="rename one of them")
        known = set(names)
        for link in self.links:
            for end in (link.a, link.b):
                if end not in known:
                    raise InvalidInput(
                        f"topology {self.name}: link {link.name} ends at an unknown node {end}"
                    )
        for part, name in self.parts.items():
            if name not in known:
                raise InvalidInput(
                    f"topology {self.name}: the part {part} is given to an unknown node {name}"
                )
        addresses = [a for link in self.links for _, *both in _ends(link) for a in both if a is not None]
        if len(set(addresses)) != len(addresses):
            raise InvalidInput(f"topology {self.name}: one address is given twice")

    def node(self, name: str) -> Node:
        """The node of that name. Raises ``InvalidInput``."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise InvalidInput(
            f"topology {self.name} has no node {name!r}",
            hint="it has " + ", ".join(node.name for node in self.nodes),
        )

    def links_of(self, name: str) -> tuple[Link, ...]:
        """The links that end at a node."""
        return tuple(link for link in self.links if name in (link.a, link.b))

    def addresses_of(self, name: str) -> tuple[str, ...]:
        """The interface addresses of a node in CIDR form; those of the other IP version come last."""
        ends = [end for link in self.links for end in _ends(link) if end[0] == name]
        every = [address for _, address, _ in ends] + [other for _, _, other in ends]
        return tuple(address for address in every if address is not None)

    @property
    def clients(self) -> tuple[str, ...]:
        """The client's node, and those of further clients with an access of their own: client-2 and so on."""
        first = self.parts.get("client")
        if first is None:
            return ()
        known = {node.name for node in self.nodes}
        found = [first]
        while (name := f"{first}-{len(found) + 1}") in known:
            found.append(name)
        return tuple(found)

    @property
    def edges(self) -> tuple[str, ...]:
        """The names of all edges, the source first, then the destination, then in the topology's order."""
        first = [self.parts[part] for part in ("source", "destination") if part in self.parts]
        others = [n.name for n in self.nodes if n.kind is NodeKind.EDGE and n.name not in first]
        return (*first, *others)

    def networks(self) -> tuple[str, ...]:
        """Every IP network that some interface is in, sorted."""
        given = (a for link in self.links for _, *both in _ends(link) for a in both if a is not None)
        return tuple(sorted(set(map(network_of, given))))


def _ends(link: Link) -> Iterable[tuple[str, str | None, str | None]]:
    return (
        (link.a, link.a_address, link.a_other_address),
        (link.b, link.b_address, link.b_other_address),
    )


class LinkReading(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked of one direction of a link, and what is really there.

    ``read_back`` holds the backend's own words (netem: the qdisc as the kernel tells it; cable: its
    settings and counters). The measured values come from calibration and are None without it.
    """

    link: str  # "a--b"
    sender: str
    receiver: str
    backend: str  # "netem", "cable" or "plain"
    asked: Shape
    read_back: dict[str, str | int | float | None] = {}
    measured_delay_ms: float | None = None  # the median one-way time of this direction, by kernel stamps
    measured_loss_percent: float | None = None
    measured_rate_mbps: float | None = None
