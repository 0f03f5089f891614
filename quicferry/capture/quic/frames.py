"""Parses a decrypted payload: every frame of RFC 9000 §19, DATAGRAM (RFC 9221), drafts and the extension's.

The extension's frames are read by ``docs/wire-format.md``, those of drafts by the table in ``draft_frames``.
An unknown type hides what stands behind it, for its length is unknown, never what stands before it.
ALTERNATIVE_ADDRESS is that of draft-munizaga-quic-alternative-server-address-02. Version -00 had two other
frames, of which the first has the same number: what does not read as the one is read as the other.
"""

from __future__ import annotations

import contextlib
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from quicferry.capture.quic.draft_frames import DRAFT_FRAMES, Part
from quicferry.capture.quic.varint import read_varint
from quicferry.errors import CaptureError


class Frame(NamedTuple):
    """One frame. Fields that its type does not have are None."""

    name: str
    stream_id: int | None = None
    offset: int | None = None
    length: int | None = None  # bytes of data it carries
    fin: bool | None = None
    largest_acked: int | None = None
    ack_delay_us: int | None = None  # with the default exponent of 3 (RFC 9000 §18.2)
    epoch: int | None = None  # of the extension's frames
    address: str | None = None  # "10.0.2.2:4433" of an announcement
    data: bytes = b""  # path challenge, connection ID, crypto or stream data


SM_ADDRESS = 0x1F3A7C10
SM_PREPARE = 0x1F3A7C11
SM_READY = 0x1F3A7C12
SM_MIGRATED = 0x1F3A7C13
SM_ABORT = 0x1F3A7C14
SM_REQUEST = 0x1F3A7C1A
SM_REPLY = 0x1F3A7C1B
ALTERNATIVE_ADDRESS = 0x1D5845E2
ALTERNATIVE_V4_00 = 0x1D5845E2  # of the draft's version -00
ALTERNATIVE_V6_00 = 0x1D5845E3

#: types that are just a name and integers
_NUMBERS: dict[int, tuple[str, int]] = {
    0x01: ("PING", 0),
    0x10: ("MAX_DATA", 1),
    0x12: ("MAX_STREAMS", 1),
    0x13: ("MAX_STREAMS", 1),
    0x14: ("DATA_BLOCKED", 1),
    0x16: ("STREAMS_BLOCKED", 1),
    0x17: ("STREAMS_BLOCKED", 1),
    0x19: ("RETIRE_CONNECTION_ID", 1),
    0x1E: ("HANDSHAKE_DONE", 0),
}
#: types that begin with a stream ID
_STREAM_NUMBERS: dict[int, tuple[str, int]] = {
    0x04: ("RESET_STREAM", 2),
    0x05: ("STOP_SENDING", 1),
    0x11: ("MAX_STREAM_DATA", 1),
    0x15: ("STREAM_DATA_BLOCKED", 1),
}
#: a packet with one of these is not only acknowledgements (RFC 9000 §13.2)
NOT_ACK_ELICITING = frozenset({"PADDING", "ACK", "CONNECTION_CLOSE"})
#: what a probing packet may carry (RFC 9000 §9.1)
PROBING = frozenset({"PATH_CHALLENGE", "PATH_RESPONSE", "NEW_CONNECTION_ID", "PADDING"})


class UnknownFrame(CaptureError):
    """A frame type that nobody knows: where the frame ends is not known either."""

    def __init__(self, kind: int) -> None:
        super().__init__(f"unknown frame type 0x{kind:x}")
        self.kind = kind


#: How the names of what ends a payload early begin.
UNKNOWN, CUT_OFF = "UNKNOWN_0x", "CUT_OFF_0x"


class _Cursor:
    """Reads integers and bytes; raises ``IndexError`` at the end."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def varint(self) -> int:
        """A variable-length integer (RFC 9000 §16)."""
        value, self.at = read_varint(self.data, self.at)
        return value

    def take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise IndexError
        part = self.data[self.at : end]
        self.at = end
        return part


def _address(cursor: _Cursor, v4: bool, v6: bool) -> str | None:
    found = []
    if v4:
        host = str(IPv4Address(cursor.take(4)))
        found.append(f"{host}:{int.from_bytes(cursor.take(2), 'big')}")
    if v6:
        host = str(IPv6Address(cursor.take(16)))
        found.append(f"[{host}]:{int.from_bytes(cursor.take(2), 'big')}")
    return " ".join(found) or None


def _alternative(cursor: _Cursor) -> Frame:
    """The draft's frame; ``address`` has the whole set, and ``*`` where the current path stands in it."""
    begin = cursor.at
    try:
        cursor.varint()
        found: list[str] = []
        for _ in range(cursor.varint()):
            entry = cursor.varint()
            if entry not in (0, 1, 2):
                raise IndexError(f"an entry of the type {entry:#x} in ALTERNATIVE_ADDRESS")
            if entry:
                cursor.varint()
            found.append((_address(cursor, entry == 1, entry == 2) if entry else None) or "*")
        if found.count("*") != 1:
            raise IndexError("ALTERNATIVE_ADDRESS has not the current path once")
        return Frame("ALTERNATIVE_ADDRESS", address=" ".join(found))
    except IndexError:
        cursor.at = begin
        return _alternative_00(ALTERNATIVE_V4_00, cursor)


def _alternative_00(kind: int, cursor: _Cursor) -> Frame:
    """A frame of the draft's first version: preferred (1), retire (1), unused (6), sequence, one address."""
    flags = cursor.take(1)[0]
    if flags & 0x3F:
        raise IndexError("unused bits are set in an address frame of the draft's version -00")
    cursor.varint()
    v4 = kind == ALTERNATIVE_V4_00
    return Frame("ALTERNATIVE_SERVER_ADDRESS", address=_address(cursor, v4, not v4))


def _extension(kind: int, cursor: _Cursor) -> Frame:
    if kind == SM_ADDRESS:
        cursor.varint()
        flags = cursor.take(1)[0]
        return Frame("SM_ADDRESS", address=_address(cursor, bool(flags & 1), bool(flags & 2)))
    if kind == SM_PREPARE:
        epoch = cursor.varint()
        cursor.varint()
        for _ in range(cursor.varint()):
            cursor.varint()
        cursor.varint()
        cursor.varint()
        cursor.take(1)
        return Frame("SM_PREPARE", epoch=epoch)
    if kind == SM_MIGRATED:
        return Frame("SM_MIGRATED", epoch=cursor.varint())
    if kind in (SM_READY, SM_ABORT):
        epoch = cursor.varint()
        cursor.varint()
        return Frame("SM_READY" if kind == SM_READY else "SM_ABORT", epoch=epoch)
    if kind in (SM_REQUEST, SM_REPLY):
        begin = cursor.at
        for _ in range(1 if kind == SM_REQUEST else 2):
            cursor.varint()
        name = "SM_REQUEST" if kind == SM_REQUEST else "SM_REPLY"
        return Frame(name, data=cursor.data[begin - 4 : cursor.at])  # the type takes 4 bytes
    if kind == ALTERNATIVE_ADDRESS:
        return _alternative(cursor)
    if kind == ALTERNATIVE_V6_00:
        return _alternative_00(kind, cursor)
    parts = DRAFT_FRAMES.get(kind)
    if parts is None:
        raise UnknownFrame(kind)
    return _draft(*parts, cursor)


def _draft(name: str, parts: tuple[Part, ...], cursor: _Cursor) -> Frame:
    """A frame of a draft, by the table."""
    address, data = None, b""
    for part in parts:
        if part is Part.NUMBER:
            cursor.varint()
        elif part in (Part.IPV4, Part.IPV6):
            address = _address(cursor, part is Part.IPV4, part is Part.IPV6)
        elif part is Part.ACK_RANGES:
            for _ in range(2 * cursor.varint() + 1):
                cursor.varint()
        elif part is Part.ECN_COUNTS:
            for _ in range(3):
                cursor.varint()
        elif part is Part.CONNECTION_ID:
            data = cursor.take(cursor.take(1)[0])
        elif part is Part.TOKEN:
            cursor.take(16)
        elif part is Part.BYTES:
            cursor.take(cursor.varint())
    return Frame(name, address=address, data=data)


def _acknowledgement(kind: int, cursor: _Cursor) -> Frame:
    largest = cursor.varint()
    delay_us = cursor.varint() << 3
    ranges = cursor.varint()
    cursor.varint()
    for _ in range(2 * ranges):
        cursor.varint()
    if kind == 0x03:  # ECN counts
        for _ in range(3):
            cursor.varint()
    return Frame("ACK", largest_acked=largest, ack_delay_us=delay_us)


def _close(kind: int, cursor: _Cursor) -> Frame:
    cursor.varint()
    if kind == 0x1C:
        cursor.varint()
    return Frame("CONNECTION_CLOSE", data=cursor.take(cursor.varint()))


def parse_frames(payload: bytes) -> list[Frame]:
    """All frames of a payload in order; padding is left out.

    As ``read_frames``, but raises ``CaptureError`` when the very first frame is of a type that nobody knows,
    or is cut off: then nothing in the packet can be understood.
    """
    frames = read_frames(payload)
    if frames and frames[0].name.startswith(UNKNOWN):
        raise UnknownFrame(int(frames[0].name[len(UNKNOWN) :], 16))
    if frames and frames[-1].name.startswith(CUT_OFF):
        raise CaptureError("a frame is cut off")
    return frames


def read_frames(payload: bytes) -> list[Frame]:
    """All frames of a payload in order; padding is left out.

    A frame of a type that nobody knows is told as ``UNKNOWN_0x…``, with the rest of the payload as its
    ``data``; one that is cut off, or makes no sense, as ``CUT_OFF_0x…``. It is the last one then.
    """
    cursor = _Cursor(payload)
    frames: list[Frame] = []
    end = len(payload)
    begin = 0
    try:
        while cursor.at < end:
            if payload[cursor.at] == 0:
                cursor.at = end - len(payload[cursor.at :].lstrip(b"\0"))
                continue
            begin = cursor.at
            kind = payload[begin]
            if 0x08 <= kind <= 0x0F:  # STREAM: what most bytes of most captures are in
                frame, cursor.at = _stream_at(payload, begin, kind, end)
                frames.append(frame)
                continue
            frame = _frame(cursor.varint(), cursor)
            if frame.epoch is not None or frame.address is not None:
                frame = frame._replace(data=payload[begin : cursor.at])  # the extension's: kept whole
            frames.append(frame)
    except UnknownFrame as unknown:
        frames.append(Frame(f"{UNKNOWN}{unknown.kind:x}", length=end - begin, data=payload[begin:]))
    except IndexError:
        kind = payload[begin]
        with contextlib.suppress(IndexError):
            kind, _ = read_varint(payload, begin)
        frames.append(Frame(f"{CUT_OFF}{kind:x}", length=end - begin, data=payload[begin:]))
    return frames


def _stream_at(payload: bytes, at: int, kind: int, end: int) -> tuple[Frame, int]:
    """A STREAM frame (RFC 9000 §19.8) and where it ends. Raises ``IndexError`` when it is cut off."""
    stream_id, at = read_varint(payload, at + 1)
    offset = 0
    if kind & 0x04:
        offset, at = read_varint(payload, at)
    if kind & 0x02:
        length, at = read_varint(payload, at)
        if at + length > end:
            raise IndexError
    else:
        length = end - at
    behind = at + length
    return Frame(
        "STREAM", stream_id, offset, length, kind & 0x01 == 1, None, None, None, None, payload[at:behind]
    ), behind


def frame_at(payload: bytes, at: int) -> tuple[Frame, int]:
    """The frame that begins at an offset, and the offset behind it.

    Raises ``UnknownFrame``, and ``IndexError`` for a frame that is cut off.
    """
    cursor = _Cursor(payload)
    cursor.at = at
    frame = _frame(cursor.varint(), cursor)
    return frame, cursor.at


def _frame(kind: int, cursor: _Cursor) -> Frame:
    if 0x08 <= kind <= 0x0F:
        frame, cursor.at = _stream_at(cursor.data, cursor.at - 1, kind, len(cursor.data))
        return frame
    if kind in (0x02, 0x03):
        return _acknowledgement(kind, cursor)
    if kind in _NUMBERS:
        name, count = _NUMBERS[kind]
        for _ in range(count):
            cursor.varint()
        return Frame(name)
    if kind in _STREAM_NUMBERS:
        name, count = _STREAM_NUMBERS[kind]
        stream_id = cursor.varint()
        for _ in range(count):
            cursor.varint()
        return Frame(name, stream_id)
    if kind == 0x06:
        offset = cursor.varint()
        length = cursor.varint()
        return Frame("CRYPTO", offset=offset, length=length, data=cursor.take(length))
    if kind == 0x07:
        return Frame("NEW_TOKEN", data=cursor.take(cursor.varint()))
    if kind == 0x18:
        cursor.varint()
        cursor.varint()
        connection_id = cursor.take(cursor.take(1)[0])
        cursor.take(16)
        return Frame("NEW_CONNECTION_ID", data=connection_id)
    if kind in (0x1A, 0x1B):
        return Frame("PATH_CHALLENGE" if kind == 0x1A else "PATH_RESPONSE", data=cursor.take(8))
    if kind in (0x1C, 0x1D):
        return _close(kind, cursor)
    if kind in (0x30, 0x31):
        length = cursor.varint() if kind & 1 else len(cursor.data) - cursor.at
        return Frame("DATAGRAM", length=length, data=cursor.take(length))
    return _extension(kind, cursor)
