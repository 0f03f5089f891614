"""An edge chain along a road: the client drives past the sites, and the server follows it.

Drawn and described in ``topologies.building.sites``. The state of the server crosses the links between the
sites, which clients' packets to far edges cross as well. Stock Mininet can build it:
``.venv/bin/mn --custom topologies/chain.py --topo chain,edges=5`` (with netem).
"""

from __future__ import annotations

from quicferry.model import Topology
from topologies.building.sites import MOST_SITES, sites
from topologies.registry import Family, Parameter

LEAST_EDGES = 2


def build(
    *,
    edges: int = 3,
    rtt_ms: float = 18.0,
    hop_rtt_ms: float = 2.0,
    jitter_ms: float = 0.0,
    loss_percent: float = 0.0,
    rate_mbps: float | None = None,
    inter_edge_mbps: float = 1000.0,
) -> Topology:
    """The topology. Raises ``InvalidInput`` for values that no network can have."""
    return sites(
        name="chain",
        summary=SUMMARY,
        edges=edges,
        least=LEAST_EDGES,
        closed=False,
        rtt_ms=rtt_ms,
        hop_rtt_ms=hop_rtt_ms,
        jitter_ms=jitter_ms,
        loss_percent=loss_percent,
        rate_mbps=rate_mbps,
        inter_edge_mbps=inter_edge_mbps,
    )


SUMMARY = "edge sites along a road, the client at the first of them, N edges"

FAMILY = Family(
    name="chain",
    summary=SUMMARY,
    parameters=(
        Parameter(
            name="edges", default=3, summary=f"how many edges there are, {LEAST_EDGES} to {MOST_SITES}"
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
