"""Parses the long header of a QUIC packet, which needs no keys (RFC 8999; RFC 9000 §17.2, RFC 9369 §3.2)."""

from __future__ import annotations

from typing import NamedTuple

from quicferry.capture.quic.varint import read_varint
from quicferry.capture.quic.versions import Space, is_google, is_known, long_types

__all__ = ["LongHeader", "Space", "google_version", "long_header", "supported_versions"]


class LongHeader(NamedTuple):
    """The fields of a long header, and where in the datagram the packet number begins and the packet ends.

    Of version negotiation and of a version that is not read, the packet is the rest of the datagram.
    ``end`` may lie behind the datagram's end when the capture cut that off.
    """

    version: int
    space: Space
    destination_cid: bytes
    source_cid: bytes
    number_offset: int
    end: int
    token: bytes = b""


def long_header(data: bytes, at: int, missing_bytes: int = 0) -> LongHeader | None:
    """Parse the header at an offset; None for anything but a packet of a version that somebody uses.

    ``missing_bytes`` is how much of the datagram the capture has cut off. The fixed bit may be greased
    (RFC 9287) where the version says what the packet is.
    """
    try:
        version = int.from_bytes(data[at + 1 : at + 5], "big")
        types = long_types(version)
        if types is None and not is_known(version):
            return None
        cursor = at + 6 + data[at + 5]
        dcid = data[at + 6 : cursor]
        scid = data[cursor + 1 : cursor + 1 + data[cursor]]
        cursor += 1 + data[cursor]
        if cursor > len(data):
            return None
        if types is None:
            space = Space.VERSION_NEGOTIATION if version == 0 else Space.UNKNOWN
            return LongHeader(version, space, dcid, scid, cursor, len(data))
        space = types[(data[at] >> 4) & 3]
        if space is Space.RETRY:
            return LongHeader(version, space, dcid, scid, cursor, len(data), data[cursor:-16])
        token = b""
        if space is Space.INITIAL:
            token_bytes, cursor = read_varint(data, cursor)
            token = data[cursor : cursor + token_bytes]
            cursor += token_bytes
        length, cursor = read_varint(data, cursor)
    except IndexError:
        return None
    end = cursor + length
    if end > len(data) + missing_bytes:
        return None
    return LongHeader(version, space, dcid, scid, cursor, end, token)


def supported_versions(data: bytes, number_offset: int) -> list[int]:
    """The versions that a version negotiation packet lists (RFC 9000 §17.2.1)."""
    return [
        int.from_bytes(data[at : at + 4], "big")
        for at in range(number_offset, len(data) - 3, 4)
    ]  # fmt: skip


def google_version(data: bytes) -> int | None:
    """The version in the public header of gQUIC up to Q043, which has no long header; None for others.

    Its flags: version present (0x01), 8-byte connection ID (0x08).
    """
    if len(data) < 14 or data[0] & 0x89 != 0x09:
        return None
    version = int.from_bytes(data[9:13], "big")
    return version if is_google(version) else None
