"""Stands where the module ``socket`` is for the forwarder and the waiting room, which run unchanged.

Three kinds of sockets: a packet socket sees what arrives at its host, a UDP socket between agents sends over
the path between the edges and loses what that does not carry, and a raw socket puts a datagram into the
host's own service, with its client's address. A host's IP addresses are those that agents have of each other.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from simulation.clock import VirtualLoop
from simulation.network import Address
from simulation.paths import Path
from simulation.process import Process, current

QUEUE_DATAGRAMS = 512
CLIENT_INTERFACE = "client0"
_IP_HEADER = struct.Struct("!BBHHHBBH4s4s")
_UDP_HEADER = struct.Struct("!HHHH")
_OVERHEAD_BYTES = _IP_HEADER.size + _UDP_HEADER.size
_INCOMING = 0  # PACKET_HOST of linux/if_packet.h

Inject = Callable[[str, bytes, Address], None]
Route = Callable[[str, str], tuple[Path, str]]


def ip_datagram(source: Address, destination: Address, payload: bytes) -> bytes:
    """An IPv4 UDP datagram as a tap sees it; checksums are left out, as between veth ends."""
    size = _OVERHEAD_BYTES + len(payload)
    ends = (socket.inet_aton(source[0]), socket.inet_aton(destination[0]))
    header = _IP_HEADER.pack(0x45, 0, size, 0, 0, 64, socket.IPPROTO_UDP, 0, *ends)
    udp = _UDP_HEADER.pack(source[1], destination[1], size - _IP_HEADER.size, 0)
    return header + udp + payload


class RawSockets:
    """The sockets of all hosts. ``inject`` gives a payload to a host's service, from that client."""

    def __init__(
        self, loop: VirtualLoop, route: Route, number_of: Callable[[str], int], inject: Inject
    ) -> None:
        self._loop = loop
        self._route = route
        self._number_of = number_of
        self._inject = inject
        self._open: dict[str, list[RawSocket]] = {}

    def module(self) -> Any:
        """What is to stand for the module ``socket``."""
        return _Module(self)

    def make(self, family: int, kind: int, protocol: int = 0) -> RawSocket:
        """As ``socket.socket``."""
        process = current()
        assert process is not None
        made = RawSocket(self, process, family, kind & ~socket.SOCK_NONBLOCK)
        self._open.setdefault(process.host, []).append(made)
        process.at_death.append(made.close)
        return made

    def arrived(self, host: str, datagram: bytes) -> None:
        """An IP datagram of a client has come to a host: its taps see it before anybody else."""
        for each in self.taps(host):
            each.queue(datagram, (CLIENT_INTERFACE, 0, _INCOMING))

    def taps(self, host: str) -> list[RawSocket]:
        """The packet sockets of a host that listen."""
        mine = self._open.get(host, ())
        return [each for each in mine if each.family == socket.AF_PACKET and each.local is not None]

    def send_between(self, sender: RawSocket, to: tuple[str, int], data: bytes) -> None:
        """UDP from agent to agent."""
        path, host = self._route(sender.process.host, to[0])
        if not (path.carries(sender.process.host) and sender.process.alive):
            return
        source = (f"10.1.0.{self._number_of(sender.process.host)}", 50_000)
        self._loop.physics(path.latency_s, self._come, host, to[1], data, source)

    def _come(self, host: str, port: int, data: bytes, source: Address) -> None:
        for each in list(self._open.get(host, ())):
            if each.kind == socket.SOCK_DGRAM and each.local is not None and each.local[1] == port:
                each.queue(data, source)

    def inject(self, sender: RawSocket, datagram: bytes) -> None:
        """A raw datagram to this host itself."""
        if sender.process.alive:
            source = (socket.inet_ntoa(datagram[12:16]), int.from_bytes(datagram[20:22], "big"))
            self._inject(sender.process.host, datagram[_OVERHEAD_BYTES:], source)

    def forget(self, closed: RawSocket) -> None:
        """A socket is closed."""
        mine = self._open.get(closed.process.host, [])
        if closed in mine:
            mine.remove(closed)

    def call_when_readable(self, reader: RawSocket) -> None:
        """Wake whoever has asked to be told, unless it asks no more when it is its turn."""
        reader.process.call_soon(self._wake, reader)

    def _wake(self, reader: RawSocket) -> None:
        found = self._loop.readers.get(reader)
        if found is not None:
            found[0](*found[1])


class RawSocket:
    """One socket, as far as forwarder and waiting room use it."""

    def __init__(self, all_sockets: RawSockets, process: Process, family: int, kind: int) -> None:
        self._all = all_sockets
        self.process = process
        self.family = family
        self.kind = kind
        self.local: tuple[Any, ...] | None = None
        self._remote: tuple[str, int] | None = None
        self._waiting: deque[tuple[bytes, tuple[Any, ...]]] = deque()

    def queue(self, data: bytes, source: tuple[Any, ...]) -> None:
        """Something has come."""
        if len(self._waiting) < QUEUE_DATAGRAMS:
            self._waiting.append((data, source))
            if len(self._waiting) == 1:
                self._all.call_when_readable(self)

    def setsockopt(self, *_: object) -> None:
        """Queues are as long as they are."""

    def bind(self, local: tuple[Any, ...]) -> None:
        self.local = local

    def getsockname(self) -> tuple[Any, ...]:
        assert self.local is not None
        return self.local

    def connect(self, remote: tuple[str, int]) -> None:
        self._remote = remote

    def send(self, data: bytes) -> int:
        assert self._remote is not None
        self._all.send_between(self, self._remote, data)
        return len(data)

    def sendto(self, data: bytes, to: tuple[str, int]) -> int:
        self._all.inject(self, data)
        return len(data)

    def recvfrom(self, most_bytes: int) -> tuple[bytes, tuple[Any, ...]]:
        if not self._waiting:
            raise BlockingIOError
        found = self._waiting.popleft()
        if self._waiting:
            self._all.call_when_readable(self)
        return found

    def close(self) -> None:
        self.local = None
        self._waiting.clear()
        self._all.forget(self)


class _Module:
    """The module ``socket`` with one other class."""

    def __init__(self, raw: RawSockets) -> None:
        self.socket = raw.make

    def __getattr__(self, name: str) -> Any:
        return getattr(socket, name)


def _run_at_once(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """A thread that has run when it is started."""
    function(*arguments)


#: what is to stand for the module ``_thread``
THREAD = SimpleNamespace(start_new_thread=_run_at_once)
