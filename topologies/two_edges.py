"""Two edges (and up to six spare ones) behind a core router: where the published experiments ran.

    client -- access -- core -- edge-1      the server runs here first
                         |  \\-- edge-2      and moves here
                         |  \\-- edge-3 …    spare candidates, for pools
                         |---- orch
                         \\---- dns
                             edge-1 -- edge-2: the inter-edge link that the server crosses

The round-trip time sits on the links between the core and the edges, half of it each way; jitter too.
Loss and the access rate sit on the client's link, each way. Stock Mininet can build it as well:
``.venv/bin/mn --custom topologies/two_edges.py --topo two_edges`` (with netem).
"""

from __future__ import annotations

from quicferry.errors import InvalidInput
from quicferry.model import Link, Node, NodeKind, Shape, Topology
from topologies.building.family import Family, Parameter

MOST_EDGES = 8
MOST_POOL = MOST_EDGES - 1  # all edges but the source


def build(
    *,
    rtt_ms: float = 18.0,
    source_rtt_ms: float | None = None,
    jitter_ms: float = 0.0,
    loss_percent: float = 0.0,
    rate_mbps: float | None = None,
    inter_edge_mbps: float = 1000.0,
    inter_edge_rtt_ms: float = 0.5,
    pool: int = 1,
) -> Topology:
    """The topology. Raises ``InvalidInput`` for values that no network can have.

    ``jitter_ms`` is the standard deviation of each one-way delay between the core and an edge, so at
    most half of the round-trip time. The pool names ``pool`` candidates, the destination the last.
    """
    for name, value in (("rtt_ms", rtt_ms), ("source_rtt_ms", source_rtt_ms)):
        if value is not None and not 0 <= value <= 10_000:  # also refuses NaN
            raise InvalidInput(f"{name} cannot be {value}", hint="give a round-trip time of 0 to 10000 ms")
    if isinstance(pool, bool) or not isinstance(pool, int) or not 1 <= pool <= MOST_POOL:
        raise InvalidInput(f"a pool of {pool} candidates", hint=f"give 1 to {MOST_POOL}")
    shortest_ms = min(rtt_ms, rtt_ms if source_rtt_ms is None else source_rtt_ms)
    if not 0 <= jitter_ms <= shortest_ms / 2:
        raise InvalidInput(
            f"a jitter of {jitter_ms} ms does not fit a one-way delay of {shortest_ms / 2:g} ms",
            hint="give 0 up to half of the smallest round-trip time",
        )
    edges = [f"edge-{number}" for number in range(1, max(2, pool + 1) + 1)]
    spare = edges[2:]
    access = Shape(loss_percent=loss_percent, rate_mbps=rate_mbps)
    to_source = Shape(delay_ms=(rtt_ms if source_rtt_ms is None else source_rtt_ms) / 2, jitter_ms=jitter_ms)
    to_other = Shape(delay_ms=rtt_ms / 2, jitter_ms=jitter_ms)
    between = Shape(delay_ms=inter_edge_rtt_ms / 2, rate_mbps=inter_edge_mbps)

    def cable(a: str, b: str, network: str, last_a: int, last_b: int, shape: Shape) -> Link:
        return Link(
            a=a,
            b=b,
            a_address=f"{network}.{last_a}/24",
            b_address=f"{network}.{last_b}/24",
            a_to_b=shape,
            b_to_a=shape,
        )

    return Topology(
        name="two_edges",
        summary=SUMMARY,
        nodes=(
            Node(name="client"),
            Node(name="access", kind=NodeKind.ROUTER),
            Node(name="core", kind=NodeKind.ROUTER),
            *(Node(name=edge, kind=NodeKind.EDGE) for edge in edges),
            Node(name="orch"),
            Node(name="dns"),
        ),
        links=(
            cable("client", "access", "10.0.0", 2, 1, access),
            cable("access", "core", "10.0.10", 1, 2, Shape()),
            *(
                cable("core", edge, f"10.0.{number}", 1, 2, to_source if number == 1 else to_other)
                for number, edge in enumerate(edges, 1)
            ),
            cable("core", "orch", "10.0.80", 1, 2, Shape()),
            cable("core", "dns", "10.0.81", 1, 2, Shape()),
            cable("edge-1", "edge-2", "10.0.90", 1, 2, between),
        ),
        parts={
            "client": "client",
            "source": "edge-1",
            "destination": "edge-2",
            "orchestrator": "orch",
            "dns": "dns",
        },
        pool=(*spare, "edge-2"),
        service_addresses={edge: f"10.0.{number}.2" for number, edge in enumerate(edges, 1)},
    )


SUMMARY = "client, access and core router, two edges with a link of their own, orchestrator, DNS host"

FAMILY = Family(
    name="two_edges",
    summary=SUMMARY,
    parameters=(
        Parameter(name="rtt_ms", default=18.0, summary="round-trip time core to edge-2 and to spare edges"),
        Parameter(name="source_rtt_ms", default=None, summary="the same to edge-1; none: as rtt_ms"),
        Parameter(
            name="jitter_ms", default=0.0, summary="standard deviation of each one-way delay to an edge"
        ),
        Parameter(name="loss_percent", default=0.0, summary="packets lost on the client's link, each way"),
        Parameter(name="rate_mbps", default=None, summary="rate of the client's link; none: unlimited"),
        Parameter(name="inter_edge_mbps", default=1000.0, summary="rate between edge-1 and edge-2"),
        Parameter(name="inter_edge_rtt_ms", default=0.5, summary="round-trip time between edge-1 and edge-2"),
        Parameter(name="pool", default=1, summary="candidate destinations, 1 to 7; edge-2 is the last"),
    ),
    builder=build,
)

topos = FAMILY.mininet_topos()
