"""AF_PACKET sockets that carry offloaded frames untouched, and what such a frame is on a wire.

With PACKET_VNET_HDR (packet(7), Linux 2.6.27) each frame is preceded by a virtio network header
that says which checksum is still missing and into which segments the frame is to be cut. Written
back at the other end as it was read, it lets TCP's segmentation offload work across the cable:
bulk transfers cross in frames of up to 64 KiB, and nobody has to turn ``tx`` offloads off.
"""

from __future__ import annotations

import socket
import struct
from typing import NamedTuple

from quicferry.errors import EmulationError

ETH_P_ALL = 0x0003
SOL_PACKET = 263
# <linux/if_packet.h>
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
PACKET_QDISC_BYPASS = 20
PACKET_IGNORE_OUTGOING = 23
# <asm-generic/socket.h>
SO_SNDBUFFORCE = 32
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35

RECEIVE_BUFFER_BYTES = 64 << 20
SEND_BUFFER_BYTES = 16 << 20
LARGEST_FRAME_BYTES = (
    10 + 14 + 65_535 + 512
)  # header, Ethernet, IP; more only with jumbo GSO, which we forbid

VNET_HEADER = struct.Struct("<BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
VNET_HEADER_BYTES = VNET_HEADER.size
_GSO_UDP_L4 = 5
_GSO_ECN = 0x80
_NEEDS_CHECKSUM = 1
_UDP_HEADER_BYTES = 8
ETHERNET_HEADER_BYTES = 14


class WireSize(NamedTuple):
    """What a frame is on a wire: Ethernet bytes without frame check sequence, and packets."""

    wire_bytes: int
    packets: int


def wire_size(frame: bytes) -> WireSize:
    """The wire size of a frame with its virtio header in front.

    A frame without segmentation is one packet of its own length. One with segmentation is cut by
    the receiver's kernel into ``gso_size`` bytes of payload each, and every cut adds the headers
    again (virtio 1.2, section 5.1.6.2). ``hdr_len`` is only a hint there, so the length of the
    headers is taken from where the checksum begins, plus the transport header.
    """
    length = len(frame) - VNET_HEADER_BYTES
    gso_type = frame[1]
    if not gso_type:
        return WireSize(length, 1)
    flags, gso_type, header_bytes, gso_size, checksum_start, _ = VNET_HEADER.unpack_from(frame)
    if flags & _NEEDS_CHECKSUM:
        if gso_type & ~_GSO_ECN == _GSO_UDP_L4:
            header_bytes = checksum_start + _UDP_HEADER_BYTES
        else:
            data_offset_at = VNET_HEADER_BYTES + checksum_start + 12
            header_bytes = checksum_start + (frame[data_offset_at] >> 4) * 4
    packets = max(1, -(-(length - header_bytes) // max(1, gso_size)))
    return WireSize(length + (packets - 1) * header_bytes, packets)


def flip_bit(frame: bytes, bit: int) -> bytes:
    """The frame with one bit of its packet flipped, counted from the end of the Ethernet header.

    A checksum that is still missing is filled in before, as sch_netem does: else the receiver's kernel would
    take the corrupted packet for whole.
    """
    changed = bytearray(frame)
    flags, _, _, _, start, offset = VNET_HEADER.unpack_from(frame)
    if flags & _NEEDS_CHECKSUM:
        begin = VNET_HEADER_BYTES + start
        # the field holds the sum of the pseudo header already
        body = frame[begin:] + b"\0" * ((len(frame) - begin) % 2)
        checksum = 0xFFFF - int.from_bytes(body) % 0xFFFF
        struct.pack_into("!H", changed, begin + offset, checksum or 0xFFFF)
        changed[0] = flags & ~_NEEDS_CHECKSUM
    at = VNET_HEADER_BYTES + ETHERNET_HEADER_BYTES + bit // 8
    changed[at] ^= 1 << bit % 8
    return bytes(changed)


def open_wire_end(interface: str) -> socket.socket:
    """A non-blocking socket that reads and writes all frames of one interface.

    Raises ``EmulationError`` when there is no such interface and ``PermissionError`` without
    CAP_NET_RAW.
    """
    # Protocol 0 receives nothing: else frames of all interfaces would come in before bind.
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        wire.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        wire.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)  # Linux 4.20
        wire.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)  # Linux 3.14
        wire.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        wire.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
        wire.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        wire.bind((interface, ETH_P_ALL))
    except OSError as error:
        wire.close()
        if isinstance(error, PermissionError):
            raise
        raise EmulationError(
            f"the wire end {interface} cannot be opened: {error.strerror}",
            hint="the cable must run in the network namespace of its wire ends, on Linux 4.20 or later",
        ) from error
    return wire


def overruns(wire: socket.socket) -> int:
    """Frames that the kernel dropped because nobody read them, since the last call."""
    _, dropped = struct.unpack("=II", wire.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
    return int(dropped)
