"""The server of ip-move-tcp: that of TCP with DNS, whose connections CRIU takes along.

python -m baselines.ip_move.tcp_server --config FILE
"""

from __future__ import annotations

import asyncio

from apps.config import ServerConfig, read_config
from baselines.tcp_dns.server import TcpServer


class MovingTcpServer(TcpServer):
    """Its connections live on, as its address moves with it."""

    keeps_connections = True


async def serve(config: ServerConfig) -> None:
    """Run a server to its end."""
    server = MovingTcpServer(config)
    server.lease.by_kernel = True
    await server.run()


def main() -> None:
    """The process's entry."""
    asyncio.run(serve(read_config("baselines.ip_move.tcp_server", ServerConfig)))


if __name__ == "__main__":
    main()
