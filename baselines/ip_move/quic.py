"""``ip-move-quic`` for the registry."""

from __future__ import annotations

import msgspec

from apps.config import ClientConfig
from baselines.ip_move.deployment import IpMoveDeployment
from baselines.registry import MANY_CLIENTS, Baseline
from quicferry.experiment.context import RunContext


def client(_context: RunContext, config: ClientConfig) -> ClientConfig:
    """Stock QUIC: without the extension."""
    return msgspec.structs.replace(config, extension=False)


def deploy(context: RunContext) -> IpMoveDeployment:
    """The deployment of a run in which a QUIC server's address moves with it."""
    return IpMoveDeployment(context, server="apps.server.server", client="apps.client.client", config=client)


BASELINE = Baseline(
    name="ip-move-quic",
    title="address moves, QUIC",
    summary="Stock QUIC; the routers send what is for the service's address to its new place.",
    honours=MANY_CLIENTS,
    deployment=deploy,
)
