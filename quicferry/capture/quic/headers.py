"""Parses the long header of a QUIC packet, which needs no keys (RFC 9000 §17.2, RFC 9369 §3.2)."""

from __future__ import annotations

import enum
from typing import NamedTuple

from quicferry.capture.quic.keys import VERSION_1, VERSION_2
from quicferry.capture.quic.varint import read_varint


class Space(enum.StrEnum):
    """The kind of a packet; apart from 0-RTT, its packet number space too."""

    INITIAL = "initial"
    ZERO_RTT = "0-rtt"
    HANDSHAKE = "handshake"
    RETRY = "retry"
    ONE_RTT = "1-rtt"


_LONG_TYPES = {
    VERSION_1: (Space.INITIAL, Space.ZERO_RTT, Space.HANDSHAKE, Space.RETRY),  # RFC 9000 §17.2
    VERSION_2: (Space.RETRY, Space.INITIAL, Space.ZERO_RTT, Space.HANDSHAKE),  # RFC 9369 §3.2
}


class LongHeader(NamedTuple):
    """The fields of a long header, and where in the datagram the packet number begins and the packet ends."""

    version: int
    space: Space
    destination_cid: bytes
    source_cid: bytes
    number_offset: int
    end: int


def long_header(data: bytes, at: int) -> LongHeader | None:
    """Parse the header at an offset; None for anything but a packet of a known version (RFC 9000 §17.2)."""
    try:
        version = int.from_bytes(data[at + 1 : at + 5], "big")
        types = _LONG_TYPES.get(version)
        if types is None or not data[at] & 0x40:
            return None
        space = types[(data[at] >> 4) & 3]
        cursor = at + 6 + data[at + 5]
        dcid = data[at + 6 : cursor]
        scid = data[cursor + 1 : cursor + 1 + data[cursor]]
        cursor += 1 + data[cursor]
        if space is Space.RETRY:
            return LongHeader(version, space, dcid, scid, cursor, len(data))
        if space is Space.INITIAL:
            token_bytes, cursor = read_varint(data, cursor)
            cursor += token_bytes
        length, cursor = read_varint(data, cursor)
    except IndexError:
        return None
    end = cursor + length
    return LongHeader(version, space, dcid, scid, cursor, end) if end <= len(data) else None
