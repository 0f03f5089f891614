"""One LAN: a client, two edges, an orchestrator and a DNS host around one Linux bridge.

The smallest network in which a server can move. The round-trip time, loss and rate sit on the client's
link to the switch, half of the time each way. The edges reach each other across the switch.
Stock Mininet: ``.venv/bin/mn --custom topologies/one_lan.py --topo one_lan`` (with netem).
"""

from __future__ import annotations

from quicferry.errors import InvalidInput
from quicferry.model import Link, Node, NodeKind, Shape, Topology
from topologies.building.family import Family, Parameter


def build(*, rtt_ms: float = 2.0, loss_percent: float = 0.0, rate_mbps: float | None = None) -> Topology:
    """The topology. Raises ``InvalidInput`` for values that no network can have."""
    if not 0 <= rtt_ms <= 10_000:  # also refuses NaN
        raise InvalidInput(f"rtt_ms cannot be {rtt_ms}", hint="give a round-trip time of 0 to 10000 ms")
    shape = Shape(delay_ms=rtt_ms / 2, loss_percent=loss_percent, rate_mbps=rate_mbps)
    hosts = {"client": 2, "edge-1": 11, "edge-2": 12, "orch": 80, "dns": 81}
    return Topology(
        name="one_lan",
        summary=SUMMARY,
        nodes=(
            Node(name="client"),
            Node(name="edge-1", kind=NodeKind.EDGE),
            Node(name="edge-2", kind=NodeKind.EDGE),
            Node(name="orch"),
            Node(name="dns"),
            Node(name="lan", kind=NodeKind.SWITCH),
        ),
        links=tuple(
            Link(
                a=host,
                b="lan",
                a_address=f"10.1.0.{last}/24",
                a_to_b=shape if host == "client" else Shape(),
                b_to_a=shape if host == "client" else Shape(),
            )
            for host, last in hosts.items()
        ),
        parts={
            "client": "client",
            "source": "edge-1",
            "destination": "edge-2",
            "orchestrator": "orch",
            "dns": "dns",
        },
        pool=("edge-2",),
        service_addresses={"edge-1": "10.1.0.11", "edge-2": "10.1.0.12"},
    )


SUMMARY = "client, two edges, orchestrator and DNS host around one Linux bridge"

FAMILY = Family(
    name="one_lan",
    summary=SUMMARY,
    parameters=(
        Parameter(name="rtt_ms", default=2.0, summary="round-trip time of the client's link"),
        Parameter(name="loss_percent", default=0.0, summary="packets lost on the client's link, each way"),
        Parameter(name="rate_mbps", default=None, summary="rate of the client's link; none: unlimited"),
    ),
    builder=build,
)

topos = FAMILY.mininet_topos()
