"""A UDP port for an asyncio loop that can be muted, drained and read in batches.

asyncio's own datagram endpoint hands over one datagram per turn of the loop and cannot say
"give me all that is waiting, now", which freezing a server needs.
"""

from __future__ import annotations

import asyncio
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


class Datagram(NamedTuple):
    """A datagram. ``received_ns`` (CLOCK_MONOTONIC) is when it reached this host, or when it was read."""

    data: bytes
    sender: tuple[str, int]
    received_ns: int


Received = Callable[[list[Datagram]], None]


class UdpPort:
    """A bound, unconnected socket: it receives from any address, as a peer's address may change.

    With ``stamped`` the kernel says when each datagram reached the host, so that times do not include how
    long a busy process took to read it.
    """

    def __init__(self, listen: Endpoint, received: Received, *, stamped: bool = False) -> None:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._stamped = stamped
        if stamped:
            self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.bind((listen.host, listen.port))
        self._received = received
        self._reading = False

    def start(self) -> None:
        """Deliver datagrams as they come, and those that have been waiting."""
        if not self._reading:
            asyncio.get_running_loop().add_reader(self.socket.fileno(), self._readable)
            self._reading = True

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
                if self._stamped:
                    data, control, _, sender = self.socket.recvmsg(65_535, 64)
                else:
                    data, sender = self.socket.recvfrom(65_535)
                    control = []
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # an ICMP error about an earlier datagram; this socket serves many peers and goes on
                continue
            received_ns = read_ns
            for level, kind, value in control:
                if (level, kind) == (socket.SOL_SOCKET, SO_TIMESTAMPNS):
                    seconds, nanoseconds = TIMESPEC.unpack(value)
                    received_ns = seconds * NS_PER_S + nanoseconds + to_monotonic_ns
            batch.append(Datagram(data, (sender[0], sender[1]), received_ns))
        return batch

    def send(self, data: bytes, receiver: tuple[str, int]) -> bool:
        """Send one datagram. False when the kernel did not take it; for QUIC that is a lost packet."""
        try:
            self.socket.sendto(data, receiver)
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
