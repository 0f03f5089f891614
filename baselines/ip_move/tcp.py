"""``ip-move-tcp`` for the registry."""

from __future__ import annotations

import msgspec

from apps.config import ClientConfig
from baselines.ip_move.deployment import IpMoveDeployment
from baselines.mptcp.baseline import REQUEST_TIMEOUT_MS
from baselines.registry import MANY_CLIENTS, Baseline
from baselines.tcp_dns.config import TcpClientConfig
from quicferry.experiment.context import RunContext
from quicferry.migration.engines.registry import kernel_state_engines


def client(_context: RunContext, config: ClientConfig) -> TcpClientConfig:
    """The client of TCP with DNS, without time-outs: its connections move with the server."""
    return TcpClientConfig(
        **msgspec.structs.asdict(config),
        warm=True,
        tcp_user_timeout_ms=0.0,
        request_timeout_ms=REQUEST_TIMEOUT_MS,
    )


def deploy(context: RunContext) -> IpMoveDeployment:
    """The deployment of a run in which a TCP server's address moves with it."""
    return IpMoveDeployment(
        context,
        server="baselines.ip_move.tcp_server",
        client="baselines.tcp_dns.client",
        config=client,
        keep_tcp=True,
    )


BASELINE = Baseline(
    name="ip-move-tcp",
    title="address moves, TCP",
    summary="TLS 1.3 over TCP; CRIU takes the connections along, the routers follow the address.",
    honours=MANY_CLIENTS,
    deployment=deploy,
    engines=tuple(sorted(kernel_state_engines())),
    why_not="only a dump with --tcp-established takes the kernel's TCP connections along",
)
