"""From axes to the network of a run."""

from __future__ import annotations

import topologies
from quicferry.model import Topology
from quicferry.record import Asked

_DEFAULTS = Asked()

#: the axes that shape the network; a topology may know only some of them
_TOPOLOGY_AXES = (
    *("rtt_ms", "source_rtt_ms", "jitter_ms", "loss_percent"),
    *("rate_mbps", "inter_edge_mbps", "pool"),
)


def build_topology(asked: Asked) -> Topology:
    """The topology that was asked for, with its links shaped. Raises ``InvalidInput``."""
    family = topologies.get(asked.topology)
    return family.build_from_axes(
        {axis: getattr(asked, axis) for axis in _TOPOLOGY_AXES},
        {axis: getattr(_DEFAULTS, axis) for axis in _TOPOLOGY_AXES},
    )
