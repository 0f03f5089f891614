"""How an agent misbehaves on demand: for fault injection, and for nothing else.

Two things, both empty in a normal configuration. An agent can *stop itself* (SIGSTOP) directly
after it told of an event, so that whoever injects a fault finds the move at exactly that point; the
injector lets it go on. And it can *damage* what it sends, before the freeze, in the downtime or after
the commit: nothing else could, as the network between the agents carries TLS. Everything else that
goes wrong is done to the agent from outside.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec

from quicferry.events import Event, Sink
from quicferry.migration.memory.page_messages import PageRun
from quicferry.migration.rpc.channel import Duplex, DuplexCall
from quicferry.migration.rpc.messages import Begin, End, Piece, ToDestination, ToSource
from quicferry.migration.rpc.peer import PeerClient


class Failpoints(msgspec.Struct, frozen=True, kw_only=True):
    """The faults that an agent is configured to cause; each happens once."""

    stop_at: list[str] = []  # names of events
    #: where one byte is changed on its way: copy (ahead of the freeze), transfer, pages
    damage: list[str] = []
    #: a server's state is in a file whatever its length, as that is where faults reach it
    state_in_files: bool = False


def stopping(sink: Sink, stop_at: list[str]) -> Sink:
    """A sink that sends this process SIGSTOP after the first of each of these events."""
    left = set(stop_at)

    def tell(event: Event) -> None:
        sink(event)
        if event.name in left:
            left.discard(event.name)
            os.kill(os.getpid(), signal.SIGSTOP)

    return tell


class DamagingClient(PeerClient):
    """A channel whose streams of state arrive with one byte changed, once for each place in ``damage``."""

    damage: frozenset[str] = frozenset()

    def open(self, method: Duplex[Any, Any], *, timeout_s: float) -> DuplexCall[Any, Any]:
        """As ``RpcClient.open``; the stream changes one byte."""
        return cast("DuplexCall[Any, Any]", _DamagingCall(super().open(method, timeout_s=timeout_s), self))


class _DamagingCall:
    """A stream that changes one byte of the first piece; all other calls go to the stream itself."""

    def __init__(self, call: DuplexCall[ToDestination, ToSource], client: DamagingClient) -> None:
        self._call = call
        self._client = client
        self._at = "copy"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def write(self, message: ToDestination) -> None:
        """Send one message, the first piece at a configured place with a byte changed; End may carry one."""
        if isinstance(message, Begin):
            self._at = "transfer"
        if isinstance(message, Piece | End) and message.data and self._at in self._client.damage:
            self._client.damage -= {self._at}
            message = msgspec.structs.replace(message, data=changed(message.data))
        await self._call.write(message)


class DamagingSender:
    """Sends pages, with one byte of the first changed."""

    def __init__(self) -> None:
        self._damaged = False

    def around(self, send: Callable[[PageRun], Awaitable[None]]) -> Callable[[PageRun], Awaitable[None]]:
        """A wrapper of ``send`` that does so."""

        async def damage_and_send(run: PageRun) -> None:
            if not self._damaged and run.data:
                self._damaged = True
                run = msgspec.structs.replace(run, data=changed(run.data))
            await send(run)

        return damage_and_send


def changed(data: bytes) -> bytes:
    """The same bytes with one bit in the middle inverted."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x01]) + data[middle + 1 :]
