"""``no-migration``: the reference run. Everything is there, the server stays where it is.

What the client sees is what the network, the machine and the load give when nothing is disturbed.
"""

from __future__ import annotations

from typing import Any

from apps.deployment.quic import QuicCast
from baselines.registry import Baseline
from quicferry.experiment.context import RunContext


class StayingCast(QuicCast):
    """The cast of a strategy that gets no order."""

    def move(self) -> dict[str, Any]:
        """Does nothing: the load goes on."""
        return {}


def make_cast(context: RunContext) -> StayingCast:
    """The cast of a run in which nothing moves."""
    return StayingCast(context)


BASELINE = Baseline(
    name="no-migration",
    title="no migration",
    summary="The server stays; what the client sees then is what a move can at best leave it with.",
    make_cast=make_cast,
    moves=False,
)
