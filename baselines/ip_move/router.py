"""Changes a router's route to the service's address when it is told where that is now.

    python -m baselines.ip_move.router --config FILE

One per router, on the router. It sets the first route, says ``{"ready": …}``, and then obeys
``RouteUpdate`` datagrams (``quicferry.migration.datagrams.moving_address``) by a host route to the edge
that is named, and answers each with the same content. Its stdout is JSON lines, as that of an agent.
SIGTERM ends it.
"""

from __future__ import annotations

import signal
import socket
import sys
from types import FrameType

import msgspec
from pyroute2 import IPRoute

from apps.config import read_config
from apps.reporting import event_log, tell
from quicferry.migration.datagrams.moving_address import RouteUpdate
from quicferry.model import Endpoint
from quicferry.units import now_ns

NS_PER_US = 1_000
LARGEST = 1500


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """A router's side. ``gateways`` says where the way to each edge begins."""

    vantage: str
    listen: Endpoint
    address: str  # the service's
    edge: str  # where it is at first
    gateways: dict[str, str]


class Router:
    """The route of one address on this router."""

    def __init__(self, config: RouterConfig, netlink: IPRoute) -> None:
        self._config = config
        self._netlink = netlink
        self._events = event_log(config.vantage, None)
        self._latest = 0
        self._set(config.edge)

    def _set(self, edge: str) -> None:
        address = self._config.address
        family, bits = (socket.AF_INET6, 128) if ":" in address else (socket.AF_INET, 32)
        self._netlink.route(
            "replace", family=family, dst=f"{address}/{bits}", gateway=self._config.gateways[edge]
        )

    def obey(self, data: bytes) -> bytes | None:
        """Handle one datagram; returns the answer, None for what is no update for this address."""
        begun_ns = now_ns()
        try:
            update = msgspec.json.decode(data, type=RouteUpdate)
        except msgspec.DecodeError:
            return None
        if update.address != self._config.address or update.edge not in self._config.gateways:
            return None
        if update.number > self._latest:  # a duplicate or an older one is answered only
            self._latest = update.number
            self._set(update.edge)
            self._events.emit(
                "route.updated",
                address=update.address,
                gateway=self._config.gateways[update.edge],
                took_us=(now_ns() - begun_ns) / NS_PER_US,
            )
        return data


def serve(config: RouterConfig) -> None:
    """Change the route as ``RouteUpdate`` datagrams say, until SIGTERM."""

    def end(_number: int, _frame: FrameType | None) -> None:
        sys.exit(0)

    signal.signal(signal.SIGTERM, end)
    netlink = IPRoute()
    try:
        router = Router(config, netlink)
        family = socket.AF_INET6 if config.listen.is_ipv6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as port:
            port.bind((config.listen.host, config.listen.port))
            tell("ready", {"name": config.vantage})
            while True:
                data, sender = port.recvfrom(LARGEST)
                answer = router.obey(data)
                if answer is not None:
                    port.sendto(answer, sender)
    finally:
        netlink.close()


def main() -> None:
    """Set the router's route, and change it as told, until SIGTERM."""
    serve(read_config("baselines.ip_move.router", RouterConfig))


if __name__ == "__main__":
    main()
