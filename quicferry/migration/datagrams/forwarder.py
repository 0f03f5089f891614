"""Late datagrams: seen at the source after the freeze, handed on to the destination.

A ``Tap`` sees the UDP datagrams that arrive for the service, without taking them from anybody:
an AF_PACKET socket with a BPF filter, so that other traffic costs nothing. A ``Forwarder`` sends
them, as whole IP datagrams, in UDP to the destination's waiting room. QUIC drops duplicates by
packet number, so sending one too many is harmless and one too few costs a retransmission.

Frames reach a tap before the transport layer sees them, so it does not matter that the server's
socket is frozen, or gone.
"""

from __future__ import annotations

import _thread
import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from quicferry import packet_filter
from quicferry.errors import MigrationError
from quicferry.model import Endpoint
from quicferry.units import NS_PER_MS, now_ns

ETH_P_IP = 0x0800
ETH_P_IPV6 = 0x86DD
PACKET_OUTGOING = 4  # linux/if_packet.h: sent by this host
RECEIVE_BUFFER_BYTES = 4 << 20
IP_HEADER_BYTES = 20
IPV6_HEADER_BYTES = 40
UDP_HEADER_BYTES = 8
BATCH = 64  # datagrams read per wake-up, so that other tasks get their turn
SILENT_S = 0.05  # a server that was about to resume has done so by then

#: What came this shortly before the freeze may still lie unread in the server's socket.
LOOK_BACK_NS = 5 * NS_PER_MS
LOOK_BACK_DATAGRAMS = 64

Receiver = Callable[[bytes], None]


def service_filter(port: int) -> bytes:
    """A classic BPF program for SOCK_DGRAM: unfragmented IPv4 UDP to that port, whole; else nothing.

    (000) load the protocol, (002) the fragment offset, (005) the destination port behind an IP
    header of any length. Offsets count from the IP header.
    """
    program = (
        (0x30, 0, 0, 9),  # ldb [9]           protocol
        (0x15, 0, 6, socket.IPPROTO_UDP),  # jeq #17  else drop
        (0x28, 0, 0, 6),  # ldh [6]           flags and fragment offset
        (0x45, 4, 0, 0x3FFF),  # jset more-fragments or offset: drop
        (0xB1, 0, 0, 0),  # ldxb 4*([0]&0xf)  length of the IP header
        (0x48, 0, 0, 2),  # ldh [x+2]         UDP destination port
        (0x15, 0, 1, port),  # jeq port        else drop
        (0x06, 0, 0, 0xFFFF),  # ret whole
        (0x06, 0, 0, 0),  # ret nothing
    )
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def service_filter_ipv6(port: int) -> bytes:
    """The same for IPv6: UDP to that port directly behind the IP header (RFC 8200); else nothing."""
    program = (
        (0x30, 0, 0, 6),  # ldb [6]           next header
        (0x15, 0, 3, socket.IPPROTO_UDP),  # jeq #17  else drop
        (0x28, 0, 0, IPV6_HEADER_BYTES + 2),  # ldh [42]  UDP destination port
        (0x15, 0, 1, port),  # jeq port        else drop
        (0x06, 0, 0, 0xFFFF),  # ret whole
        (0x06, 0, 0, 0),  # ret nothing
    )
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


class Tap:
    """Hands every datagram that arrives at ``interfaces`` for UDP ``port`` to ``receiver``.

    Datagrams are bytes from the IP header on; what this host sends itself is left out. Needs
    CAP_NET_RAW. ``open`` before ``close``; both may be repeated.
    """

    def __init__(
        self, interfaces: Sequence[str], port: int, receiver: Receiver, *, ipv6: bool = False
    ) -> None:
        self._interfaces = list(interfaces)
        self._port = port
        self._ipv6 = ipv6
        self._receiver = receiver
        self._sockets: list[socket.socket] = []
        self._silent: list[socket.socket] = []  # to be closed

    @property
    def is_open(self) -> bool:
        """Whether the tap listens."""
        return bool(self._sockets)

    def open(self) -> None:
        """Start to listen on the running loop. Raises ``MigrationError``."""
        if self._sockets:
            return
        loop = asyncio.get_running_loop()
        for interface in self._interfaces:
            try:
                tap = self._make(interface)
            except OSError as error:
                self.close()
                raise MigrationError(
                    f"cannot listen to the frames of {interface}: {error.strerror}",
                    hint="it takes root, and the interface must exist in this host",
                ) from error
            self._sockets.append(tap)
            loop.add_reader(tap, self._read, tap)

    def _make(self, interface: str) -> socket.socket:
        """A packet socket on an interface, with the filter in force. Raises ``OSError``."""
        # protocol 0: nothing is queued before the filter stands and the socket is bound
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, 0)
        try:
            make_filter = service_filter_ipv6 if self._ipv6 else service_filter
            packet_filter.attach(tap, make_filter(self._port))
            tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            tap.bind((interface, ETH_P_IPV6 if self._ipv6 else ETH_P_IP))
        except OSError:
            tap.close()
            raise
        return tap

    def _read(self, tap: socket.socket) -> None:
        """Hand over what has arrived, at most ``BATCH`` datagrams."""
        for _ in range(BATCH):
            try:
                datagram, address = tap.recvfrom(0x10000)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # the interface went down; what is there later is read later
                return
            if address[2] != PACKET_OUTGOING:
                self._receiver(datagram)

    def drain(self) -> None:
        """Hand over what has arrived but was not read yet."""
        for tap in self._sockets:
            self._read(tap)

    def silence(self) -> None:
        """Stop listening, at once; the sockets are closed SILENT_S later.

        Even the thread that closes them takes a processor from a server that is about to resume.
        """
        silent, self._sockets = self._sockets, []
        loop = asyncio.get_running_loop()
        for tap in silent:
            loop.remove_reader(tap)
        self._silent += silent
        if silent:
            loop.call_later(SILENT_S, self._close_silent)

    def _close_silent(self) -> None:
        closing, self._silent = self._silent, []
        if closing:
            _thread.start_new_thread(_close_all, (closing,))

    def close(self) -> None:
        """Stop listening, at once.

        The sockets themselves are closed by a thread: the kernel lets whoever closes a packet socket
        wait until no processor can be using it any more, 8 to 17 ms (measured; synchronize_net()). The
        thread's start is not waited for, as ``threading`` would: a server is about to resume, and on a busy
        machine it takes a millisecond and more.
        """
        closing, self._sockets = self._sockets, []
        for tap in closing:
            # the loop may be closed already when an agent is torn down
            with suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(tap)
        self._silent += closing
        self._close_silent()


def _close_all(sockets: list[socket.socket]) -> None:
    """Close sockets; run in a thread, see ``Tap.close``."""
    for each in sockets:
        each.close()


class Forwarder:
    """The source's end: keeps the last few datagrams, and from ``start`` on sends all to the waiting room.

    Its latency is one wake-up of the loop and one ``sendto``.
    """

    def __init__(self, interfaces: Sequence[str], port: int, *, ipv6: bool = False) -> None:
        self._tap = Tap(interfaces, port, self._take, ipv6=ipv6)
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=LOOK_BACK_DATAGRAMS)
        self._socket: socket.socket | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._server_returns = False
        self.forwarded = 0
        self.dropped = 0

    def open(self) -> None:
        """Start to watch the interfaces; nothing is sent yet. Raises ``MigrationError``."""
        self._cancel_closing()
        self._stop_sending()
        self.forwarded = self.dropped = 0
        self._recent.clear()
        self._tap.open()

    def start(self, waiting_room: Endpoint) -> None:
        """Forward everything from now on, and what arrived within ``LOOK_BACK_NS`` before."""
        #: wire-format 9: The source MUST NOT answer late datagrams
        family = socket.AF_INET6 if waiting_room.is_ipv6 else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.connect(tuple(waiting_room))
        self._server_returns = False
        since = now_ns() - LOOK_BACK_NS
        for t_ns, datagram in self._recent:
            if t_ns >= since:
                self._send(datagram)
        self._recent.clear()

    def server_returns(self) -> None:
        """A server is to come to this host, from where an earlier one may still be sent its datagrams.

        Until the next ``start``, ``hand_on`` forwards nothing: two hosts that forward to each other would
        send each datagram to and fro until one of them stops.
        """
        self._server_returns = True

    def hand_on(self, datagram: bytes) -> bool:
        """Forward a datagram that another host has handed on to this one; False while nothing is forwarded.

        A server that has moved twice is still asked for where it was at first: what comes from there goes on.
        """
        if self._socket is None or self._server_returns:
            return False
        self._send(datagram)
        return True

    def _take(self, datagram: bytes) -> None:
        """Keep or forward a datagram."""
        if self._socket is None:
            self._recent.append((now_ns(), datagram))
        else:
            self._send(datagram)

    def _send(self, datagram: bytes) -> None:
        """Send a datagram to the waiting room, and count it."""
        assert self._socket is not None
        try:
            self._socket.send(datagram)
            self.forwarded += 1
        except OSError:  # a full queue or a refused port: as good as a loss on the way
            self.dropped += 1

    def _stop_sending(self) -> None:
        """Close the socket to the waiting room."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _cancel_closing(self) -> None:
        """Forget a ``close_later``."""
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def close_later(self, delay_s: float) -> None:
        """Close after a while: clients that have not switched yet still send to the source."""
        self._cancel_closing()
        self._closing = asyncio.get_running_loop().call_later(delay_s, self.close)

    def close(self) -> None:
        """Stop watching and sending."""
        self._cancel_closing()
        self._tap.close()
        self._stop_sending()
        self._recent.clear()
