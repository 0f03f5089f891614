"""A metro ring: edge sites whose routers form a circle, so that each has two ways to every other.

Drawn and described in ``topologies.building.sites``. The state of the server crosses the links between the
sites, which clients' packets to far edges cross as well. Stock Mininet can build it:
``.venv/bin/mn --custom topologies/ring.py --topo ring,edges=5`` (with netem).
"""

from __future__ import annotations

from quicferry.model import Topology
from topologies.building.sites import MOST_SITES, sites
from topologies.registry import Family, Parameter

LEAST_EDGES = 3


def build(
    *,
    edges: int = 4,
    rtt_ms: float = 18.0,
    hop_rtt_ms: float = 2.0,
    jitter_ms: float = 0.0,
    loss_percent: float = 0.0,
    rate_mbps: float | None = None,
    inter_edge_mbps: float = 1000.0,
) -> Topology:
    """The topology. Raises ``InvalidInput`` for values that no network can have."""
    return sites(
        name="ring",
        summary=SUMMARY,
        edges=edges,
        least=LEAST_EDGES,
        closed=True,
        rtt_ms=rtt_ms,
        hop_rtt_ms=hop_rtt_ms,
        jitter_ms=jitter_ms,
        loss_percent=loss_percent,
        rate_mbps=rate_mbps,
        inter_edge_mbps=inter_edge_mbps,
    )


SUMMARY = "edge sites around a metro ring, the client at the first of them, N edges"

FAMILY = Family(
    name="ring",
    summary=SUMMARY,
    parameters=(
        Parameter(
            name="edges", default=4, summary=f"how many edges there are, {LEAST_EDGES} to {MOST_SITES}"
        ),
        Parameter(name="rtt_ms", default=18.0, summary="round-trip time client to the edge of its site"),
        Parameter(name="hop_rtt_ms", default=2.0, summary="round-trip time between two neighbouring sites"),
        Parameter(name="jitter_ms", default=0.0, summary="standard deviation of the client's one-way delay"),
        Parameter(name="loss_percent", default=0.0, summary="packets lost on the client's link, each way"),
        Parameter(name="rate_mbps", default=None, summary="rate of the client's link; none: unlimited"),
        Parameter(name="inter_edge_mbps", default=1000.0, summary="rate of the links between the sites"),
    ),
    builder=build,
)

topos = FAMILY.mininet_topos()
