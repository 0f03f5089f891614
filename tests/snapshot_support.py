"""A client, a server that is moved from object to object, and the network between them, in virtual time."""

from __future__ import annotations

import hashlib
import heapq
import math
import random
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted, QuicEvent, StreamDataReceived
from aioquic.quic.packet import pull_quic_header

from quicferry.quic.snapshot import Build, freeze, restore_snapshot, take_snapshot
from simulation.nonces import each_packet
from tests.certificate import certificate

CLIENT = ("10.0.0.2", 40000)
SERVER = ("10.0.1.2", 4433)
#: what the clocks of servers are ahead of the client's: one after the other
CLOCKS_S = (0.0, 5000.0, 1.0, 700.0)
#: timers fire a little late, as real ones do; on the dot, rounding could make them fire for nothing, for ever
TIMER_SLACK_S = 1e-9


def server_configuration(**other: Any) -> QuicConfiguration:
    made, key = certificate()
    return QuicConfiguration(
        is_client=False,
        alpn_protocols=["ferry-test"],
        certificate=made,
        private_key=key,
        max_datagram_frame_size=1200,
        **other,
    )


def client_configuration(**other: Any) -> QuicConfiguration:
    return QuicConfiguration(
        is_client=True,
        alpn_protocols=["ferry-test"],
        verify_mode=ssl.CERT_NONE,
        max_datagram_frame_size=1200,
        **other,
    )


def pattern(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Service:
    """The server's application: its state is apart from the connection, as in a real server.

    ``GET size seed`` is answered with that many bytes of that pattern, anything else with its SHA-256.
    """

    def __init__(self) -> None:
        self.received: dict[int, bytes] = {}
        self.requests = 0

    def handle(self, connection: QuicConnection, event: QuicEvent) -> None:
        if not isinstance(event, StreamDataReceived):
            return
        data = self.received.get(event.stream_id, b"") + event.data
        self.received[event.stream_id] = data
        if not event.end_stream:
            return
        self.requests += 1
        if data.startswith(b"GET "):
            size, seed = (int(word) for word in data.split()[1:])
            answer = pattern(size, seed)
        else:
            answer = hashlib.sha256(data).digest()
        connection.send_stream_data(event.stream_id, answer, end_stream=True)


class World:
    """Virtual time, a client, one server at a time; datagrams are delayed, lost and reordered by seed."""

    def __init__(
        self,
        *,
        seed: int = 1,
        loss: float = 0.0,
        jitter_s: float = 0.0,
        delay_s: float = 0.009,
        build: Build = QuicConnection,
        client_class: type[QuicConnection] = QuicConnection,
        server_options: dict[str, Any] | None = None,
        client_options: dict[str, Any] | None = None,
    ) -> None:
        self.random = random.Random(seed)
        self.loss, self.jitter_s, self.delay_s = loss, jitter_s, delay_s
        self.build = build
        self.now = 10.0
        self.server_clock = 0.0  # what the present server's clock is ahead of the client's
        self.configuration = server_configuration(**(server_options or {}))
        self.client = client_class(configuration=client_configuration(**(client_options or {})))
        self.server: QuicConnection | None = None
        self.service = Service()
        self.answers: dict[int, bytes] = {}
        self.finished: set[int] = set()
        self.events: list[QuicEvent] = []
        self.delivered = 0
        self.bytes_moved: list[int] = []
        self.down_until: float | None = None
        self.forward_late = True
        self.client_address = CLIENT
        self._queue: list[tuple[float, int, str, bytes]] = []
        self._count = 0
        self._late: list[bytes] = []
        self._resume: Callable[[], None] | None = None

    # the client's side of the application

    def get(self, size: int, seed: int) -> int:
        return self.ask(b"GET %d %d" % (size, seed))

    def ask(self, data: bytes) -> int:
        stream_id = self.client.get_next_available_stream_id()
        self.client.send_stream_data(stream_id, data, end_stream=True)
        return stream_id

    def connect(self) -> None:
        self.client.connect(SERVER, self.now)
        self.flush()
        self.run(lambda: self.client._handshake_confirmed)

    # the network

    @property
    def server_now(self) -> float:
        return self.now + self.server_clock

    def flush(self) -> None:
        for data, _ in self.client.datagrams_to_send(self.now):
            self._send("server", data)
        if self.server is not None and self.down_until is None:
            for data, _ in self.server.datagrams_to_send(self.server_now):
                self._send("client", data)

    def _send(self, to: str, data: bytes) -> None:
        if self.random.random() < self.loss:
            return
        at = self.now + self.delay_s + self.random.random() * self.jitter_s
        self._count += 1
        heapq.heappush(self._queue, (at, self._count, to, data))

    def deliver(self, to: str, data: bytes) -> None:
        self.delivered += 1
        if to == "client":
            self.client.receive_datagram(data, SERVER, self.now)
        elif self.down_until is not None:
            if self.forward_late:
                self._late.append(data)
        else:
            if self.server is None:
                header = pull_quic_header(Buffer(data=data), host_cid_length=8)
                self.server = self.build(
                    configuration=self.configuration,
                    original_destination_connection_id=header.destination_cid,
                )
            self.server.receive_datagram(data, self.client_address, self.server_now)

    def take_events(self) -> None:
        while (event := self.client.next_event()) is not None:
            self.events.append(event)
            if isinstance(event, StreamDataReceived):
                self.answers[event.stream_id] = self.answers.get(event.stream_id, b"") + event.data
                if event.end_stream:
                    self.finished.add(event.stream_id)
            assert type(event).__name__ != "ConnectionTerminated", event
        if self.server is not None and self.down_until is None:
            while (event := self.server.next_event()) is not None:
                assert type(event).__name__ != "ConnectionTerminated", event
                if not isinstance(event, HandshakeCompleted):
                    self.service.handle(self.server, event)

    def step(self, not_after: float = math.inf) -> bool:
        """Go to the next thing that happens, at most to that time; False when nothing ever will."""
        times: list[tuple[float, str]] = []
        if self._queue:
            times.append((self._queue[0][0], "datagram"))
        client_timer = self.client.get_timer()
        if client_timer is not None:
            times.append((client_timer + TIMER_SLACK_S, "client"))
        if self.server is not None and self.down_until is None:
            server_timer = self.server.get_timer()
            if server_timer is not None:
                times.append((server_timer - self.server_clock + TIMER_SLACK_S, "server"))
        if self.down_until is not None:
            times.append((self.down_until, "resume"))
        if not times:
            return False
        at, what = min(times)
        if at > not_after:
            self.now = not_after
            return True
        self.now = max(self.now, at)
        if what == "datagram":
            _, _, to, data = heapq.heappop(self._queue)
            self.deliver(to, data)
        elif what == "client":
            self.client.handle_timer(self.now)
        elif what == "server":
            assert self.server is not None
            self.server.handle_timer(self.server_now)
        else:
            self._come_back()
        self.take_events()
        self.flush()
        return True

    def run(self, until: Callable[[], bool], limit_s: float = 120.0) -> None:
        deadline = self.now + limit_s
        while not until():
            assert self.now < deadline, "nothing came of it in virtual time"
            assert self.step(), "nobody has anything to do any more"

    def settle(self, seconds: float = 1.0) -> None:
        """Let that much time pass."""
        deadline = self.now + seconds
        while self.now < deadline:
            assert self.step(deadline)

    # the move

    def hop(self, downtime_s: float = 0.0) -> bytes:
        """Move the server to a new object, with another clock; late datagrams are forwarded or lost."""
        assert self.server is not None and self.down_until is None
        source = self.server
        freeze(source, self.server_now)
        data = take_snapshot(source, self.server_now, epoch=len(self.bytes_moved) + 1)
        self.bytes_moved.append(len(data))
        self.down_until = self.now + downtime_s

        def resume() -> None:
            self.server_clock = CLOCKS_S[len(self.bytes_moved) % len(CLOCKS_S)]
            self.server = restore_snapshot(
                data, configuration=self.configuration, build=self.build, now=self.server_now
            )

        self._resume = resume
        if downtime_s == 0.0:
            self._come_back()
            self.take_events()
            self.flush()
        return data

    def _come_back(self) -> None:
        assert self._resume is not None and self.down_until is not None
        self._resume()
        self._resume, self.down_until = None, None
        late, self._late = self._late, []
        for datagram in late:
            self.deliver("server", datagram)


class Nonces:
    """All (key, packet number) pairs that were used to encrypt, and for what."""

    def __init__(self) -> None:
        self.used: dict[tuple[bytes, int], bytes] = {}
        self.repeated: list[int] = []

    def add(self, secret: bytes, packet_number: int, content: bytes) -> None:
        known = self.used.setdefault((secret, packet_number), content)
        if known != content:
            self.repeated.append(packet_number)


@contextmanager
def watched_nonces() -> Iterator[Nonces]:
    """Watch all encryption in this process."""
    nonces = Nonces()
    with each_packet(nonces.add):
        yield nonces
