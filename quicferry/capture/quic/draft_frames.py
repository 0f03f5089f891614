"""The frames of QUIC's drafts and of other implementers, by their layout.

Sources: draft-ietf-quic-ack-frequency, draft-huitema-quic-ts, draft-ietf-quic-multipath (the experimental
numbers of its revisions and the ones it asks IANA for), draft-ietf-quic-address-discovery,
draft-seemann-quic-nat-traversal, draft-ietf-quic-reliable-stream-reset, and mvfst's KNOB.
The alternative-server-address draft is among the frames that ``frames`` reads itself.
"""

from __future__ import annotations

import enum


class Part(enum.Enum):
    """A field of a frame."""

    NUMBER = enum.auto()  # a variable-length integer
    IPV4 = enum.auto()  # an address with its port
    IPV6 = enum.auto()
    ACK_RANGES = enum.auto()  # their count, the first, and pairs
    ECN_COUNTS = enum.auto()
    CONNECTION_ID = enum.auto()  # a byte of length first
    TOKEN = enum.auto()  # of a stateless reset
    BYTES = enum.auto()  # a variable-length length first


_N = Part.NUMBER
_ACK = (_N, _N, _N, Part.ACK_RANGES)  # path, largest, delay
_NEW_ID = (_N, _N, _N, Part.CONNECTION_ID, Part.TOKEN)

#: frame type -> name and what follows the type
DRAFT_FRAMES: dict[int, tuple[str, tuple[Part, ...]]] = {
    0x1F: ("IMMEDIATE_ACK", ()),
    0xAC: ("IMMEDIATE_ACK", ()),
    0xAF: ("ACK_FREQUENCY", (_N, _N, _N, _N)),
    0x24: ("RESET_STREAM_AT", (_N, _N, _N, _N)),
    0x2F5: ("TIME_STAMP", (_N,)),
    0x1550: ("KNOB", (_N, _N, Part.BYTES)),
    0x9F81A6: ("OBSERVED_ADDRESS", (_N, Part.IPV4)),
    0x9F81A7: ("OBSERVED_ADDRESS", (_N, Part.IPV6)),
    0x3D7E90: ("ADD_ADDRESS", (_N, Part.IPV4)),
    0x3D7E91: ("ADD_ADDRESS", (_N, Part.IPV6)),
    0x3D7E92: ("PUNCH_ME_NOW", (_N, _N, Part.IPV4)),
    0x3D7E93: ("PUNCH_ME_NOW", (_N, _N, Part.IPV6)),
    0x3D7E94: ("REMOVE_ADDRESS", (_N,)),
    0x15228C00: ("PATH_ACK", _ACK),
    0x15228C01: ("PATH_ACK", (*_ACK, Part.ECN_COUNTS)),
    0x15228C05: ("PATH_ABANDON", (_N, _N)),
    0x15228C07: ("PATH_STATUS_BACKUP", (_N, _N)),
    0x15228C08: ("PATH_STATUS_AVAILABLE", (_N, _N)),
    0x15228C09: ("PATH_NEW_CONNECTION_ID", _NEW_ID),
    0x15228C0A: ("PATH_RETIRE_CONNECTION_ID", (_N, _N)),
    0x15228C0B: ("MAX_PATHS", (_N,)),
    0x15228C0C: ("MAX_PATH_ID", (_N,)),
    0x15228C0D: ("PATHS_BLOCKED", (_N,)),
    0x15228C0E: ("PATH_CIDS_BLOCKED", (_N, _N)),
    0x3E: ("PATH_ACK", _ACK),
    0x3F: ("PATH_ACK", (*_ACK, Part.ECN_COUNTS)),
    0x3E75: ("PATH_ABANDON", (_N, _N)),
    0x3E76: ("PATH_STATUS_BACKUP", (_N, _N)),
    0x3E77: ("PATH_STATUS_AVAILABLE", (_N, _N)),
    0x3E78: ("PATH_NEW_CONNECTION_ID", _NEW_ID),
    0x3E79: ("PATH_RETIRE_CONNECTION_ID", (_N, _N)),
    0x3E7A: ("MAX_PATH_ID", (_N,)),
    0x3E7B: ("PATHS_BLOCKED", (_N,)),
    0x3E7C: ("PATH_CIDS_BLOCKED", (_N, _N)),
}
