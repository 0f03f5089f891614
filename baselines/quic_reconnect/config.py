"""What the client is told."""

from __future__ import annotations

from apps.config import ClientConfig
from baselines.dns.config import ResolverConfig

#: After how many PTOs without a packet a client that waits for one holds its connection for dead. RFC
#: 9002 §7.6.1 takes the same time for the sign that the network has stopped delivering.
SILENT_PTOS = 3


class ReconnectConfig(ClientConfig, frozen=True, kw_only=True):
    """A client of stock QUIC. ``server`` gives the port; the address comes from the resolver."""

    resolver: ResolverConfig
    request_timeout_ms: float = 1000.0
    early_data: bool = False  # resume the TLS session and send requests as 0-RTT data
