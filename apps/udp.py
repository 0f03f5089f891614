"""A UDP port for an asyncio loop that can be muted, drained and read in batches.

asyncio's own datagram endpoint hands over one datagram per turn of the loop and cannot say
"give me all that is waiting, now", which freezing a server needs.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from quicferry.model import Endpoint
from quicferry.units import NS_PER_S, now_ns

BATCH = 64  # datagrams read in one turn of the loop, so that timers are not starved
RECEIVE_BUFFER_BYTES = 4 << 20

SO_TIMESTAMPNS = 35  # asm-generic/socket.h; the socket module does not have it
TIMESPEC = struct.Struct("qq")

IP_PKTINFO = 8  # linux/in.h; the socket module does not have it before Python 3.12
IN_PKTINFO = struct.Struct("=i4s4s")  # struct in_pktinfo: interface, local address, address in the header
IN6_PKTINFO = struct.Struct("=16si")
CONTROL_BYTES = 128


class Datagram(NamedTuple):
    """A datagram. ``received_ns`` (CLOCK_MONOTONIC) is when it reached this host, or when it was read."""

    data: bytes
    sender: tuple[str, int]
    received_ns: int
    local: str | None = (
        None  # the address of this host that it came to, where the port is bound to all of them
    )


Received = Callable[[list[Datagram]], None]


class UdpPort:
    """A bound, unconnected socket: it receives from any address, as a peer's address may change.

    With ``stamped`` the kernel says when each datagram reached the host, so that times do not include how
    long a busy process took to read it.

    A port that is bound to every address of its host knows to which of them a datagram came, and can answer
    from there: a peer takes an answer from elsewhere for another's (RFC 9000 §9).
    """

    def __init__(self, listen: Endpoint, received: Received, *, stamped: bool = False) -> None:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._stamped = stamped
        if stamped:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self._everywhere = listen.host in ("0.0.0.0", "::")
        self._want_local()
        self.socket.bind((listen.host, listen.port))
        self._received = received
        self._reading = False

    def start(self) -> None:
        """Deliver datagrams as they come, and those that have been waiting."""
        if not self._reading:
            self._want_local()  # again: a socket that was restored from a checkpoint may have lost it
            asyncio.get_running_loop().add_reader(self.socket.fileno(), self._readable)
            self._reading = True

    def _want_local(self) -> None:
        if self._everywhere and self.socket.family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif self._everywhere:
            self.socket.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)

    def mute(self) -> None:
        """Deliver nothing until ``start``: datagrams wait in the kernel."""
        if self._reading:
            asyncio.get_running_loop().remove_reader(self.socket.fileno())
            self._reading = False

    def drain(self) -> list[Datagram]:
        """Take up to BATCH waiting datagrams."""
        batch: list[Datagram] = []
        read_ns = now_ns()
        to_monotonic_ns = read_ns - time.time_ns()
        while len(batch) < BATCH:
            try:
                if self._stamped or self._everywhere:
                    data, control, _, sender = self.socket.recvmsg(65_535, CONTROL_BYTES)
                else:
                    data, sender = self.socket.recvfrom(65_535)
                    control = []
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # an ICMP error about an earlier datagram; this socket serves many peers and goes on
                continue
            received_ns, local = read_ns, None
            for level, kind, value in control:
                if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                    seconds, nanoseconds = TIMESPEC.unpack(value)
                    received_ns = seconds * NS_PER_S + nanoseconds + to_monotonic_ns
                elif (level, kind) == (socket.IPPROTO_IP, IP_PKTINFO):
                    local = _text(socket.AF_INET, IN_PKTINFO.unpack(value)[2])
                elif (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
                    local = _text(socket.AF_INET6, IN6_PKTINFO.unpack(value)[0])
            batch.append(Datagram(data, (sender[0], sender[1]), received_ns, local))
        return batch

    def send(self, data: bytes, receiver: tuple[str, int], local: str | None = None) -> bool:
        """Send one datagram. False when the kernel did not take it; for QUIC that is a lost packet.

        ``local`` is the address of this host that it leaves from; None leaves that to the kernel.
        """
        try:
            if local is None:
                self.socket.sendto(data, receiver)
            else:
                self.socket.sendmsg([data], [_leaving_from(local)], 0, receiver)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Stop reading and close the socket."""
        self.mute()
        self.socket.close()

    def _readable(self) -> None:
        batch = self.drain()
        if batch:
            self._received(batch)


@functools.lru_cache(maxsize=64)  # a host has few addresses, and this is asked for each datagram
def _leaving_from(local: str) -> tuple[int, int, bytes]:
    """The control message that names the source address."""
    if ":" in local:
        packed = IN6_PKTINFO.pack(socket.inet_pton(socket.AF_INET6, local), 0)
        return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, packed
    return socket.IPPROTO_IP, IP_PKTINFO, IN_PKTINFO.pack(0, socket.inet_aton(local), bytes(4))


_text = functools.lru_cache(maxsize=64)(socket.inet_ntop)
