"""Telling routers of an address: again until all have answered, the latest word wins, and it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec

from quicferry.events import Event, EventLog
from quicferry.migration.datagrams.moving_address import (
    REPEAT_S,
    MovingAddress,
    MovingAddressConfig,
    RouteUpdate,
)
from quicferry.model import Endpoint


class DeafAtFirst(asyncio.DatagramProtocol):
    """A router that answers from the ``hears``-th datagram on."""

    def __init__(self, hears: int) -> None:
        self._hears = hears
        self.heard: list[RouteUpdate] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # a cast: asyncio's own class is no subclass of DatagramTransport before Python 3.12
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.heard.append(msgspec.json.decode(data, type=RouteUpdate))
        if len(self.heard) >= self._hears:
            self.transport.sendto(b"noise", addr)
            self.transport.sendto(data, addr)

    @property
    def endpoint(self) -> Endpoint:
        host, port = self.transport.get_extra_info("sockname")
        return Endpoint(host, port)


async def routers(*hears: int) -> list[DeafAtFirst]:
    loop = asyncio.get_running_loop()
    made = []
    for each in hears:
        _, protocol = await loop.create_datagram_endpoint(
            lambda each=each: DeafAtFirst(each),  # type: ignore[misc] # the loop's variable
            local_addr=("127.0.0.1", 0),
        )
        made.append(protocol)
    return made


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - what a stand-in has heard sets no event
            await asyncio.sleep(0.005)


def test_each_router_is_told_until_it_answers_and_no_longer() -> None:
    async def play() -> None:
        events: list[Event] = []
        quick, slow = await routers(1, 3)
        config = MovingAddressConfig(address="192.0.2.1", routers=[quick.endpoint, slow.endpoint])
        address = MovingAddress("edge-2", config, EventLog("edge-2", sink=events.append))
        await address.start()
        address.announce(2)
        await until(lambda: len(slow.heard) >= 3)
        await asyncio.sleep(2 * REPEAT_S)  # on a busy machine one more may be on its way
        heard = (len(quick.heard), len(slow.heard))
        await asyncio.sleep(4 * REPEAT_S)
        assert (len(quick.heard), len(slow.heard)) == heard
        assert 1 <= heard[0] <= heard[1]
        assert {update for router in (quick, slow) for update in router.heard} == {
            RouteUpdate(number=2, address="192.0.2.1", edge="edge-2")
        }
        assert [event.detail["attempt"] for event in events] == list(range(1, len(events) + 1))
        assert len(events) >= 3
        assert {event.name for event in events} == {"route.update.sent"}
        await address.close()
        quick.transport.close()
        slow.transport.close()

    asyncio.run(play())


def test_a_later_word_takes_the_place_of_an_earlier_one() -> None:
    async def play() -> None:
        (router,) = await routers(1_000)
        config = MovingAddressConfig(address="192.0.2.1", routers=[router.endpoint])
        address = MovingAddress("edge-2", config, EventLog("edge-2"))
        await address.start()
        address.announce(2)
        await until(lambda: len(router.heard) >= 2)
        address.announce(3)
        await until(lambda: router.heard[-1].number == 3)
        await asyncio.sleep(2 * REPEAT_S)
        numbers = [update.number for update in router.heard]
        assert numbers == sorted(numbers)
        await address.close()
        heard = len(router.heard)
        await asyncio.sleep(2 * REPEAT_S)
        assert len(router.heard) == heard
        router.transport.close()

    asyncio.run(play())
