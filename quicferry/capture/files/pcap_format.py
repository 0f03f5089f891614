"""The layout of pcap files (draft-ietf-opsawg-pcap): a header, then records."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from quicferry.capture.files.source import Gap, Record, Window

#: magic number -> nanoseconds per unit of a stamp's fraction, and extra bytes of a record's header
_MAGIC = {
    0xA1B2C3D4: (1_000, 0),
    0xA1B23C4D: (1, 0),
    0xA1B2CD34: (1_000, 8),  # with the interface's index, as an old patch of libpcap wrote it
}
_HEADER_BYTES = 24
#: What Wireshark and libpcap take for the longest possible record: a longer one is a wrong length.
LONGEST_RECORD_BYTES = 262_144


def byte_order(head: bytes) -> str | None:
    """``<`` or ``>`` for the first bytes of a pcap file; None when they are of something else."""
    for order in "<>":
        if len(head) >= 4 and struct.unpack_from(order + "I", head)[0] in _MAGIC:
            return order
    return None


def read_pcap(window: Window, order: str, tell: Callable[[Gap], None]) -> Iterator[Record]:
    """The records of a file whose byte order is known; ``tell`` is told of what could not be read."""
    if not window.need(_HEADER_BYTES):
        tell(Gap("the file ends within its header", 0))
        return
    magic, _, _, _, _, snap_bytes, link = struct.unpack_from(order + "IHHiIII", window.data, window.at)
    unit_ns, extra = _MAGIC[magic]
    link_type = link & 0x03FF_FFFF  # above are the length of a frame check sequence and flags
    longest = max(LONGEST_RECORD_BYTES, min(snap_bytes, 1 << 24))
    window.at += _HEADER_BYTES
    head = struct.Struct(order + "IIII")
    size = head.size + extra
    number = 0
    while window.need(size):
        number += 1
        seconds, fraction, captured, wire = head.unpack_from(window.data, window.at)
        if captured > longest:
            tell(
                Gap(
                    f"record {number} at byte {window.position} says that it has {captured} bytes: "
                    "a wrong length, what follows cannot be found",
                    number,
                )
            )
            return
        if not window.need(size + captured):
            tell(Gap(f"the file is cut off within record {number}", number))
            return
        begin = window.at + size
        window.at = begin + captured
        yield Record(
            seconds * 1_000_000_000 + fraction * unit_ns,
            window.data[begin : window.at],
            wire,
            link_type,
            "",
            0,
        )
    if window.left():
        tell(Gap(f"the file is cut off within the header of record {number + 1}", number + 1))
