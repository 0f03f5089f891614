"""The destination's waiting room: datagrams for a server that does not run yet.

It keeps the newest few of each client, that the source handed on or that came directly, and gives them
to the server the moment it runs: injected through a raw socket with the client's own source address,
so that the server sees what it would have seen. Handed-on datagrams that come later pass straight
through; direct ones reach the running server by themselves.

Where the client is the one to restart the traffic, what was handed on must not do it in its place: a
server that answered it would have spoken first. Then the room keeps it, beyond the moment the server
runs, until the client itself has come (a datagram sent directly to this host), or has had long enough to: one
that was not told, or has another address by now, may be heard in no other way.

Source addresses are kept, so the replies of the server go to the client by the usual way. Packets
that a host sends to itself skip the reverse-path check, so a client's address on loopback is fine.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from quicferry.errors import MigrationError
from quicferry.migration.datagrams.forwarder import (
    IP_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    UDP_HEADER_BYTES,
    Tap,
)
from quicferry.model import Endpoint

CAPACITY = 128  # datagrams; of one client at 10 ms between requests more than half a second
LEAST_SHARE = 2  # datagrams: a client that probes once and asks once must not be crowded out
MOST_SHARERS = 4096  # beyond these, who came first is forgotten: source addresses cost nothing to invent
RECEIVE_BUFFER_BYTES = 1 << 20
BATCH = 64
AWAITED_S = 3.0  # how long a client has, from the moment the server runs; then what was handed on is let in


def _sum(data: bytes) -> int:
    """The ones' complement sum of 16-bit words (RFC 1071), not folded to a checksum yet.

    2^16 is 1 modulo 65535, so the sum of the words is the whole number modulo 65535.
    """
    if len(data) % 2:
        data += b"\0"
    return int.from_bytes(data) % 0xFFFF


def udp_checksum(source: bytes, destination: bytes, segment: bytes) -> int:
    """The UDP checksum over IPv4 (RFC 768) or IPv6 (RFC 8200 section 8.1), by the length of the addresses.

    The segment's own checksum field must be zero. Both pseudo headers sum up alike: their words are the
    addresses, the protocol and the length.
    """
    pseudo = source + destination + struct.pack("!BBH", 0, socket.IPPROTO_UDP, len(segment))
    checksum = 0xFFFF - (_sum(pseudo) + _sum(segment)) % 0xFFFF
    return checksum or 0xFFFF  # zero would mean "no checksum"


def readdress(datagram: bytes, destination: Endpoint) -> bytes | None:
    """The same UDP datagram for another destination; None for one that is not whole, or no UDP.

    Its IP version must be that of the destination. IP options are left out, the UDP checksum is made anew
    (one taken from a veth interface may never have been computed). The kernel fills in the IP checksum and
    identification.
    """
    if destination.is_ipv6:
        return _readdress_ipv6(datagram, destination)
    if len(datagram) < IP_HEADER_BYTES or datagram[0] >> 4 != 4 or datagram[9] != socket.IPPROTO_UDP:
        return None
    header_bytes = (datagram[0] & 0x0F) * 4
    total_bytes = struct.unpack_from("!H", datagram, 2)[0]
    if header_bytes < IP_HEADER_BYTES or not header_bytes + UDP_HEADER_BYTES <= total_bytes <= len(datagram):
        return None
    segment = bytearray(datagram[header_bytes:total_bytes])
    if struct.unpack_from("!H", segment, 4)[0] != len(segment):
        return None
    source = datagram[12:16]
    target = ipaddress.IPv4Address(destination.host).packed
    struct.pack_into("!H", segment, 2, destination.port)
    struct.pack_into("!H", segment, 6, 0)
    struct.pack_into("!H", segment, 6, udp_checksum(source, target, bytes(segment)))
    length = IP_HEADER_BYTES + len(segment)
    # type of service and time to live as they came
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, datagram[1], length, 0, 0, datagram[8], socket.IPPROTO_UDP, 0, source, target
    )
    return header + bytes(segment)


def _readdress_ipv6(datagram: bytes, destination: Endpoint) -> bytes | None:
    """As ``readdress`` for IPv6 without extension headers, which is what the tap lets through."""
    if len(datagram) < IPV6_HEADER_BYTES or datagram[0] >> 4 != 6 or datagram[6] != socket.IPPROTO_UDP:
        return None
    segment_bytes = struct.unpack_from("!H", datagram, 4)[0]
    if not UDP_HEADER_BYTES <= segment_bytes <= len(datagram) - IPV6_HEADER_BYTES:
        return None
    segment = bytearray(datagram[IPV6_HEADER_BYTES : IPV6_HEADER_BYTES + segment_bytes])
    if struct.unpack_from("!H", segment, 4)[0] != len(segment):
        return None
    source = datagram[8:24]
    target = ipaddress.IPv6Address(destination.host).packed
    struct.pack_into("!H", segment, 2, destination.port)
    struct.pack_into("!H", segment, 6, 0)
    struct.pack_into("!H", segment, 6, udp_checksum(source, target, bytes(segment)))
    # traffic class, flow label and hop limit as they came
    return datagram[:24] + target + bytes(segment)


def _sharer(datagram: bytes) -> bytes:
    """Whose datagram it is: the source's address and port."""
    if datagram and datagram[0] >> 4 == 6:
        return datagram[8:24] + datagram[IPV6_HEADER_BYTES : IPV6_HEADER_BYTES + 2]
    ports = (datagram[0] & 0x0F) * 4 if datagram else 0
    return datagram[12:16] + datagram[ports : ports + 2]


class PerClientBuffer:
    """The newest datagrams of each client; ``capacity`` is shared out among the clients.

    What was handed on and what came directly are counted apart: one client's probes, which repeat
    each other, must not push out its requests, nor those of others. With many clients each keeps
    ``LEAST_SHARE`` of either kind, so that all together may have more than ``capacity``.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._arrivals = 0
        self._queues: dict[tuple[bool, bytes], deque[tuple[int, bytes]]] = {}

    def add(self, datagram: bytes, *, direct: bool) -> None:
        """Keep a UDP datagram; its client's oldest may be dropped for it."""
        sharer = (direct, _sharer(datagram))
        queue = self._queues.get(sharer)
        if queue is None:
            if len(self._queues) >= MOST_SHARERS:
                del self._queues[next(iter(self._queues))]
            queue = self._queues[sharer] = deque()
        self._arrivals += 1
        queue.append((self._arrivals, datagram))
        while len(queue) > self._share:
            queue.popleft()

    @property
    def _share(self) -> int:
        """How many datagrams each client may have now."""
        return max(LEAST_SHARE, self._capacity // len(self._queues))

    def take(self) -> list[bytes]:
        """Return and forget all datagrams, oldest first."""
        if not self._queues:
            return []
        share = self._share  # it may have shrunk since the first ones came
        kept = [each for queue in self._queues.values() for each in list(queue)[-share:]]
        self._queues.clear()
        return [datagram for _, datagram in sorted(kept)]

    def clear(self) -> None:
        """Forget all datagrams."""
        self._queues.clear()


class WaitingRoom:
    """Keeps the newest datagrams of every client until the server runs.

    ``hand_on`` takes what comes when the server has moved on from here; it says whether it did.
    ``listen`` is where sources send theirs to; only datagrams from ``sources`` (addresses of the
    other edges) are taken. ``service`` is the local address clients use for the server here.
    """

    def __init__(
        self,
        listen: Endpoint,
        sources: Iterable[str],
        service: Endpoint,
        interfaces: Sequence[str],
        *,
        capacity: int = CAPACITY,
        hand_on: Callable[[bytes], bool] | None = None,
    ) -> None:
        self._hand_on = hand_on
        self._listen = listen
        self._sources = frozenset(sources)
        self._service = service
        self._tap = Tap(interfaces, service.port, self._direct, ipv6=service.is_ipv6)
        self._buffer = PerClientBuffer(capacity)
        self._receiver: socket.socket | None = None
        self._injector: socket.socket | None = None
        self._is_open = False
        self._server_runs = False
        self._await_client = False
        self._client_came = False
        self._keeps_what_came = False
        self._closing: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self.handed_on = 0  # came from a source
        self.early = 0  # came directly, before the server ran
        self.replayed = 0
        self.passed = 0  # handed on and injected after the server ran

    @property
    def address(self) -> Endpoint:
        """Where sources send to; with port 0 the port is known after ``prepare``."""
        port = self._receiver.getsockname()[1] if self._receiver is not None else self._listen.port
        return Endpoint(self._listen.host, port)

    def prepare(self, *, await_client: bool = False) -> None:
        """Start to collect, with an empty buffer. May be repeated.

        With ``await_client`` nothing is let in before the client itself has come. Raises
        ``MigrationError``.
        """
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self._end_patience()
        self._is_open = self._server_runs = False
        self._await_client = await_client
        if not self._keeps_what_came:
            self._client_came = False
            self._buffer.clear()
            self.handed_on = self.early = self.replayed = self.passed = 0
        try:
            if self._receiver is None:
                family = socket.AF_INET6 if self._listen.is_ipv6 else socket.AF_INET
                self._receiver = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
                self._receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
                self._receiver.bind(tuple(self._listen))
                asyncio.get_running_loop().add_reader(self._receiver, self._read)
            if self._injector is None:
                self._injector = socket.socket(
                    socket.AF_INET6 if self._service.is_ipv6 else socket.AF_INET,
                    socket.SOCK_RAW | socket.SOCK_NONBLOCK,
                    socket.IPPROTO_RAW,  # the IP header is in the data
                )
        except OSError as error:
            self.close()
            raise MigrationError(
                f"cannot open the waiting room at {self._listen}: {error.strerror}",
                hint="it takes root, and the port must be free",
            ) from error
        self._tap.open()

    def prepare_early(self) -> None:
        """Start to collect long before the first move; that one's ``prepare`` keeps what has come.

        For clients that were told of this host in the handshake and ask here only then. Raises
        ``MigrationError``.
        """
        self.prepare(await_client=True)
        self._keeps_what_came = True

    def _direct(self, datagram: bytes) -> None:
        """Take in a datagram that a client sent directly to this host."""
        #: wire-format 9: SHOULD keep datagrams that come before the state does
        if self._is_open:
            return
        self._client_came = True
        if self._server_runs:
            self._let_in()  # this one the server has by itself
        else:
            self.early += 1
            self._buffer.add(datagram, direct=True)

    def _read(self) -> None:
        """Take in what the source forwarded; inject it at once when the room is open."""
        assert self._receiver is not None
        for _ in range(BATCH):
            try:
                datagram, sender = self._receiver.recvfrom(0x10000)
            except OSError:  # nothing more to read for now
                return
            if sender[0] not in self._sources:
                continue
            self.handed_on += 1
            # not while it waits for a server: two hosts would hand it to and fro
            if self._server_runs and self._hand_on is not None and self._hand_on(datagram):
                continue
            if self._is_open:
                self.passed += self._inject(datagram)
            else:
                self._buffer.add(datagram, direct=False)

    def _inject(self, datagram: bytes) -> bool:
        """Send a datagram to the local server with its client's source address; False when it was lost."""
        fitting = readdress(datagram, self._service)
        if fitting is None or self._injector is None:
            return False
        try:
            self._injector.sendto(fitting, (self._service.host, 0))
        except OSError:  # a full queue: as good as a loss on the way
            return False
        return True

    def open(self) -> int:
        """Replay what waits, oldest first: the server runs. Returns how many were replayed."""
        if self._server_runs:
            return 0
        self._read()  # what lies in the sockets came before
        self._tap.drain()
        self._server_runs = True
        self._keeps_what_came = False
        if self._await_client and not self._client_came:
            self._patience = asyncio.get_running_loop().call_later(AWAITED_S, self._let_in)
            return 0
        return self._let_in()

    def _end_patience(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _let_in(self) -> int:
        """Replay what waits, and let later datagrams pass."""
        self._end_patience()
        self._is_open = True
        self.replayed = sum(self._inject(datagram) for datagram in self._buffer.take())
        self._tap.silence()
        return self.replayed

    def close_later(self, delay_s: float) -> None:
        """Pass datagrams on for ``delay_s``, then close."""
        if self._closing is not None:
            self._closing.cancel()
        self._closing = asyncio.get_running_loop().call_later(delay_s, self.close)

    def close(self) -> None:
        """Forget all datagrams and close the sockets."""
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
        self._end_patience()
        self._tap.close()
        self._buffer.clear()
        for owned in (self._receiver, self._injector):
            if owned is not None:
                # the loop may be closed already when an agent is torn down
                with suppress(RuntimeError):
                    asyncio.get_running_loop().remove_reader(owned)
                owned.close()
        self._receiver = self._injector = None
