"""What can go wrong in the extension, and the error codes it puts on the wire.

Codes of RFC 9000 §20.1 are used where one fits; the extension's own are drawn at random from the range
for provisional registration (§22.1).
"""

from __future__ import annotations

import enum

from aioquic.quic.packet import QuicErrorCode

from quicferry.errors import FerryError


class ErrorCode(enum.IntEnum):
    """Transport error codes the extension closes a connection with."""

    FRAME_ENCODING_ERROR = QuicErrorCode.FRAME_ENCODING_ERROR
    TRANSPORT_PARAMETER_ERROR = QuicErrorCode.TRANSPORT_PARAMETER_ERROR
    PROTOCOL_VIOLATION = QuicErrorCode.PROTOCOL_VIOLATION
    SM_ERROR = 0x1F3A7C20
    SM_TIMEOUT = 0x1F3A7C21
    SM_LIMIT = 0x1F3A7C22


class PeerError(FerryError):
    """The peer broke the extension's rules: the connection closes with ``code``."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class LocalError(FerryError):
    """This side called something that its state does not allow; nothing was sent."""
