"""``quic-reconnect`` for the registry."""

from __future__ import annotations

import msgspec

from apps.config import ClientConfig
from baselines.dns.deployment import DnsDeployment, patience_s
from baselines.dns.services import resolver_config
from baselines.quic_reconnect.config import ReconnectConfig
from baselines.registry import MANY_CLIENTS, MANY_MOVES, Baseline
from quicferry.experiment.context import RunContext


def client(context: RunContext, config: ClientConfig) -> ReconnectConfig:
    """What the client is told: the load of every client, and the axes of this one."""
    spec = context.spec
    common = msgspec.structs.asdict(config) | {"patience_s": patience_s(context), "extension": False}
    return ReconnectConfig(
        **common,
        resolver=resolver_config(context),
        request_timeout_ms=spec.request_timeout_ms,
        early_data=spec.tls_resumption,
    )


def deploy(context: RunContext) -> DnsDeployment:
    """The deployment of a run of stock QUIC with DNS."""
    return DnsDeployment(
        context,
        server="apps.server.server",
        client="baselines.quic_reconnect.client",
        config=client,
        tickets=context.spec.tls_resumption,
    )


BASELINE = Baseline(
    name="quic-reconnect",
    title="QUIC, reconnecting",
    summary="Stock QUIC; the connection is left behind, the client resolves the name and makes a new one.",
    reads=frozenset({"dns_ttl_s", "dns_cache", "request_timeout_ms", "tls_resumption"}),
    deployment=deploy,
    needs=("dns",),
    honours=MANY_CLIENTS | MANY_MOVES,
)
