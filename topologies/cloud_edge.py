"""Cloud and edges: the server runs in a data centre far away, and moves down to an edge near the client.

    client -- access -- metro -- edge-1          where the server moves to
                          |  \\-- edge-2 …        further edges
                        core --- cloud           the server runs here first
                          |  \\-- orch
                          \\---- dns

The way to the cloud (metro to core) is what the server's state crosses, together with what clients send
to the cloud. Stock Mininet (with netem):
``.venv/bin/mn --custom topologies/cloud_edge.py --topo cloud_edge``.
"""

from __future__ import annotations

from quicferry.errors import InvalidInput
from quicferry.model import Link, Node, NodeKind, Shape, Topology
from topologies.building.family import Family, Parameter

MOST_EDGES = 8


def build(
    *,
    edges: int = 1,
    rtt_ms: float = 18.0,
    source_rtt_ms: float | None = None,
    wan_rtt_ms: float = 40.0,
    jitter_ms: float = 0.0,
    loss_percent: float = 0.0,
    rate_mbps: float | None = None,
    inter_edge_mbps: float = 1000.0,
) -> Topology:
    """The topology. Raises ``InvalidInput`` for values that no network can have.

    ``source_rtt_ms``, from client to cloud, is at least ``rtt_ms``, from client to edge; without it the way
    to the cloud adds ``wan_rtt_ms``.
    """
    if isinstance(edges, bool) or not isinstance(edges, int) or not 1 <= edges <= MOST_EDGES:
        raise InvalidInput(f"cloud_edge: {edges} edges", hint=f"give 1 to {MOST_EDGES}")
    cloud_ms = rtt_ms + wan_rtt_ms if source_rtt_ms is None else source_rtt_ms
    if not 0 <= rtt_ms <= cloud_ms <= 10_000:  # also refuses NaN
        raise InvalidInput(
            f"the cloud cannot be {cloud_ms} ms away when the edge is {rtt_ms} ms away",
            hint="give 0 <= rtt_ms <= source_rtt_ms <= 10000 ms",
        )
    if not 0 <= jitter_ms <= rtt_ms / 2:
        raise InvalidInput(
            f"a jitter of {jitter_ms} ms does not fit a one-way delay of {rtt_ms / 2:g} ms",
            hint="give 0 up to half of the round-trip time",
        )
    names = [f"edge-{number}" for number in range(1, edges + 1)]
    access = Shape(delay_ms=rtt_ms / 2, jitter_ms=jitter_ms, loss_percent=loss_percent, rate_mbps=rate_mbps)
    wan = Shape(delay_ms=(cloud_ms - rtt_ms) / 2, rate_mbps=inter_edge_mbps)

    def cable(a: str, b: str, network: str, shape: Shape) -> Link:
        a_address, b_address = f"{network}.1/24", f"{network}.2/24"
        return Link(a=a, b=b, a_address=a_address, b_address=b_address, a_to_b=shape, b_to_a=shape)

    return Topology(
        name="cloud_edge",
        summary=SUMMARY,
        nodes=(
            Node(name="client"),
            Node(name="access", kind=NodeKind.ROUTER),
            Node(name="metro", kind=NodeKind.ROUTER),
            Node(name="core", kind=NodeKind.ROUTER),
            Node(name="cloud", kind=NodeKind.EDGE),
            *(Node(name=name, kind=NodeKind.EDGE) for name in names),
            Node(name="orch"),
            Node(name="dns"),
        ),
        links=(
            cable("access", "client", "10.1.0", access),
            cable("access", "metro", "10.2.0", Shape()),
            cable("metro", "core", "10.2.1", wan),
            cable("core", "cloud", "10.0.0", Shape()),
            *(cable("metro", name, f"10.0.{number}", Shape()) for number, name in enumerate(names, 1)),
            cable("core", "orch", "10.0.80", Shape()),
            cable("core", "dns", "10.0.81", Shape()),
        ),
        parts={
            "client": "client",
            "source": "cloud",
            "destination": "edge-1",
            "orchestrator": "orch",
            "dns": "dns",
        },
        pool=tuple(names),
        service_addresses={name: f"10.0.{number}.2" for number, name in enumerate(["cloud", *names])},
    )


SUMMARY = "a cloud far away in which the server runs first, and edges near the client"

FAMILY = Family(
    name="cloud_edge",
    summary=SUMMARY,
    parameters=(
        Parameter(
            name="edges", default=1, summary=f"how many edges there are beside the cloud, 1 to {MOST_EDGES}"
        ),
        Parameter(name="rtt_ms", default=18.0, summary="round-trip time client to edge"),
        Parameter(name="source_rtt_ms", default=None, summary="the same to the cloud; none: wan_rtt_ms more"),
        Parameter(name="wan_rtt_ms", default=40.0, summary="what the way to the cloud adds"),
        Parameter(name="jitter_ms", default=0.0, summary="standard deviation of the client's one-way delay"),
        Parameter(name="loss_percent", default=0.0, summary="packets lost on the client's link, each way"),
        Parameter(name="rate_mbps", default=None, summary="rate of the client's link; none: unlimited"),
        Parameter(name="inter_edge_mbps", default=1000.0, summary="rate of the way between cloud and edges"),
    ),
    builder=build,
)

topos = FAMILY.mininet_topos()
