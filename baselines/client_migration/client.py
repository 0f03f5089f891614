"""The client of client-migration: stock QUIC, and on SIGUSR1 it goes on from its second address.

    python -m baselines.client_migration.client --config FILE

It begins with a new connection ID, as RFC 9000 §9.5 asks for, and a packet that is no probe, which
makes the server validate the new path and follow. What still comes to the old address is read.
"""

from __future__ import annotations

import asyncio

from apps.client.client import Client, address_text
from apps.config import ClientConfig, read_config
from apps.reporting import print_event
from apps.udp import Datagram, UdpPort
from quicferry.events import EventLog
from quicferry.model import Endpoint

STRAGGLERS_S = 1.0  # how long the old address is listened at: many round trips


class MovingClientConfig(ClientConfig, frozen=True, kw_only=True):
    """A client with two addresses of its own."""

    first: str
    second: str


class MovingClient(Client):
    """One client process."""

    def __init__(self, config: MovingClientConfig, events: EventLog) -> None:
        super().__init__(config, events)
        self._second = config.second
        self.port.close()
        self.port = UdpPort(Endpoint(config.first, 0), self._received, stamped=True)
        self._former: UdpPort | None = None
        self._answered = False

    async def run(self) -> None:
        """As every client; SIGUSR1 changes the address, once."""
        await super().run()
        self._forget()

    def address_has_changed(self) -> None:
        """SIGUSR1: where other clients are told that their host has moved, this one goes by itself."""
        if self._former is not None:
            return
        self._former = self.port
        self.port = UdpPort(Endpoint(self._second, 0), self._received_there, stamped=True)
        self.port.start()
        old, new = (address_text(port.socket.getsockname()) for port in (self._former, self.port))
        self.events.emit("client.address.changed", old=old, new=new)
        self.connection.change_connection_id()
        self._proceed()
        asyncio.get_running_loop().call_later(STRAGGLERS_S, self._forget)

    def _received_there(self, batch: list[Datagram]) -> None:
        if not self._answered:
            self._answered = True
            address = address_text(self.port.socket.getsockname())
            self.events.emit("client.address.answered", t_ns=batch[0].received_ns, address=address)
        self._received(batch)

    def _forget(self) -> None:
        if self._former is not None:
            self._former.close()


async def serve(config: MovingClientConfig) -> None:
    """Run a client to its end."""
    await MovingClient(config, EventLog("client", sink=print_event)).run()


def main() -> None:
    """Run the client and its load until told to stop."""
    asyncio.run(serve(read_config("baselines.client_migration.client", MovingClientConfig)))


if __name__ == "__main__":
    main()
