"""``tcp-dns-hasty``: TCP with DNS whose client gives a connection up after 200 ms without an answer.

What a client can win that does not wait for the kernel's timers, and nothing more: the server moves, its name
is updated and resolved as with ``tcp-dns``.
"""

from __future__ import annotations

import msgspec

from apps.config import ClientConfig
from baselines import Baseline
from baselines.dns.deployment import DnsDeployment
from baselines.tcp_dns import baseline as tcp_dns
from quicferry.experiment.context import RunContext

PATIENCE_MS = 200.0


def client(context: RunContext, config: ClientConfig) -> ClientConfig:
    """What the client is told: as with tcp-dns, but for its patience."""
    return msgspec.structs.replace(tcp_dns.client(context, config), request_timeout_ms=PATIENCE_MS)


def deploy(context: RunContext) -> DnsDeployment:
    """The services of a run: those of tcp-dns with a client of ours."""
    return DnsDeployment(
        context, server="baselines.tcp_dns.server", client="baselines.tcp_dns.client", config=client
    )


BASELINE = Baseline(
    name="tcp-dns-hasty",
    title="TCP with DNS, hasty",
    summary="As tcp-dns, with a client that gives a connection up after 200 ms without an answer.",
    deployment=deploy,
    needs=tcp_dns.BASELINE.needs,
    reads=tcp_dns.BASELINE.reads - {"request_timeout_ms"},
)
