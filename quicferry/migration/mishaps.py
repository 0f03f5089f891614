"""How an agent misbehaves on demand: for fault injection, and for nothing else.

Two things only, both empty in a normal configuration. An agent can *stop itself* (SIGSTOP) directly
after it told of an event, so that whoever injects a fault finds the move at exactly that point; the
injector lets it go on. And it can *damage* what it sends: nothing else could, as the network
between the agents carries TLS. Everything else that goes wrong is done to the agent from outside.
"""

from __future__ import annotations

import os
import signal
from typing import Any, cast

import msgspec

from quicferry.events import Event, Sink
from quicferry.migration.orders import Begin, Piece, ToDestination, ToSource
from quicferry.migration.peers import PeerClient
from quicferry.migration.rpc import Duplex, DuplexCall


class Mishaps(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is told to do wrong; each happens once."""

    stop_at: list[str] = []  # names of events
    damage_transfer: bool = False  # one byte of the first piece of state is changed on its way


def stopping(sink: Sink, stop_at: list[str]) -> Sink:
    """A sink that stops this process after it has told of one of these events for the first time."""
    left = set(stop_at)

    def tell(event: Event) -> None:
        sink(event)
        if event.name in left:
            left.discard(event.name)
            os.kill(os.getpid(), signal.SIGSTOP)

    return tell


class DamagingClient(PeerClient):
    """A channel whose first stream of state arrives with one byte changed."""

    damaged = False

    def open(self, method: Duplex[Any, Any], *, timeout_s: float) -> DuplexCall[Any, Any]:
        """As ``RpcClient.open``."""
        return cast("DuplexCall[Any, Any]", _DamagingCall(super().open(method, timeout_s=timeout_s), self))


class _DamagingCall:
    """A stream that changes one byte of its first piece; all else is the stream's own."""

    def __init__(self, call: DuplexCall[ToDestination, ToSource], client: DamagingClient) -> None:
        self._call = call
        self._client = client
        self._begun = False  # what is copied ahead is left alone: the point is the transfer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    async def write(self, message: ToDestination) -> None:
        self._begun = self._begun or isinstance(message, Begin)
        if self._begun and isinstance(message, Piece) and message.data and not self._client.damaged:
            self._client.damaged = True
            middle = len(message.data) // 2
            changed = bytes([message.data[middle] ^ 0x01])
            message = Piece(message.data[:middle] + changed + message.data[middle + 1 :])
        await self._call.write(message)
