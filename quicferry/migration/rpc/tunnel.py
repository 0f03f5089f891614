"""The bytes between CRIU's page server and its lazy-pages daemon, carried from agent to agent.

CRIU's protocol is unprotected and ends with its connection. Here either program has a local socket, and
between the agents the bytes are part of a stream of theirs (mutual TLS). A stream that breaks is opened
again, and goes on where the other end says that it stands; the programs notice nothing but silence.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from quicferry.errors import MigrationError
from quicferry.migration.rpc.channel import Unreachable
from quicferry.migration.rpc.tunnel_messages import (
    TunnelCall,
    TunnelData,
    TunnelMessage,
    TunnelOpen,
    TunnelOver,
)

CHUNK_BYTES = 256 * 1024
KEPT_BYTES = 4 << 20  # not acknowledged: more than CRIU asks for at once
TELL_BYTES = 512 * 1024  # after so many without an answer to go along, the other end is told of them
REOPEN_S = 0.1

Send = Callable[[TunnelMessage], Awaitable[None]]


class Tunnel:
    """One end of a tunnel. ``local``: the non-blocking socket to CRIU here, closed with this object."""

    def __init__(self, epoch: int, local: socket.socket) -> None:
        self._epoch = epoch
        self._local = local
        self._kept = bytearray()  # from the program here, not yet acknowledged
        self._kept_from = 0  # the offset of the first of them
        self._incoming = bytearray()  # for the program here
        self._received = 0
        self._ended = False  # the program here says nothing more
        self._over_there = False  # the program there says nothing more
        self._news = asyncio.Event()  # there may be something to send
        self._room = asyncio.Event()
        self._arrived = asyncio.Event()
        self._pumps = [asyncio.create_task(self._hear()), asyncio.create_task(self._say())]

    @property
    def sent_bytes(self) -> int:
        """How many bytes were read from the program here."""
        return self._kept_from + len(self._kept)

    async def _hear(self) -> None:
        """Read from the program here, and keep the bytes until they are acknowledged."""
        loop = asyncio.get_running_loop()
        while True:
            while len(self._kept) >= KEPT_BYTES:
                self._room.clear()
                await self._room.wait()
            try:
                data = await loop.sock_recv(self._local, CHUNK_BYTES)
            except OSError:
                data = b""
            self._kept += data
            self._ended = not data
            self._news.set()
            if self._ended:
                return

    async def _say(self) -> None:
        """Write to the program here what has come for it."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # it has ended: nobody hears
            while self._incoming or not self._over_there:
                self._arrived.clear()
                piece = bytes(self._incoming[:CHUNK_BYTES])
                if piece:
                    await loop.sock_sendall(self._local, piece)
                    del self._incoming[: len(piece)]
                else:
                    await self._arrived.wait()
            self._local.shutdown(socket.SHUT_WR)

    def _acknowledged(self, offset: int) -> None:
        """Forget the bytes that the other end has. Raises ``MigrationError`` for what cannot be."""
        if not 0 <= offset <= self.sent_bytes:
            raise MigrationError(f"a tunnel has acknowledged {offset} of {self.sent_bytes} bytes")
        if offset > self._kept_from:
            del self._kept[: offset - self._kept_from]
            self._kept_from = offset
            self._room.set()

    def _take(self, message: TunnelMessage) -> None:
        """Take in a message of the other end; bytes that an earlier stream brought are passed over."""
        if not isinstance(message, TunnelData):
            raise MigrationError(f"{type(message).__name__} in the middle of a tunnel")
        self._acknowledged(message.received)
        if message.offset > self._received:
            raise MigrationError(f"a tunnel lacks {message.offset - self._received} bytes")
        new = message.data[self._received - message.offset :]
        self._incoming += new
        self._received += len(new)
        self._over_there = self._over_there or message.last
        self._arrived.set()
        if new:
            self._news.set()

    async def _take_all(self, stream: TunnelCall) -> None:
        """Take in messages until the stream ends."""
        while True:
            self._take(await stream.read())

    async def _send_on(self, offset: int, send: Send) -> None:
        """Send what the program here writes, from that offset on, until this is cancelled."""
        told, said_last = self._received, False
        while offset >= self._kept_from:  # else a newer stream has taken this one's place
            self._news.clear()
            data = bytes(self._kept[offset - self._kept_from :][:CHUNK_BYTES])
            last = self._ended and offset + len(data) == self.sent_bytes
            if data or (last and not said_last) or self._received - told >= TELL_BYTES:
                told, said_last = self._received, last
                await send(TunnelData(offset=offset, data=data, received=told, last=last))
                offset += len(data)
            else:
                await self._news.wait()

    async def serve(self, opened: TunnelOpen, requests: AsyncIterator[TunnelMessage], send: Send) -> None:
        """Serve one stream at the source's end, until it ends."""
        self._acknowledged(opened.received)
        await send(TunnelOpen(epoch=self._epoch, received=self._received))
        sending = asyncio.create_task(self._send_on(opened.received, send))
        try:
            async for message in requests:
                self._take(message)
        finally:
            await _ended(sending)

    async def carry(self, open_stream: Callable[[], TunnelCall]) -> None:
        """Open stream after stream at the destination, until cancelled or refused (``MigrationError``)."""
        while True:
            stream = open_stream()
            try:
                await stream.write(TunnelOpen(epoch=self._epoch, received=self._received))
                answer = await stream.read()
                if not isinstance(answer, TunnelOpen):
                    raise MigrationError(f"{type(answer).__name__} opens a tunnel")
                self._acknowledged(answer.received)
                # a stream that breaks may tell only one of its directions
                ways = [
                    asyncio.create_task(self._send_on(answer.received, stream.write)),
                    asyncio.create_task(self._take_all(stream)),
                ]
                try:
                    done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
                    for way in done:
                        way.result()
                finally:
                    for way in ways:
                        await _ended(way)
            except Unreachable:
                await asyncio.sleep(REOPEN_S)
            finally:
                stream.cancel()

    async def close(self) -> None:
        """Close the socket to the program here."""
        for pump in self._pumps:
            await _ended(pump)
        self._local.close()


async def tell_over(open_stream: Callable[[], TunnelCall], over: TunnelOver) -> None:
    """Tell the source how it ended, repeatedly, until it has answered."""
    while True:
        stream = open_stream()
        try:
            await stream.write(over)
            await stream.read()
            return
        except MigrationError:
            await asyncio.sleep(REOPEN_S)
        finally:
            stream.cancel()


async def _ended(task: asyncio.Task[None]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # of a stream that broke, which the other direction has noticed as well
