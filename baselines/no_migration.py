"""``no-migration``: the reference run. Everything is there, the server stays where it is.

What the client sees is what the network, the machine and the load give when nothing is disturbed.
"""

from __future__ import annotations

from typing import Any

from apps.deployment.quic import QuicDeployment
from baselines.registry import MANY_CLIENTS, Baseline


class StayingDeployment(QuicDeployment):
    """The deployment of a run with a strategy, whose server is never ordered to move."""

    server_moves = False

    def move(self) -> dict[str, Any]:
        """Do nothing: the load continues."""
        return {}


BASELINE = Baseline(
    name="no-migration",
    title="no migration",
    summary="The server stays; what the client sees then is what a move can at best leave it with.",
    deployment=StayingDeployment,
    moves=False,
    honours=MANY_CLIENTS,
    refuses={
        "inter_edge_mbps": "inter_edge_mbps shapes a link that nothing crosses: the server stays where it is"
    },
)
