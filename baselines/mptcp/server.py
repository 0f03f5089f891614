"""The server of the MPTCP baseline: that of TCP with DNS, on sockets of Multipath TCP.

python -m baselines.mptcp.server --config FILE
"""

from __future__ import annotations

import asyncio

from apps.config import ServerConfig, read_config
from baselines.tcp_dns.server import TcpServer
from quicferry.experiment.service_probes import IPPROTO_MPTCP


class MptcpServer(TcpServer):
    """Its connections live on: the kernel gives them new subflows."""

    protocol = IPPROTO_MPTCP
    keeps_connections = True


async def serve(config: ServerConfig) -> None:
    """Run a server to its end."""
    server = MptcpServer(config)
    server.lease.by_kernel = True
    await server.run()


def main() -> None:
    """The process's entry."""
    asyncio.run(serve(read_config("baselines.mptcp.server", ServerConfig)))


if __name__ == "__main__":
    main()
