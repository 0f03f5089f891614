"""One end of a link while it is calibrated: sends and receives the frames of the measurement.

The frames have an Ethernet type of their own (0x88B5, IEEE 802: local experimental), so that neither
addresses nor routes are needed and an end may be the port of a bridge.
"""

from __future__ import annotations

import socket
import struct
import time

from quicferry import packet_filter
from quicferry.emulation.links.batch import BatchReader
from quicferry.emulation.links.cable.frames import (
    ETH_P_ALL,
    PACKET_IGNORE_OUTGOING,
    PACKET_QDISC_BYPASS,
    PACKET_VNET_HDR,
    RECEIVE_BUFFER_BYTES,
    SO_RCVBUFFORCE,
    SO_TIMESTAMPNS,
    SOL_PACKET,
    VNET_HEADER,
)
from quicferry.emulation.links.cable.packets import VNET_HEADER_BYTES
from quicferry.emulation.sandbox.namespaces import network_of
from quicferry.errors import EmulationError

ETHERTYPE = 0x88B5
ETH_P_IP = 0x0800
TRAIN_SOURCE = 0x7F000053  # 127.0.0.83
PING, ECHO, TRAIN = 1, 2, 3
BATCH = 32
_BODY = struct.Struct("!BI")  # kind, number
_ETHERTYPE_AT = VNET_HEADER_BYTES + 12
_TRAIN_ETHERTYPE = struct.pack("!H", ETH_P_IP)
_NEEDS_CHECKSUM, _GSO_TCPV4 = 1, 1  # <linux/virtio_net.h>
#: accepts calibration frames of either kind
_OURS = struct.pack(
    "=" + 7 * "HBBI",
    *(0x28, 0, 0, 12),  # load the Ethernet type
    *(0x15, 3, 0, ETHERTYPE),  # equal: accept
    *(0x15, 0, 3, ETH_P_IP),  # not equal: refuse
    *(0x20, 0, 0, 26),  # load the IPv4 source address
    *(0x15, 0, 1, TRAIN_SOURCE),  # not equal: refuse
    *(0x06, 0, 0, 0x40000),  # accept
    *(0x06, 0, 0, 0),  # refuse
)


class LinkEnd:
    """One end of a link: a socket on the host's interface, for calibration frames only.

    Raises ``EmulationError`` when the interface is missing or down.
    """

    def __init__(self, pid: int, interface: str) -> None:
        try:
            with network_of(pid):
                self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
                try:
                    self._prepare(interface)
                except OSError:
                    self.socket.close()
                    raise
        except OSError as error:
            raise EmulationError(
                f"cannot calibrate at {interface}: {error.strerror}",
                hint="interfaces must exist and be up, and this needs root",
            ) from error
        self._reader = BatchReader(BATCH)
        self.hardware_address: bytes = self.socket.getsockname()[4]

    def _prepare(self, interface: str) -> None:
        self.socket.setblocking(False)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # ETH_P_ALL is needed to see frames before a bridge takes them; the filter keeps ours.
        packet_filter.attach(self.socket, _OURS)
        self.socket.bind((interface, ETH_P_ALL))

    def __enter__(self) -> LinkEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, other: LinkEnd, kind: int, number: int, length_bytes: int) -> int | None:
        """Send one frame; the time just before (CLOCK_REALTIME ns), None when the socket is full."""
        frame = self.frame(other, kind, number, length_bytes)
        sent_ns = time.time_ns()
        try:
            self.socket.send(frame)
        except BlockingIOError:
            return None
        return sent_ns

    def receive(self) -> list[tuple[int, int, int]]:
        """All frames that are there: kind, number and receive stamp (CLOCK_REALTIME ns)."""
        found: list[tuple[int, int, int]] = []
        while arrived := self._reader.read(self.socket.fileno()):
            for frame, stamp_ns in arrived:
                if frame[_ETHERTYPE_AT : _ETHERTYPE_AT + 2] == _TRAIN_ETHERTYPE:
                    found.append((TRAIN, 0, stamp_ns))
                else:
                    found.append((*_BODY.unpack_from(frame, _ETHERTYPE_AT + 2), stamp_ns))
        return found

    def frame(self, other: LinkEnd, kind: int, number: int, length_bytes: int) -> bytes:
        """One frame to the other end, with its virtio header."""
        head = other.hardware_address + self.hardware_address + struct.pack("!H", ETHERTYPE)
        body = (head + _BODY.pack(kind, number)).ljust(length_bytes, b"\0")
        return b"\0" * VNET_HEADER_BYTES + body

    def offloaded_frame(self, other: LinkEnd, mtu_bytes: int, segments: int) -> bytes:
        """A frame of segmentation offload that is ``segments`` full packets on a wire.

        It looks like TCP, as the kernel asks for that. Nobody takes it for a packet: its source is a
        loopback address and its IP checksum is wrong, so that the receiving host drops it unread.
        """
        payload_bytes = mtu_bytes - 40
        total_bytes = 40 + segments * payload_bytes
        header = VNET_HEADER.pack(_NEEDS_CHECKSUM, _GSO_TCPV4, 54, payload_bytes, 34, 16)
        ethernet = other.hardware_address + self.hardware_address + _TRAIN_ETHERTYPE
        ip = struct.pack("!BBHHHBBHII", 0x45, 0, total_bytes, 0, 0, 1, 6, 0xBAD, TRAIN_SOURCE, TRAIN_SOURCE)
        tcp = struct.pack("!HHIIBBHHH", 9, 9, 0, 0, 5 << 4, 0, 0, 0, 0)  # port 9: discard
        return header + ethernet + ip + tcp + bytes(segments * payload_bytes)
