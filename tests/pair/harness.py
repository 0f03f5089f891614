"""A client, a server that moves, and the network between them, in virtual time.

Nothing here sleeps: the clock jumps to whatever is next, a datagram that arrives, a timer or an action of
the test. The server is one sans-IO connection; "moving" is ``hold`` at one address and ``resume`` at
another after a downtime. Each client datagram to an address that has not answered a challenge is decrypted
and must hold probing frames only, in at least 1200 bytes: that check runs in every test.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import random
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.logger import QuicLogger
from aioquic.quic.packet import pull_quic_header

from quicferry.quic import (
    Address,
    ExtensionConfig,
    MigratableConnection,
    MigrationReady,
    PathSwitched,
    PathValidated,
)
from quicferry.quic.snapshot import freeze, restore_snapshot, take_snapshot, thaw
from quicferry.strategies import RULES, Strategy, speaks_first
from tests.certificate import certificate

CLIENT: Address = ("10.0.0.2", 40000)
EDGE_1: Address = ("10.0.1.2", 4433)
EDGE_2: Address = ("10.0.2.2", 4433)
RTT_S = 0.018
INTER_EDGE_S = 0.0005
PROBING_FRAMES = {0x00, 0x1A, 0x1B, 0x18}
START = 1000.0


def edge(number: int) -> Address:
    """The service address at edge ``number``."""
    return (f"10.0.{number}.2", 4433)


def preferred_in(strategy: Strategy, address: Address = EDGE_2) -> Address | None:
    """What a server says in the handshake that is to move by this strategy."""
    return address if strategy is Strategy.PREFERRED_ADDRESS else None


def configure_both(monkeypatch: pytest.MonkeyPatch, **values: Any) -> None:
    """From now on both ends of each pair are configured so."""
    plain = configurations

    def configured(idle_timeout_s: float = 60.0) -> tuple[QuicConfiguration, QuicConfiguration]:
        made = plain(idle_timeout_s)
        for configuration in made:
            for name, value in values.items():
                setattr(configuration, name, value)
        return made

    monkeypatch.setattr(sys.modules[__name__], "configurations", configured)


def configurations(idle_timeout_s: float = 60.0) -> tuple[QuicConfiguration, QuicConfiguration]:
    client = QuicConfiguration(is_client=True, alpn_protocols=["ferry"], idle_timeout=idle_timeout_s)
    client.verify_mode = ssl.CERT_NONE
    client.server_name = "service.test"
    server = QuicConfiguration(is_client=False, alpn_protocols=["ferry"], idle_timeout=idle_timeout_s)
    server.certificate, server.private_key = certificate()
    return client, server


@dataclass
class Network:
    """What the wire does. Times in seconds; the server addresses are the keys."""

    one_way_s: dict[Address, float] = field(default_factory=dict)
    loss: float = 0.0
    duplication: float = 0.0
    jitter_s: float = 0.0  # uniform, so it reorders
    drop: Callable[[bytes, Address, str], bool] | None = None  # (data, server address, "up" or "down")

    def delay_s(self, address: Address, rng: random.Random) -> float:
        return self.one_way_s.get(address, RTT_S / 2) + rng.uniform(0.0, self.jitter_s)


@dataclass
class Request:
    number: int
    stream_id: int
    sent_at: float
    answered_at: float | None = None


class Pair:
    """Two endpoints and all that happens to them."""

    def __init__(
        self,
        *,
        client: ExtensionConfig | str | None = "default",
        server: ExtensionConfig | str | None = "default",
        network: Network | None = None,
        seed: int = 1,
        idle_timeout_s: float = 60.0,
        logger: QuicLogger | None = None,
        hand_off: bool = False,  # a snapshot moves, not the object
        preferred: Address | None = None,  # said in the handshake, by a server with the usual extension
        unreliable: bool = False,  # both take DATAGRAM frames (RFC 9221)
    ) -> None:
        self.rng = random.Random(seed)
        self.network = network or Network()
        client_configuration, server_configuration = configurations(idle_timeout_s)
        if unreliable:
            for configuration in (client_configuration, server_configuration):
                configuration.max_datagram_frame_size = 65_536
        client_configuration.quic_logger = server_configuration.quic_logger = logger
        self.client: QuicConnection = self._make(client_configuration, client)
        self._server_configuration = server_configuration
        if preferred is not None:
            server = ExtensionConfig(preferred_address=(preferred,))
        self._server_extension = server
        self.server: Any = None
        self.server_at: Address | None = EDGE_1
        self.now = START
        self.validated: set[Address] = {EDGE_1}
        self.client_events: list[tuple[float, Any]] = []
        self.server_events: list[tuple[float, Any]] = []
        self.up: list[tuple[float, Address, bytes]] = []  # what the client sent
        self.down: list[tuple[float, Address, bytes]] = []  # what the server sent
        self.requests: dict[int, Request] = {}
        self.received: dict[int, bytearray] = {}  # stream -> bytes the client got
        self.uploaded: dict[int, bytearray] = {}
        self.response_size = 100
        self.forward_from: Address | None = None
        self.waiting_room_at: Address | None = None
        self._room: list[tuple[bytes, Address]] = []
        self._await_client = False
        self._client_came = False
        self.hand_off = hand_off
        self.named = False  # the server knows its address, and says it with SM_MIGRATED
        self._snapshot = b""
        self.client_seen_as: dict[Address, Address] = {}  # a NAT: by server address
        self.sent_to: Address = CLIENT  # where the server sends the datagram that is being carried
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.datagrams = 0
        self.on_datagram: Callable[[int], None] | None = None
        self.client.connect(EDGE_1, self.now)

    @staticmethod
    def _make(configuration: QuicConfiguration, extension: Any, **keywords: Any) -> QuicConnection:
        if extension == "stock":
            return QuicConnection(configuration=configuration, **keywords)
        if extension == "default":
            extension = ExtensionConfig()
        return MigratableConnection(configuration=configuration, extension=extension, **keywords)

    # ------------------------------------------------------------------ time

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        self.at(self.now + delay_s, action)

    def drive(self, until: Callable[[], bool] | None = None, *, limit_s: float = 10.0) -> bool:
        """Runs until the condition holds or the time is over; returns whether it holds."""
        end = self.now + limit_s
        self.flush()
        while until is None or not until():
            if not self.step(end):
                break
        else:
            return True
        self.now = end
        return until is not None and until()

    def step(self, end: float) -> bool:
        """The next thing that happens; False when there is none before ``end``."""
        times = [self._queue[0][0]] if self._queue else []
        for connection in (self.client, self.server):
            timer = connection.get_timer() if connection is not None else None
            if timer is not None:
                times.append(timer)
        if not times or min(times) > end:
            return False
        # A microsecond late, as clocks are: aioquic compares one time in two forms (sent + delay <= now and
        # sent <= now - delay), and where they round apart, a timer would fire for ever at its very instant.
        self.now = max(self.now, min(times) + 1e-6)
        while self._queue and self._queue[0][0] <= self.now:
            heapq.heappop(self._queue)[2]()
        for connection in (self.client, self.server):
            timer = connection.get_timer() if connection is not None else None
            if timer is not None and timer <= self.now:
                connection.handle_timer(self.now)
        self.flush()
        return True

    # ------------------------------------------------------------------ the wire

    def flush(self) -> None:
        self._client_turn()
        self._server_turn()
        for data, address in self.client.datagrams_to_send(self.now):
            self._check_probing(data, address)
            self.up.append((self.now, address, data))
            self._carry(data, address, "up")
        if self.server is not None:
            for data, address in self.server.datagrams_to_send(self.now):
                self.sent_to = address
                assert self.server_at is not None, "a server that is nowhere has sent something"
                self.down.append((self.now, self.server_at, data))
                self._carry(data, self.server_at, "down")
        self._client_turn()

    def _carry(self, data: bytes, address: Address, direction: str) -> None:
        if self.network.drop is not None and self.network.drop(data, address, direction):
            return
        for _ in range(1 + (self.rng.random() < self.network.duplication)):
            if self.rng.random() < self.network.loss:
                continue
            delay = self.network.delay_s(address, self.rng)
            if direction == "up":
                self.after(delay, functools.partial(self._at_server, data, address))
            else:
                self.after(delay, functools.partial(self._at_client, data, address))

    def _at_client(self, data: bytes, address: Address) -> None:
        self._count()
        self.client.receive_datagram(data, address, self.now)
        self._client_turn()

    def _at_server(self, data: bytes, address: Address) -> None:
        self._count()
        source = self.client_seen_as.get(address, CLIENT)
        if address == self.server_at:
            self._into_server(data, source)
            if self._await_client:
                self._let_in()
        elif address == self.forward_from and self.server_at is not None and not self._await_client:
            self.after(INTER_EDGE_S, functools.partial(self._into_server, data, source))
        elif address in (self.forward_from, self.waiting_room_at):
            self._client_came |= address == self.waiting_room_at
            self._room.append((data, source))

    def _into_server(self, data: bytes, source: Address) -> None:
        if self.server is None and self._snapshot:  # handed on between two edges while it moved again
            self._room.append((data, source))
            return
        if self.server is None:
            buf = Buffer(data=data)
            cid = pull_quic_header(buf, host_cid_length=8).destination_cid
            self.server = self._make(
                self._server_configuration,
                self._server_extension,
                original_destination_connection_id=cid,
            )
        self.server.receive_datagram(data, source, self.now)
        self._server_turn()

    def _count(self) -> None:
        self.datagrams += 1
        if self.on_datagram is not None:
            self.on_datagram(self.datagrams)

    def _check_probing(self, data: bytes, address: Address) -> None:
        if address in self.validated:
            return
        assert len(data) >= 1200, f"a probe of {len(data)} bytes"
        types = self.frames(data, self.client)
        assert types <= PROBING_FRAMES, f"non-probing frames {types} to {address} before it was validated"

    @staticmethod
    def frames(data: bytes, sender: QuicConnection) -> set[int]:
        """The frame types of a 1-RTT datagram; whatever follows one that is not probing is not looked at."""
        buf = Buffer(data=data)
        pull_quic_header(buf, host_cid_length=8)
        crypto = sender._cryptos[tls.Epoch.ONE_RTT].send
        _, plain, _, _ = crypto.decrypt_packet(data, buf.tell(), sender._packet_number)
        types: set[int] = set()
        body = Buffer(data=plain)
        while not body.eof():
            frame_type = body.pull_uint_var()
            types.add(frame_type)
            if frame_type in (0x1A, 0x1B):
                body.pull_bytes(8)
            elif frame_type != 0:
                break
        return types

    # ------------------------------------------------------------------ the applications

    def _client_turn(self) -> None:
        while (event := self.client.next_event()) is not None:
            self.client_events.append((self.now, event))
            if isinstance(event, PathValidated):
                self.validated.add(event.address)
            if isinstance(event, quic_events.StreamDataReceived):
                self.received.setdefault(event.stream_id, bytearray()).extend(event.data)
                request = self.requests.get(event.stream_id)
                if request is not None and event.end_stream:
                    assert request.answered_at is None, "answered twice"
                    request.answered_at = self.now

    def _server_turn(self) -> None:
        while self.server is not None and (event := self.server.next_event()) is not None:
            self.server_events.append((self.now, event))
            if isinstance(event, quic_events.StreamDataReceived):
                got = self.uploaded.setdefault(event.stream_id, bytearray())
                got.extend(event.data)
                if event.end_stream and event.stream_id % 4 == 0:
                    size = self.response_size
                    self.server.send_stream_data(event.stream_id, bytes(size), end_stream=True)

    def request(self, size_bytes: int = 20) -> Request:
        stream_id = self.client.get_next_available_stream_id()
        request = Request(len(self.requests), stream_id, self.now)
        self.requests[stream_id] = request
        self.client.send_stream_data(stream_id, bytes(size_bytes), end_stream=True)
        return request

    def load(self, interval_s: float = 0.010, *, until: float) -> None:
        """Requests at an interval, from now on."""

        def one() -> None:
            self.request()
            if self.now + interval_s <= until:
                self.after(interval_s, one)

        self.after(0.0, one)

    def answered(self) -> bool:
        return all(request.answered_at is not None for request in self.requests.values())

    # ------------------------------------------------------------------ the story

    def handshake(self, settle_s: float = 0.2) -> None:
        self.drive(limit_s=settle_s)
        assert self.client._handshake_confirmed

    def move(
        self,
        strategy: Strategy,
        *,
        to: Address = EDGE_2,
        downtime_s: float = 0.2,
        server_first: bool = False,
        epoch: int = 1,
        announced_s: float | None = None,
        forwarding: bool = True,
        waiting_room: bool | None = None,
        notice_s: float = 0.5,
    ) -> None:
        """Prepares now, freezes when the client has answered (or ``notice_s`` is over), resumes later.

        As the node agents do it: late datagrams are handed on (``forwarding``) and early ones kept
        (``waiting_room``; None: as ``forwarding``) until the server runs, and the client has come itself
        where it is the one to restart the traffic.
        """
        self.forward_from = None
        self.prepared_at = self.now
        if waiting_room is None:
            waiting_room = forwarding
        addresses = [to] if RULES[strategy].carries_address else []
        downtime_ms = 1000 * (downtime_s if announced_s is None else announced_s)
        self.server.prepare_migration(epoch, strategy, addresses, downtime_ms, server_first, self.now)
        self.flush()
        deadline = self.now + notice_s

        def ready() -> bool:
            return any(isinstance(e, MigrationReady) and e.epoch == epoch for _, e in self.server_events)

        def wait() -> None:
            self._server_turn()
            if ready() or self.now >= deadline:
                self.freeze(to, forwarding=forwarding, waiting_room=waiting_room)
                self.after(
                    downtime_s, lambda: self.resume(epoch, strategy, to, speaks_first(strategy, server_first))
                )
            else:
                self.after(0.001, wait)

        wait()

    def freeze(self, to: Address = EDGE_2, *, forwarding: bool = False, waiting_room: bool = False) -> None:
        self.server.hold()
        if self.hand_off:
            freeze(self.server, self.now)
            self._snapshot = take_snapshot(self.server, self.now, epoch=1)
            self.server = None
        self.frozen_at = self.now
        self.forward_from = self.server_at if forwarding else None
        self.waiting_room_at = to if waiting_room else None
        self.server_at = None
        self._room.clear()
        self._client_came = False

    def resume(self, epoch: int, strategy: Strategy, to: Address, speak_first: bool) -> None:
        self.resumed_at = self.now
        if self.hand_off:
            build = functools.partial(MigratableConnection, extension=ExtensionConfig())
            self.server = restore_snapshot(
                self._snapshot, configuration=self._server_configuration, build=build, now=self.now
            )
        self.server_at = to
        self.server.resume(epoch, strategy, speak_first, self.now, address=to if self.named else None)
        self._await_client = not (speak_first or self._client_came)
        if not self._await_client:
            self._let_in()
        self.flush()

    def go_on(self, source: Any, at: Address, epoch: int, *, thawed: bool = True) -> None:
        """The destination is gone, and the source serves again; ``thawed``: it had been taken apart."""
        self.server, self.server_at, self._snapshot = source, at, b""
        if thawed:
            thaw(source, self.now)
        source.abort_migration(epoch, "deadline", self.now)
        self.flush()

    def _let_in(self) -> None:
        self._await_client = False
        room, self._room = self._room, []
        for data, source in room:
            self._into_server(data, source)
            self.flush()  # as a server does that reads one datagram after another

    def first(self, kind: type, *, side: str = "client", since: float = 0.0) -> tuple[float, Any] | None:
        seen = self.client_events if side == "client" else self.server_events
        return next(((t, e) for t, e in seen if isinstance(e, kind) and t >= since), None)

    def all(self, kind: type) -> list[Any]:
        return [e for _, e in self.client_events if isinstance(e, kind)]

    def switched_to(self, address: Address) -> bool:
        return any(isinstance(e, PathSwitched) and e.new == address for _, e in self.client_events)

    def first_answer_after_move(self) -> float:
        """When the first answer came after the server ran again."""
        times = [r.answered_at for r in self.requests.values() if r.answered_at is not None]
        return min(t for t in times if t > self.resumed_at)

    def assert_open(self) -> None:
        for connection in (self.client, self.server):
            assert connection._close_event is None, connection._close_event
