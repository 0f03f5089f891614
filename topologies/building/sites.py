"""Edge sites, each with a router that clients reach by radio and an edge host beside it.

    client    site-1 ---- site-2 ---- site-3 …      (along a road; around a ring the last joins the first)
        \\___/ |          |           |
             edge-1      edge-2      edge-3

The client has an interface at every site, of which that at its own site is up.
"""

from __future__ import annotations

from quicferry.errors import InvalidInput
from quicferry.model import Link, Node, NodeKind, Shape, Topology
from topologies.building.family import Family, Parameter

MOST_SITES = 16


def sites(
    *,
    name: str,
    summary: str,
    edges: int,
    least: int,
    closed: bool,
    rtt_ms: float,
    hop_rtt_ms: float,
    jitter_ms: float,
    loss_percent: float,
    rate_mbps: float | None,
    inter_edge_mbps: float,
) -> Topology:
    """Sites along a road, or around a ring when ``closed``. Raises ``InvalidInput``.

    ``rtt_ms`` is the round-trip time between the client and the edge of the site at which it is,
    ``hop_rtt_ms`` that between two neighbouring sites.
    """
    if isinstance(edges, bool) or not isinstance(edges, int) or not least <= edges <= MOST_SITES:
        raise InvalidInput(f"{name}: {edges} edges", hint=f"give {least} to {MOST_SITES}")
    for what, value in (("rtt_ms", rtt_ms), ("hop_rtt_ms", hop_rtt_ms)):
        if not 0 <= value <= 10_000:  # also refuses NaN
            raise InvalidInput(f"{what} cannot be {value}", hint="give a round-trip time of 0 to 10000 ms")
    if not 0 <= jitter_ms <= rtt_ms / 2:
        raise InvalidInput(
            f"a jitter of {jitter_ms} ms does not fit a one-way delay of {rtt_ms / 2:g} ms",
            hint="give 0 up to half of the round-trip time",
        )
    numbers = range(1, edges + 1)
    radio = Shape(delay_ms=rtt_ms / 2, jitter_ms=jitter_ms, loss_percent=loss_percent, rate_mbps=rate_mbps)
    hop = Shape(delay_ms=hop_rtt_ms / 2, rate_mbps=inter_edge_mbps)
    hops = [(number, number + 1) for number in numbers[:-1]] + ([(edges, 1)] if closed else [])

    def cable(a: str, b: str, network: str, last_a: int, last_b: int, shape: Shape, up: bool = True) -> Link:
        a_address, b_address = (f"{network}.{last}/24" for last in (last_a, last_b))
        return Link(
            a=a, b=b, a_address=a_address, b_address=b_address, a_to_b=shape, b_to_a=shape, up=up
        )  # fmt: skip

    return Topology(
        name=name,
        summary=summary,
        nodes=(
            Node(name="client"),
            *(Node(name=f"site-{number}", kind=NodeKind.ROUTER) for number in numbers),
            *(Node(name=f"edge-{number}", kind=NodeKind.EDGE) for number in numbers),
            Node(name="orch"),
            Node(name="dns"),
        ),
        links=(
            *(
                cable("client", f"site-{number}", f"10.1.{number}", 2, 1, radio, up=number == 1)
                for number in numbers
            ),
            *(cable(f"site-{a}", f"site-{b}", f"10.2.{a}", 1, 2, hop) for a, b in hops),
            *(
                cable(f"site-{number}", f"edge-{number}", f"10.0.{number}", 1, 2, Shape())
                for number in numbers
            ),
            cable("site-1", "orch", "10.0.80", 1, 2, Shape()),
            cable("site-1", "dns", "10.0.81", 1, 2, Shape()),
        ),
        parts={
            "client": "client",
            "source": "edge-1",
            "destination": "edge-2",
            "orchestrator": "orch",
            "dns": "dns",
        },
        pool=tuple(f"edge-{number}" for number in numbers[1:]),
        service_addresses={f"edge-{number}": f"10.0.{number}.2" for number in numbers},
    )


def family(name: str, summary: str, *, usual: int, least: int, closed: bool) -> Family:
    """The family of such topologies: ``usual`` edges where no number is asked for, at least ``least``."""

    def build(
        *,
        edges: int = usual,
        rtt_ms: float = 18.0,
        hop_rtt_ms: float = 2.0,
        jitter_ms: float = 0.0,
        loss_percent: float = 0.0,
        rate_mbps: float | None = None,
        inter_edge_mbps: float = 1000.0,
    ) -> Topology:
        """The topology. Raises ``InvalidInput`` for values that no network can have."""
        return sites(
            name=name,
            summary=summary,
            edges=edges,
            least=least,
            closed=closed,
            rtt_ms=rtt_ms,
            hop_rtt_ms=hop_rtt_ms,
            jitter_ms=jitter_ms,
            loss_percent=loss_percent,
            rate_mbps=rate_mbps,
            inter_edge_mbps=inter_edge_mbps,
        )

    return Family(
        name=name,
        summary=summary,
        parameters=(
            Parameter(
                name="edges", default=usual, summary=f"how many edges there are, {least} to {MOST_SITES}"
            ),
            Parameter(name="rtt_ms", default=18.0, summary="round-trip time client to the edge of its site"),
            Parameter(
                name="hop_rtt_ms", default=2.0, summary="round-trip time between two neighbouring sites"
            ),
            Parameter(
                name="jitter_ms", default=0.0, summary="standard deviation of the client's one-way delay"
            ),
            Parameter(
                name="loss_percent", default=0.0, summary="packets lost on the client's link, each way"
            ),
            Parameter(name="rate_mbps", default=None, summary="rate of the client's link; none: unlimited"),
            Parameter(name="inter_edge_mbps", default=1000.0, summary="rate of the links between the sites"),
        ),
        builder=build,
    )
