"""Messages between the agents that carry the bytes of CRIU's page server; ``rpc.tunnel`` has both ends."""

from __future__ import annotations

from typing import Protocol

import msgspec


class TunnelOpen(msgspec.Struct, frozen=True, kw_only=True, tag="open"):
    """The first message of a stream for the bytes of CRIU's page server, and the answer to it.

    ``received``: how many bytes of the other end have arrived on all streams before this one.
    """

    epoch: int
    received: int


class TunnelData(msgspec.Struct, frozen=True, kw_only=True, tag="data"):
    """Bytes from ``offset`` on. ``last``: the program at this end sends nothing more."""

    offset: int
    data: bytes
    received: int
    last: bool = False


class TunnelOver(msgspec.Struct, frozen=True, kw_only=True, tag="over"):
    """First message of a stream: the process has all its memory, or never will. The answer is the same."""

    epoch: int
    error: str | None = None


TunnelMessage = TunnelOpen | TunnelData | TunnelOver


class TunnelCall(Protocol):
    """The destination's end of a stream for the bytes of CRIU's page server."""

    async def write(self, message: TunnelMessage) -> None:
        """Send one message. Raises ``MigrationError`` when the stream is broken."""

    async def read(self) -> TunnelMessage:
        """The next answer. Raises ``Unreachable`` when the stream broke, ``MigrationError`` if refused."""

    def cancel(self) -> None:
        """Break the stream off."""
