"""What the client of TCP with DNS is told, and how it is set."""

from __future__ import annotations

from apps.config import ClientConfig
from baselines.dns.config import ResolverConfig

ALPN_HTTP = "http/1.1"
PATH = "/exchange"
#: As many connections to one server as browsers open: HTTP/1.1 answers one request at a time on each.
MOST_CONNECTIONS = 6


class TcpClientConfig(ClientConfig, frozen=True, kw_only=True):
    """A client over TCP. ``server`` gives the port; the address comes from the resolver if there is one."""

    resolver: ResolverConfig | None = None  # None: the server keeps its address
    protocol: int = 0  # of the sockets; 0: TCP
    tcp_user_timeout_ms: float = 1000.0
    request_timeout_ms: float = 1000.0
    tls_resumption: bool = False
    most_connections: int = MOST_CONNECTIONS
    warm: bool = False  # all of them are opened at the start, not when they are needed
