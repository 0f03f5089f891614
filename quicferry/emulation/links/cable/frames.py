"""AF_PACKET sockets that carry offloaded frames untouched.

With PACKET_VNET_HDR (packet(7), Linux 2.6.27) each frame is preceded by a virtio network header
that says which checksum is still missing and into which segments the frame is to be cut. Written
back at the other end as it was read, it lets TCP's segmentation offload work across the cable:
bulk transfers cross in frames of up to 64 KiB, and nobody has to turn ``tx`` offloads off.
"""

from __future__ import annotations

import socket
import struct

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

VNET_HEADER = struct.Struct("<BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset


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
