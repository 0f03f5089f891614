"""``tcp-dns`` for the registry."""

from __future__ import annotations

import msgspec

from apps.config import ClientConfig
from baselines.dns.deployment import DnsDeployment, patience_s
from baselines.dns.services import resolver_config
from baselines.registry import MANY_CLIENTS, MANY_MOVES, Baseline
from baselines.tcp_dns.config import TcpClientConfig
from quicferry.experiment.context import RunContext


def client(context: RunContext, config: ClientConfig) -> TcpClientConfig:
    """What the client is told: the load of every client, and the axes of this one."""
    spec = context.spec
    common = msgspec.structs.asdict(config) | {"patience_s": patience_s(context)}
    return TcpClientConfig(
        **common,
        resolver=resolver_config(context),
        tcp_user_timeout_ms=spec.tcp_user_timeout_ms,
        request_timeout_ms=spec.request_timeout_ms,
        tls_resumption=spec.tls_resumption,
    )


def deploy(context: RunContext) -> DnsDeployment:
    """The deployment of a run of TCP with DNS."""
    return DnsDeployment(
        context, server="baselines.tcp_dns.server", client="baselines.tcp_dns.client", config=client
    )


BASELINE = Baseline(
    name="tcp-dns",
    title="TCP with DNS",
    summary="HTTP/1.1 over TLS 1.3; connections die with the move, the client resolves the name again.",
    reads=frozenset(
        {"dns_ttl_s", "dns_cache", "tcp_user_timeout_ms", "request_timeout_ms", "tls_resumption"}
    ),
    honours=MANY_CLIENTS | MANY_MOVES,
    deployment=deploy,
    needs=("dns",),
)
