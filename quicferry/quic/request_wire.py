"""The bytes of the two frames by which a client asks its server to move, and is answered."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so

from quicferry.quic.errors import ErrorCode, PeerError
from quicferry.quic.frame_types import FrameType


class Reply(enum.StrEnum):
    """What a server says to a client that asks it to move."""

    ACCEPTED = "accepted"  # it will be told of the move, or find out, as the strategy has it
    REFUSED = "refused"  # nobody may ask, or this client may not
    BUSY = "busy"  # a move goes on, or the last request was a moment ago
    NOWHERE = "nowhere"  # there is no host to go to, or none that can be reached


_NUMBERS = {reply: number for number, reply in enumerate(Reply)}
_REPLY_OF_NUMBER = {number: reply for reply, number in _NUMBERS.items()}


@dataclass(frozen=True, kw_only=True)
class SmRequest:
    """The client asks for the move. ``request`` numbers its requests upwards, from 1."""

    frame_type: ClassVar[FrameType] = FrameType.SM_REQUEST

    request: int

    def encode(self) -> bytes:
        """The whole frame."""
        buf = Buffer(capacity=32)
        buf.push_uint_var(self.frame_type)
        buf.push_uint_var(self.request)
        return buf.data

    @classmethod
    def pull(cls, buf: Buffer) -> SmRequest:
        """Reads what follows the type."""
        return cls(request=buf.pull_uint_var())


@dataclass(frozen=True, kw_only=True)
class SmReply:
    """The server's answer to the request of that number."""

    frame_type: ClassVar[FrameType] = FrameType.SM_REPLY

    request: int
    reply: Reply

    def encode(self) -> bytes:
        """The whole frame."""
        buf = Buffer(capacity=32)
        buf.push_uint_var(self.frame_type)
        buf.push_uint_var(self.request)
        buf.push_uint_var(_NUMBERS[self.reply])
        return buf.data

    @classmethod
    def pull(cls, buf: Buffer) -> SmReply:
        """Reads what follows the type."""
        request, number = buf.pull_uint_var(), buf.pull_uint_var()
        if number not in _REPLY_OF_NUMBER:
            raise PeerError(ErrorCode.FRAME_ENCODING_ERROR, f"SM_REPLY with an unknown reply {number}")
        return cls(request=request, reply=_REPLY_OF_NUMBER[number])
