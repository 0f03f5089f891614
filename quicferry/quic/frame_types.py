"""The numbers of the frames that RFC 9000 does not know."""

from __future__ import annotations

import enum


class FrameType(enum.IntEnum):
    """Frame types, drawn at random from the range for provisional registration (RFC 9000 §22.1).

    The last one is the draft's (``standard_wire``); all others are the extension's.
    """

    SM_ADDRESS = 0x1F3A7C10
    SM_PREPARE = 0x1F3A7C11
    SM_READY = 0x1F3A7C12
    SM_MIGRATED = 0x1F3A7C13
    SM_ABORT = 0x1F3A7C14
    SM_REQUEST = 0x1F3A7C1A
    SM_REPLY = 0x1F3A7C1B
    ALTERNATIVE_ADDRESS = 0x1D5845E2
