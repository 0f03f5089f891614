"""The server of ip-move-tcp: that of TCP with DNS, whose connections CRIU takes along.

python -m baselines.ip_move.tcp_server --config FILE
"""

from __future__ import annotations

from apps.server.shell import run_server
from baselines.tcp_dns.server import TcpServer


class MovingTcpServer(TcpServer):
    """A ``TcpServer`` whose connections stay open, as its address moves with it."""

    keeps_connections = True


def main() -> None:
    """Run a TCP server until ordered to stop."""
    run_server(MovingTcpServer, "baselines.ip_move.tcp_server")


if __name__ == "__main__":
    main()
