"""An address that moves with the server: on which host it is, and who tells the routers.

The address stands on the loopback interface of the host that has it. Leaving a host means that
packets for it are dropped there without an answer: a host that is no router says nothing about
addresses it does not have, so no reset and no ICMP error reaches the client. Routers are told by one
datagram each, which is sent again until it is answered; ``RouteUpdate`` is its content.
"""

from __future__ import annotations

import asyncio
import errno
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from quicferry.errors import MigrationError
from quicferry.events import EventLog
from quicferry.model import Endpoint

if TYPE_CHECKING:
    from pyroute2 import IPRoute

REPEAT_S = 0.05
GIVE_UP_S = 5.0
_LOOPBACK = 1  # its index in every network namespace
_HOST_BITS = {4: 32, 6: 128}


class RouteUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """Tells a router at which edge the address is. ``number`` only grows; a smaller one is ignored."""

    number: int
    address: str
    edge: str


class MovingAddressConfig(msgspec.Struct, frozen=True, kw_only=True):
    """The address, and where the processes listen that change the routers' routes."""

    address: str
    routers: list[Endpoint] = []
    here: bool = False  # whether this host has it at the start


class _Answers(asyncio.DatagramProtocol):
    """Collects the routers' answers."""

    def __init__(self) -> None:
        self.heard: set[tuple[tuple[str, int], int]] = set()
        self.come = asyncio.Event()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        """Note which router has answered which update."""
        try:
            answer = msgspec.json.decode(data, type=RouteUpdate)
        except msgspec.DecodeError:
            return
        self.heard.add((addr[:2], answer.number))
        self.come.set()

    def error_received(self, exc: Exception) -> None:
        """Ignore that nobody listens there yet: the update is sent again."""


class MovingAddress:
    """The moving address as one edge host's agent handles it."""

    def __init__(self, edge: str, config: MovingAddressConfig, events: EventLog) -> None:
        self._edge = edge
        self._config = config
        self._events = events
        self._announcing: asyncio.Task[None] | None = None
        # pyroute2's synchronous calls run an event loop of their own
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="address")
        self._netlink: IPRoute | None = None
        self._answers: _Answers | None = None
        self._transport: asyncio.DatagramTransport | None = None

    async def start(self) -> None:
        """Open the sockets, and take the address if this host has it at the start."""
        loop = asyncio.get_running_loop()
        self._transport, self._answers = await loop.create_datagram_endpoint(
            _Answers, local_addr=("::" if ":" in self._config.address else "0.0.0.0", 0)
        )
        if self._config.here:
            await self.take()

    async def take(self) -> None:
        """Add the address to this host; nothing when it is there. Raises ``MigrationError``."""
        if await self._change("add", errno.EEXIST):
            self._events.emit("address.attached", address=self._config.address, edge=self._edge)

    async def leave(self) -> None:
        """Remove the address from this host; nothing when it is gone. Raises ``MigrationError``."""
        if await self._change("del", errno.EADDRNOTAVAIL):
            self._events.emit("address.detached", address=self._config.address, edge=self._edge)

    def announce(self, number: int) -> None:
        """Tell the routers in the background that the address is here, until all have answered."""
        if self._announcing is not None:
            self._announcing.cancel()
        self._announcing = asyncio.get_running_loop().create_task(self._announce(number))

    async def close(self) -> None:
        """Stop announcing and close the sockets; the address stays where it is."""
        if self._announcing is not None:
            self._announcing.cancel()
            with suppress(asyncio.CancelledError):
                await self._announcing
        if self._transport is not None:
            self._transport.close()
        if self._netlink is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._netlink.close)
        self._thread.shutdown()

    async def _change(self, do: str, already: int) -> bool:
        """Add or remove the address, in the thread that owns the netlink socket."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._changed, do, already)

    def _changed(self, do: str, already: int) -> bool:
        """Add or remove the address; False when nothing was to be done. Raises ``MigrationError``."""
        # takes 0.2 s to load; every agent reads this module, and few have an address that moves
        from pyroute2 import IPRoute
        from pyroute2.netlink.exceptions import NetlinkError

        address = self._config.address
        length = _HOST_BITS[6 if ":" in address else 4]
        try:
            if self._netlink is None:
                self._netlink = IPRoute()
            self._netlink.addr(do, index=_LOOPBACK, address=address, prefixlen=length)
        except NetlinkError as error:
            if error.code == already:
                return False
            raise MigrationError(f"{address} at {self._edge}: {error}") from error
        return True

    async def _announce(self, number: int) -> None:
        """Send the update to every router until each has answered, at most ``GIVE_UP_S``."""
        assert self._transport is not None and self._answers is not None
        update = RouteUpdate(number=number, address=self._config.address, edge=self._edge)
        data = msgspec.json.encode(update)
        waiting = {(endpoint.host, endpoint.port) for endpoint in self._config.routers}
        attempt = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVE_UP_S):
                while waiting:
                    attempt += 1
                    self._answers.come.clear()
                    # before it leaves: a stamp taken afterwards may lie anywhere on its way on a busy machine
                    self._events.emit(
                        "route.update.sent", address=update.address, edge=self._edge, attempt=attempt
                    )
                    for router in waiting:
                        self._transport.sendto(data, router)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(REPEAT_S):
                            while waiting:
                                await self._answers.come.wait()
                                self._answers.come.clear()
                                waiting -= {where for where, what in self._answers.heard if what == number}
