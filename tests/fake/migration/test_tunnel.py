"""The tunnel between CRIU's page server and its daemon: what goes in comes out, whatever the streams do."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from quicferry.errors import MigrationError
from quicferry.migration.rpc.channel import Unreachable
from quicferry.migration.rpc.tunnel import Tunnel, tell_over
from quicferry.migration.rpc.tunnel_messages import TunnelData, TunnelMessage, TunnelOpen, TunnelOver

EPOCH = 7
Serve = Callable[
    [AsyncIterator[TunnelMessage], Callable[[TunnelMessage], Awaitable[None]]], Awaitable[object]
]


class Stream:
    """A stream between the two ends that breaks after so many messages from the source."""

    def __init__(self, serve: Serve, lasts: float) -> None:
        self._requests: asyncio.Queue[TunnelMessage | None] = asyncio.Queue()
        self._answers: asyncio.Queue[TunnelMessage | MigrationError] = asyncio.Queue(4)
        self._lasts = lasts
        self._serving = asyncio.create_task(self._serve(serve))

    async def _serve(self, serve: Serve) -> None:
        async def requests() -> AsyncIterator[TunnelMessage]:
            while (request := await self._requests.get()) is not None:
                yield request

        try:
            await serve(requests(), self._answers.put)
        except MigrationError as error:
            await self._answers.put(error)

    async def write(self, message: TunnelMessage) -> None:
        await self._requests.put(message)

    async def read(self) -> TunnelMessage:
        answer = await self._answers.get()
        self._lasts -= 1
        if isinstance(answer, MigrationError):
            raise answer
        if self._lasts < 0:
            raise Unreachable("cut off")
        return answer

    def cancel(self) -> None:
        """What was written may still arrive after this, as on a network."""
        self._requests.put_nowait(None)


class Ends:
    """Two tunnels, the programs' ends of their sockets, and what opens a stream."""

    def __init__(self, lasts: Callable[[], float]) -> None:
        self.lasts = lasts
        self.opened = 0
        self.server, here = socket.socketpair()
        self.client, there = socket.socketpair()
        for end in (self.server, self.client, here, there):
            end.setblocking(False)
        self.source, self.destination = Tunnel(EPOCH, here), Tunnel(EPOCH, there)

    async def serve(
        self,
        requests: AsyncIterator[TunnelMessage],
        send: Callable[[TunnelMessage], Awaitable[None]],
    ) -> None:
        first = await anext(requests)
        assert isinstance(first, TunnelOpen)
        await self.source.serve(first, requests, send)

    def open(self) -> Stream:
        self.opened += 1
        return Stream(self.serve, self.lasts())

    async def close(self) -> None:
        await self.source.close()
        await self.destination.close()
        self.server.close()
        self.client.close()


async def answer_all(server: socket.socket) -> None:
    """Answer each request of four bytes, a size, with as many bytes."""
    loop = asyncio.get_running_loop()
    heard = b""
    while data := await loop.sock_recv(server, 1000):
        heard += data
        while len(heard) >= 4:
            size, heard = int.from_bytes(heard[:4], "big"), heard[4:]
            await loop.sock_sendall(server, size.to_bytes(4, "big") * (size // 4))


async def ask(client: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(client, size.to_bytes(4, "big"))
    got = b""
    while len(got) < size:
        got += await loop.sock_recv(client, size - len(got))
    return got


@pytest.mark.parametrize("seed", range(4))
def test_streams_may_break_at_any_time(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [4 * chance.randint(1, 100_000) for _ in range(40)]

    async def play() -> None:
        ends = Ends(lambda: chance.randint(0, 12))
        serving = asyncio.create_task(answer_all(ends.server))
        carrying = asyncio.create_task(ends.destination.carry(ends.open))
        for size in sizes:
            assert await asyncio.wait_for(ask(ends.client, size), 10) == size.to_bytes(4, "big") * (size // 4)
        assert ends.opened > 3
        assert ends.source.sent_bytes == sum(sizes)
        assert ends.destination.sent_bytes == 4 * len(sizes)
        carrying.cancel()
        await asyncio.wait([carrying])
        await ends.close()
        await asyncio.wait([serving])

    asyncio.run(play())


def test_more_than_is_kept_waits_for_the_other_end() -> None:
    async def play() -> None:
        ends = Ends(lambda: float("inf"))
        loop = asyncio.get_running_loop()
        sending = asyncio.create_task(loop.sock_sendall(ends.server, bytes(20 << 20)))
        await asyncio.wait([sending], timeout=0.3)
        assert not sending.done()
        assert ends.source.sent_bytes < 8 << 20
        carrying = asyncio.create_task(ends.destination.carry(ends.open))
        got = 0
        while got < 20 << 20:
            got += len(await asyncio.wait_for(loop.sock_recv(ends.client, 1 << 20), 10))
        await sending
        carrying.cancel()
        await asyncio.wait([carrying])
        await ends.close()

    asyncio.run(play())


def test_the_end_of_one_program_is_told_to_the_other() -> None:
    async def play() -> None:
        ends = Ends(lambda: float("inf"))
        loop = asyncio.get_running_loop()
        carrying = asyncio.create_task(ends.destination.carry(ends.open))
        await loop.sock_sendall(ends.server, b"last words")
        ends.server.shutdown(socket.SHUT_WR)
        heard = b""
        while data := await asyncio.wait_for(loop.sock_recv(ends.client, 100), 10):
            heard += data
        assert heard == b"last words"
        carrying.cancel()
        await asyncio.wait([carrying])
        await ends.close()

    asyncio.run(play())


def test_a_source_that_refuses_ends_it() -> None:
    async def refuse(requests: object, send: object) -> None:
        raise MigrationError("the page server is gone")

    async def play() -> None:
        ends = Ends(lambda: float("inf"))
        with pytest.raises(MigrationError, match="page server is gone"):
            await asyncio.wait_for(ends.destination.carry(lambda: Stream(refuse, float("inf"))), 10)
        await ends.close()

    asyncio.run(play())


def test_what_makes_no_sense_is_refused() -> None:
    async def play() -> None:
        ends = Ends(lambda: float("inf"))
        wrong: list[TunnelMessage] = [
            TunnelData(offset=5, data=b"", received=0),  # something is missing
            TunnelData(offset=0, data=b"", received=9),  # acknowledges what was not sent
            TunnelOver(epoch=EPOCH),
        ]
        for message in wrong:

            async def serve(
                requests: AsyncIterator[TunnelMessage],
                send: Callable[[TunnelMessage], Awaitable[None]],
                message: TunnelMessage = message,
            ) -> None:
                await send(TunnelOpen(epoch=EPOCH, received=0))
                await send(message)

            with pytest.raises(MigrationError):
                await asyncio.wait_for(
                    ends.destination.carry(lambda serve=serve: Stream(serve, float("inf"))), 10
                )
        await ends.close()

    asyncio.run(play())


def test_the_end_is_told_until_it_was_heard() -> None:
    told: list[TunnelMessage] = []

    async def serve(
        requests: AsyncIterator[TunnelMessage], send: Callable[[TunnelMessage], Awaitable[None]]
    ) -> None:
        told.append(await anext(requests))
        await send(TunnelOver(epoch=EPOCH))

    async def play() -> None:
        lasts = iter((0, 0, 1))
        over = TunnelOver(epoch=EPOCH, error="no memory")
        await asyncio.wait_for(tell_over(lambda: Stream(serve, next(lasts)), over), 10)
        assert told == [over] * 3

    asyncio.run(play())
