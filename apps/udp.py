"""A UDP port for an asyncio loop that can be muted, drained and read in batches.

asyncio's own datagram endpoint hands over one datagram per turn of the loop and cannot say
"give me all that is waiting, now", which freezing a server needs.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from quicferry.model import Endpoint

BATCH = 64  # datagrams read in one turn of the loop, so that timers are not starved
RECEIVE_BUFFER_BYTES = 4 << 20

Received = Callable[[list[tuple[bytes, tuple[str, int]]]], None]


class UdpPort:
    """A bound, unconnected socket: it hears from any address, as a moving peer needs."""

    def __init__(self, listen: Endpoint, received: Received, *, reuse: bool = False) -> None:
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        if reuse:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind((listen.host, listen.port))
        self._received = received
        self._reading = False

    def start(self) -> None:
        """Deliver what comes, and what has been waiting."""
        if not self._reading:
            asyncio.get_running_loop().add_reader(self.socket.fileno(), self._readable)
            self._reading = True

    def mute(self) -> None:
        """Deliver nothing until ``start``: datagrams wait in the kernel."""
        if self._reading:
            asyncio.get_running_loop().remove_reader(self.socket.fileno())
            self._reading = False

    def drain(self) -> list[tuple[bytes, tuple[str, int]]]:
        """Take up to BATCH waiting datagrams, each with its sender."""
        batch: list[tuple[bytes, tuple[str, int]]] = []
        while len(batch) < BATCH:
            try:
                data, sender = self.socket.recvfrom(65_535)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                # an ICMP error about an earlier datagram; this socket serves many peers and goes on
                continue
            batch.append((data, (sender[0], sender[1])))
        return batch

    def send(self, data: bytes, receiver: tuple[str, int]) -> bool:
        """Send one datagram. False when the kernel took it for lost: QUIC will notice."""
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
