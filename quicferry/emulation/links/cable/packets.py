"""What a frame is on a wire, and how one of its bits is flipped. Compiled (``compiling``).

With PACKET_VNET_HDR each frame is preceded by a virtio network header that says which checksum is still
missing and into which segments the frame is to be cut (virtio 1.2, section 5.1.6; its fields are in the
machine's order, here little-endian).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quicferry.emulation.links.cable.compiling import compiled

Bytes = npt.NDArray[np.uint8]

VNET_HEADER_BYTES = 10  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
ETHERNET_HEADER_BYTES = 14
_FLAGS, _GSO_TYPE, _HEADER_LENGTH, _GSO_SIZE, _CHECKSUM_START, _CHECKSUM_OFFSET = 0, 1, 2, 4, 6, 8
_GSO_UDP_L4 = 5
_GSO_ECN = 0x80
_NEEDS_CHECKSUM = 1
_UDP_HEADER_BYTES = 8
_TCP_DATA_OFFSET = 12


class WireSize(NamedTuple):
    """What a frame is on a wire: Ethernet bytes without frame check sequence, and packets."""

    wire_bytes: int
    packets: int


@compiled
def _byte(frame: Bytes, at: int) -> int:
    return np.int64(frame[at])  # type: ignore[return-value]  # int() would make it unsigned


@compiled
def _word(frame: Bytes, at: int) -> int:
    return _byte(frame, at) | _byte(frame, at + 1) << 8


@compiled
def wire_size(frame: Bytes) -> WireSize:
    """The wire size of a frame with its virtio header in front.

    A frame without segmentation is one packet of its own length. One with segmentation is cut by
    the receiver's kernel into ``gso_size`` bytes of payload each, and every cut adds the headers
    again (virtio 1.2, section 5.1.6.2). ``hdr_len`` is only a hint there, so the length of the
    headers is taken from where the checksum begins, plus the transport header.
    """
    length = len(frame) - VNET_HEADER_BYTES
    gso_type = _byte(frame, _GSO_TYPE)
    if gso_type == 0:
        return WireSize(length, 1)
    header_bytes = _word(frame, _HEADER_LENGTH)
    if _byte(frame, _FLAGS) & _NEEDS_CHECKSUM:
        header_bytes = _word(frame, _CHECKSUM_START)
        if gso_type & ~_GSO_ECN == _GSO_UDP_L4:
            header_bytes += _UDP_HEADER_BYTES
        else:
            data_offset_at = min(VNET_HEADER_BYTES + header_bytes + _TCP_DATA_OFFSET, len(frame) - 1)
            header_bytes += (_byte(frame, data_offset_at) >> 4) * 4
    packets = max(1, -(-(length - header_bytes) // max(1, _word(frame, _GSO_SIZE))))
    return WireSize(length + (packets - 1) * header_bytes, packets)


@compiled
def flip_bit(frame: Bytes, bit: int) -> None:
    """Flip one bit of the packet, counted from the end of the Ethernet header, in place.

    A checksum that is still missing is filled in before, as sch_netem does: else the receiver's kernel would
    take the corrupted packet for whole.
    """
    if _byte(frame, _FLAGS) & _NEEDS_CHECKSUM:
        begin = VNET_HEADER_BYTES + _word(frame, _CHECKSUM_START)
        field_at = begin + _word(frame, _CHECKSUM_OFFSET)
        if field_at + 1 < len(frame):
            # the field holds the sum of the pseudo header already
            total = 0
            for at in range(begin, len(frame)):
                total += _byte(frame, at) << (8 if (at - begin) % 2 == 0 else 0)
            checksum = 0xFFFF - total % 0xFFFF
            if checksum == 0:
                checksum = 0xFFFF
            frame[field_at] = checksum >> 8
            frame[field_at + 1] = checksum & 0xFF
        frame[_FLAGS] = _byte(frame, _FLAGS) & ~_NEEDS_CHECKSUM
    frame[VNET_HEADER_BYTES + ETHERNET_HEADER_BYTES + bit // 8] ^= np.uint8(1 << bit % 8)
