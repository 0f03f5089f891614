"""``far_edge``: the server leaves an edge beside the client for a far one, as when it is scaled down to a
regional site at night.
"""

from __future__ import annotations

import topologies
from quicferry.model import Topology
from topologies import Family, Parameter


def build(*, rtt_ms: float = 18.0) -> Topology:
    """The network of two_edges with 2 ms to the source. Raises ``InvalidInput``."""
    return topologies.get("two_edges").build(rtt_ms=rtt_ms, source_rtt_ms=2.0)


FAMILY = Family(
    name="far_edge",
    summary="as two_edges, but the server leaves an edge beside the client for a far one",
    parameters=(Parameter(name="rtt_ms", default=18.0, summary="client to the far edge, round trip"),),
    builder=build,
)
