"""The extension's frames for scapy: classes to build and to dissect them, as in ``docs/wire-format.md``.

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
    Field,
    FieldLenField,
    FieldListField,
    FlagsField,
    IP6Field,
    IPField,
    ShortField,
)
from scapy.packet import Packet

from quicferry.capture.quic.frames import (
    SM_ABORT,
    SM_ADDRESS,
    SM_MIGRATED,
    SM_PREPARE,
    SM_READY,
    parse_frames,
)


def encode_varint(value: int) -> bytes:
    """A variable-length integer in its shortest form (RFC 9000 §16). Raises ``ValueError`` above 2^62-1."""
    for power in range(4):
        length = 1 << power
        if value < 1 << (8 * length - 2):
            return (value | power << (8 * length - 2)).to_bytes(length, "big")
    raise ValueError(f"{value} does not fit into 62 bits")


def decode_varint(data: bytes) -> tuple[bytes, int]:
    """What follows, and the value. Raises ``ValueError`` when it is cut off."""
    length = 1 << (data[0] >> 6) if data else 1
    if len(data) < length:
        raise ValueError("a variable-length integer is cut off")
    return data[length:], int.from_bytes(data[:length], "big") & ((1 << (8 * length - 2)) - 1)


class VarIntField(Field[int, int]):
    """A variable-length integer of RFC 9000 §16."""

    def addfield(self, pkt: Packet, s: bytes, val: int | None) -> bytes:
        return s + encode_varint(0 if val is None else val)

    def getfield(self, pkt: Packet, s: bytes) -> tuple[bytes, int]:
        return decode_varint(s)


class VarIntLenField(FieldLenField):
    """The number of items of a list as a variable-length integer."""

    def addfield(self, pkt: Packet, s: bytes, val: int | None) -> bytes:
        return s + encode_varint(self.i2m(pkt, val))

    def getfield(self, pkt: Packet, s: bytes) -> tuple[bytes, int]:
        return decode_varint(s)


class _Frame(Packet):
    """One frame with its type in front."""

    frame_type = 0

    def pre_dissect(self, s: bytes) -> bytes:
        kind = decode_varint(s)[1]
        if kind != self.frame_type:
            raise ValueError(f"frame type 0x{kind:x}, not 0x{self.frame_type:x}")
        return s


class SMAddress(_Frame):
    """A place the server may move to."""

    name = "SM_ADDRESS"
    frame_type = SM_ADDRESS
    fields_desc = [  # noqa: RUF012 - scapy's way of declaring fields
        VarIntField("type", SM_ADDRESS),
        VarIntField("sequence", 0),
        FlagsField("flags", 1, 8, ["v4", "v6", "pool", "retire"]),
        ConditionalField(IPField("ipv4", "0.0.0.0"), lambda frame: bool(frame.flags.v4)),
        ConditionalField(ShortField("ipv4_port", 0), lambda frame: bool(frame.flags.v4)),
        ConditionalField(IP6Field("ipv6", "::"), lambda frame: bool(frame.flags.v6)),
        ConditionalField(ShortField("ipv6_port", 0), lambda frame: bool(frame.flags.v6)),
    ]


class SMPrepare(_Frame):
    """The server is about to move."""

    name = "SM_PREPARE"
    frame_type = SM_PREPARE
    fields_desc = [  # noqa: RUF012 - scapy's way of declaring fields
        VarIntField("type", SM_PREPARE),
        VarIntField("epoch", 0),
        VarIntField("strategy", 0),
        VarIntLenField("count", None, count_of="sequences"),
        FieldListField("sequences", [], VarIntField("", 0), count_from=lambda frame: frame.count),
        VarIntField("downtime_ms", 0),
        VarIntField("probe_interval_ms", 0),
        FlagsField("flags", 0, 8, ["server_first"]),
    ]


class SMReady(_Frame):
    """The client's answer to SM_PREPARE."""

    name = "SM_READY"
    frame_type = SM_READY
    fields_desc = [VarIntField("type", SM_READY), VarIntField("epoch", 0), VarIntField("result", 0)]  # noqa: RUF012 - scapy's way


class SMMigrated(_Frame):
    """The server has moved."""

    name = "SM_MIGRATED"
    frame_type = SM_MIGRATED
    fields_desc = [VarIntField("type", SM_MIGRATED), VarIntField("epoch", 0)]  # noqa: RUF012 - scapy's way


class SMAbort(_Frame):
    """The server stays."""

    name = "SM_ABORT"
    frame_type = SM_ABORT
    fields_desc = [VarIntField("type", SM_ABORT), VarIntField("epoch", 0), VarIntField("reason", 0)]  # noqa: RUF012 - scapy's way


LAYERS: dict[int, type[_Frame]] = {
    layer.frame_type: layer for layer in (SMAddress, SMPrepare, SMReady, SMMigrated, SMAbort)
}


def dissect_frames(payload: bytes) -> list[Any]:
    """The extension's frames in a decrypted payload, as scapy packets; other frames are left out.

    Raises ``CaptureError`` when the payload cannot be taken apart.
    """
    found = []
    for frame in parse_frames(payload):
        if frame.name.startswith("SM_"):
            kind = decode_varint(frame.data)[1]
            found.append(LAYERS[kind](frame.data))
    return found
