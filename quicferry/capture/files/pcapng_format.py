"""The layout of pcapng files (draft-ietf-opsawg-pcapng): sections of blocks.

Read are section headers, interface descriptions, enhanced, simple and obsolete packet blocks, and
decryption secrets; other blocks are passed over. Each section has a byte order and interfaces of its own.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from quicferry.capture.files.source import Gap, Record, Window

SECTION_HEADER = 0x0A0D0D0A
INTERFACE = 1
OBSOLETE_PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 2, 3, 6
SECRETS = 0x0000000A
BYTE_ORDER_MAGIC = 0x1A2B3C4D
TLS_KEY_LOG = 0x544C534B
_IF_NAME, _IF_RESOLUTION, _IF_OFFSET = 2, 9, 14
_NS_PER_S = 1_000_000_000
#: A longer block is taken for a wrong length. The longest that are seen are key logs.
LONGEST_BLOCK_BYTES = 1 << 26


class Interface(NamedTuple):
    """What an interface description says."""

    name: str
    link_type: int
    snap_bytes: int
    ticks_per_s: int
    offset_s: int


def byte_order(head: bytes) -> str | None:
    """``<`` or ``>`` for the first 12 bytes of a section; None when they are of something else."""
    if len(head) < 12 or head[:4] != b"\x0a\x0d\x0d\x0a":
        return None
    for order in "<>":
        if struct.unpack_from(order + "I", head, 8)[0] == BYTE_ORDER_MAGIC:
            return order
    return None


class PcapngReader:
    """Reads one file. ``secrets`` is called with each embedded key log, ``tell`` with what cannot be read."""

    def __init__(self, window: Window, tell: Callable[[Gap], None], secrets: Callable[[bytes], None]) -> None:
        self._window = window
        self._tell = tell
        self._secrets = secrets
        self._interfaces: list[Interface] = []
        self._before = 0  # interfaces of earlier sections
        self._last_ns = 0
        self._number = 0

    def records(self) -> Iterator[Record]:
        """The frames in the order of the file, up to its end or to the first thing that makes no sense."""
        window = self._window
        order = byte_order(window.data[window.at : window.at + 12]) or "<"
        head = struct.Struct(order + "II")
        packet = struct.Struct(order + "IIIII")
        unpack, unpack_head = packet.unpack_from, head.unpack_from
        interfaces = self._interfaces
        while True:
            data, at = window.data, window.at
            have = len(data) - at
            if have < 8:
                if not window.need(8):
                    break
                continue
            kind, length = unpack_head(data, at)
            # an enhanced packet block that is whole and makes sense: nearly all blocks of nearly all files
            if kind == ENHANCED_PACKET and 32 <= length <= have and not length & 3:
                number, high, low, captured, wire = unpack(data, at + 8)
                end = at + length
                if (
                    number < len(interfaces)
                    and captured <= length - 32
                    and data[at + 4 : at + 8] == data[end - 4 : end]
                ):
                    name, link_type, _, ticks_per_s, offset_s = interfaces[number]
                    self._number += 1
                    window.at = end
                    t_ns = high << 32 | low
                    if ticks_per_s != _NS_PER_S or offset_s:
                        t_ns = t_ns * _NS_PER_S // ticks_per_s + offset_s * _NS_PER_S
                    self._last_ns = t_ns
                    yield Record(
                        t_ns, data[at + 28 : at + 28 + captured], wire, link_type, name, self._before + number
                    )
                    continue
            if kind == SECTION_HEADER:
                found = byte_order(window.data[window.at : window.at + 12]) if window.need(12) else None
                if found is None:
                    self._tell(Gap(f"the section at byte {window.position} has no valid byte order", 0))
                    return
                order = found
                head, packet = struct.Struct(order + "II"), struct.Struct(order + "IIIII")
                unpack, unpack_head = packet.unpack_from, head.unpack_from
                length = head.unpack_from(window.data, window.at)[1]
                self._before += len(self._interfaces)
                self._interfaces = interfaces = []
            if not self._whole(length, order):
                return
            data, at = window.data, window.at
            end = at + length - 4
            window.at = at + length
            if kind == ENHANCED_PACKET:
                if length < 32:
                    self._tell(Gap("a packet block is too short for its header", self._number + 1))
                    continue
                number, high, low, captured, wire = packet.unpack_from(data, at + 8)
                record = self._packet(number, high << 32 | low, data[at + 28 : end], captured, wire)
            elif kind == SIMPLE_PACKET and length >= 16:
                (wire,) = struct.unpack_from(order + "I", data, at + 8)
                record = self._simple(data[at + 12 : end], wire)
            elif kind == OBSOLETE_PACKET and length >= 32:
                number, _drops, high, low, captured, wire = struct.unpack_from(order + "HHIIII", data, at + 8)
                record = self._packet(number, high << 32 | low, data[at + 28 : end], captured, wire)
            else:
                if kind == INTERFACE:
                    self._interfaces.append(_interface(data[at + 8 : end], order))
                elif kind == SECRETS:
                    self._read_secrets(data[at + 8 : end], order)
                continue
            if record is not None:
                yield record
        if window.left():
            self._tell(Gap("the file is cut off within the header of a block", self._number + 1))

    def _whole(self, length: int, order: str) -> bool:
        """Whether the block at hand is there as a whole, with its length at both ends."""
        window, where = self._window, f"the block at byte {self._window.position}"
        if length < 12 or length % 4 or length > LONGEST_BLOCK_BYTES:
            self._tell(
                Gap(
                    f"{where} says that it has {length} bytes: a wrong length, what follows cannot be found",
                    self._number + 1,
                )
            )
            return False
        if not window.need(length):
            self._tell(Gap(f"the file is cut off within {where}", self._number + 1))
            return False
        (again,) = struct.unpack_from(order + "I", window.data, window.at + length - 4)
        if again != length:
            self._tell(
                Gap(
                    f"{where} has {length} bytes at its beginning and {again} at its end: "
                    "a wrong length, what follows cannot be found",
                    self._number + 1,
                )
            )
            return False
        return True

    def _packet(self, number: int, ticks: int, data: bytes, captured: int, wire: int) -> Record | None:
        self._number += 1
        if number >= len(self._interfaces):
            self._tell(Gap("a packet is of an interface that no block describes", self._number))
            return None
        interface = self._interfaces[number]
        self._last_ns = ticks * _NS_PER_S // interface.ticks_per_s + interface.offset_s * _NS_PER_S
        if captured > len(data):
            self._tell(Gap("a packet block is shorter than its packet", self._number))
        return Record(
            self._last_ns,
            data[:captured],
            wire,
            interface.link_type,
            interface.name,
            self._before + number,
        )

    def _simple(self, data: bytes, wire: int) -> Record | None:
        """A block without a stamp: it takes that of the packet before it."""
        self._number += 1
        if not self._interfaces:
            self._tell(Gap("a packet is of an interface that no block describes", self._number))
            return None
        interface = self._interfaces[0]
        captured = min(wire, interface.snap_bytes or wire, len(data))
        return Record(self._last_ns, data[:captured], wire, interface.link_type, interface.name, self._before)

    def _read_secrets(self, body: bytes, order: str) -> None:
        if len(body) < 8:
            return
        kind, length = struct.unpack_from(order + "II", body)
        if kind == TLS_KEY_LOG:
            self._secrets(body[8 : 8 + length])
        else:
            self._tell(Gap(f"secrets of a kind that is not read (0x{kind:08x})", 0))


def _interface(body: bytes, order: str) -> Interface:
    if len(body) < 8:
        return Interface("", -1, 0, 1_000_000, 0)
    link_type, _, snap_bytes = struct.unpack_from(order + "HHI", body)
    name, ticks, offset_s = "", 1_000_000, 0
    at = 8
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4 : at + 4 + length]
        at += 4 + length + -length % 4
        if code == 0:
            break
        if code == _IF_NAME:
            name = value.rstrip(b"\0").decode(errors="replace")
        elif code == _IF_RESOLUTION and value:
            ticks = 1 << (value[0] & 0x7F) if value[0] & 0x80 else 10 ** value[0]
        elif code == _IF_OFFSET and len(value) == 8:
            (offset_s,) = struct.unpack(order + "q", value)
    return Interface(name, link_type, snap_bytes, ticks, offset_s)
