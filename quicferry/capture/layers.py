"""The frames of ``docs/wire-format.md`` for scapy: classes to build and to dissect them.

QUIC payloads are encrypted on the wire, so scapy sees these only after decryption::

    >>> SMMigrated(epoch=3).build().hex()
    '9f3a7c1303'
    >>> dissect_frames(bytes.fromhex("9f3a7c1303"))
    [<SMMigrated  type=523926547 epoch=3 |>]
"""

from __future__ import annotations

from typing import Any

from scapy.fields import (
    ConditionalField,
    FieldListField,
    FlagsField,
    IP6Field,
    IPField,
    PacketListField,
    ShortField,
)
from scapy.layers.quic import QuicVarIntField, QuicVarLenField
from scapy.packet import Packet

from quicferry.capture.quic.frames import (
    ALTERNATIVE_ADDRESS,
    SM_ABORT,
    SM_ADDRESS,
    SM_MIGRATED,
    SM_PREPARE,
    SM_READY,
    SM_REPLY,
    SM_REQUEST,
    parse_frames,
)
from quicferry.capture.quic.varint import read_varint


class _Frame(Packet):
    """A frame of the extension: checks the type that it begins with."""

    frame_type = 0

    def pre_dissect(self, s: bytes) -> bytes:
        frame_type, _ = read_varint(s, 0)
        if frame_type != self.frame_type:
            raise ValueError(f"frame type 0x{frame_type:x}, not 0x{self.frame_type:x}")
        return s


class SMAddress(_Frame):
    """An address that the server may move to."""

    name = "SM_ADDRESS"
    frame_type = SM_ADDRESS
    fields_desc = [  # noqa: RUF012 - scapy's way of declaring fields
        QuicVarIntField("type", SM_ADDRESS),
        QuicVarIntField("sequence", 0),
        FlagsField("flags", 1, 8, ["v4", "v6", "pool", "retire"]),
        ConditionalField(IPField("ipv4", "0.0.0.0"), lambda frame: bool(frame.flags.v4)),
        ConditionalField(ShortField("ipv4_port", 0), lambda frame: bool(frame.flags.v4)),
        ConditionalField(IP6Field("ipv6", "::"), lambda frame: bool(frame.flags.v6)),
        ConditionalField(ShortField("ipv6_port", 0), lambda frame: bool(frame.flags.v6)),
    ]


class SMPrepare(_Frame):
    """Announces that the server is about to move."""

    name = "SM_PREPARE"
    frame_type = SM_PREPARE
    fields_desc = [  # noqa: RUF012 - scapy's way of declaring fields
        QuicVarIntField("type", SM_PREPARE),
        QuicVarIntField("epoch", 0),
        QuicVarIntField("strategy", 0),
        QuicVarLenField("count", None, count_of="sequences"),
        FieldListField("sequences", [], QuicVarIntField("", 0), count_from=lambda frame: frame.count),
        QuicVarIntField("downtime_ms", 0),
        QuicVarIntField("probe_interval_ms", 0),
        FlagsField("flags", 0, 8, ["server_first"]),
    ]


class SMReady(_Frame):
    """The client's answer to SM_PREPARE."""

    name = "SM_READY"
    frame_type = SM_READY
    fields_desc = [  # noqa: RUF012 - scapy's way of declaring fields
        QuicVarIntField("type", SM_READY),
        QuicVarIntField("epoch", 0),
        QuicVarIntField("result", 0),
    ]


class SMMigrated(_Frame):
    """Says that the server has moved."""

    name = "SM_MIGRATED"
    frame_type = SM_MIGRATED
    fields_desc = [QuicVarIntField("type", SM_MIGRATED), QuicVarIntField("epoch", 0)]  # noqa: RUF012 - scapy's way


class SMAbort(_Frame):
    """Says that the server stays: the move is called off."""

    name = "SM_ABORT"
    frame_type = SM_ABORT
    fields_desc = [  # noqa: RUF012 - scapy's way of declaring fields
        QuicVarIntField("type", SM_ABORT),
        QuicVarIntField("epoch", 0),
        QuicVarIntField("reason", 0),
    ]


class SMRequest(_Frame):
    """The client asks for a move."""

    name = "SM_REQUEST"
    frame_type = SM_REQUEST
    fields_desc = [QuicVarIntField("type", SM_REQUEST), QuicVarIntField("request", 0)]  # noqa: RUF012 - scapy's way


class SMReply(_Frame):
    """The server's answer to that."""

    name = "SM_REPLY"
    frame_type = SM_REPLY
    fields_desc = [  # noqa: RUF012 - scapy's way of declaring fields
        QuicVarIntField("type", SM_REPLY),
        QuicVarIntField("request", 0),
        QuicVarIntField("reply", 0),
    ]


class AlternativeEntry(Packet):
    """One entry of the draft's set: the current path, or an address with its priority."""

    name = "ALTERNATIVE_ADDRESS entry"
    fields_desc = [  # noqa: RUF012 - scapy's way of declaring fields
        QuicVarIntField("kind", 0),
        ConditionalField(QuicVarIntField("priority", 0), lambda entry: entry.kind in (1, 2)),
        ConditionalField(IPField("ipv4", "0.0.0.0"), lambda entry: entry.kind == 1),
        ConditionalField(IP6Field("ipv6", "::"), lambda entry: entry.kind == 2),
        ConditionalField(ShortField("port", 0), lambda entry: entry.kind in (1, 2)),
    ]

    def extract_padding(self, s: bytes) -> tuple[bytes, bytes]:
        """What follows is the next entry's."""
        return b"", s


class AlternativeAddresses(_Frame):
    """All addresses of a server (draft-munizaga-quic-alternative-server-address-02)."""

    name = "ALTERNATIVE_ADDRESS"
    frame_type = ALTERNATIVE_ADDRESS
    fields_desc = [  # noqa: RUF012 - scapy's way of declaring fields
        QuicVarIntField("type", ALTERNATIVE_ADDRESS),
        QuicVarIntField("sequence", 0),
        QuicVarLenField("count", None, count_of="entries"),
        PacketListField("entries", [], AlternativeEntry, count_from=lambda frame: frame.count),
    ]


LAYERS: dict[int, type[_Frame]] = {
    layer.frame_type: layer
    for layer in (
        SMAddress,
        SMPrepare,
        SMReady,
        SMMigrated,
        SMAbort,
        SMRequest,
        SMReply,
        AlternativeAddresses,
    )
}


def dissect_frames(payload: bytes) -> list[Any]:
    """The extension's frames in a decrypted payload, as scapy packets; other frames are left out.

    Raises ``CaptureError`` when the payload cannot be taken apart.
    """
    found = []
    for frame in parse_frames(payload):
        if frame.name.startswith("SM_") or frame.name == "ALTERNATIVE_ADDRESS":
            frame_type, _ = read_varint(frame.data, 0)
            found.append(LAYERS[frame_type](frame.data))
    return found
