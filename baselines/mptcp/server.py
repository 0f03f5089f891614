"""The server of the MPTCP baseline: that of TCP with DNS, on sockets of Multipath TCP.

python -m baselines.mptcp.server --config FILE
"""

from __future__ import annotations

from apps.server.shell import run_server
from baselines.tcp_dns.server import TcpServer
from quicferry.experiment.service_probes import IPPROTO_MPTCP


class MptcpServer(TcpServer):
    """A ``TcpServer`` whose connections stay open: the kernel opens new subflows for them."""

    protocol = IPPROTO_MPTCP
    keeps_connections = True


def main() -> None:
    """Run an MPTCP server until ordered to stop."""
    run_server(MptcpServer, "baselines.mptcp.server")


if __name__ == "__main__":
    main()
