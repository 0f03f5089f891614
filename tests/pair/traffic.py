"""What clients and servers have to say to each other while the server moves, and lives made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aioquic.quic.events import DatagramFrameReceived

from quicferry.strategies import RULES, Strategy

from .harness import EDGE_1, Address, Pair, edge

#: out, back to where it came from, which is in nobody's pool, and to a third place
ROUTE = (edge(2), EDGE_1, edge(3))
BETWEEN_MOVES_S = 1.1  # a client takes no two announcements within a second
DOWNLOAD_BYTES = 150_000
UPLOAD_BYTES = 60_000
MESSAGE_BYTES = 300
INTERVAL_S = 0.020


@dataclass
class Traffic:
    """One kind of traffic of a pair; ``begin`` is called before each move."""

    pair: Pair
    stream_id: int | None = None
    sent_bytes: int = 0
    uploads: dict[int, int] = field(default_factory=dict)

    def begin(self, until: float) -> None:
        """There is something under way from now until then."""

    def complete(self) -> bool:
        """Whether all of it has arrived."""
        return self.pair.answered()


class Idle(Traffic):
    """Nobody says anything."""


class Echo(Traffic):
    """Small requests, often."""

    def begin(self, until: float) -> None:
        self.pair.load(INTERVAL_S, until=until)


class Download(Traffic):
    """The client has only acknowledgements to send."""

    def begin(self, until: float) -> None:
        self.pair.response_size = DOWNLOAD_BYTES
        self.pair.request()

    def complete(self) -> bool:
        pair = self.pair
        return pair.answered() and all(len(pair.received[s]) == DOWNLOAD_BYTES for s in pair.requests)


class Upload(Traffic):
    """The server has only acknowledgements to send."""

    def begin(self, until: float) -> None:
        client = self.pair.client
        stream_id = client.get_next_available_stream_id(is_unidirectional=True)
        client.send_stream_data(stream_id, bytes(UPLOAD_BYTES), end_stream=True)
        self.uploads[stream_id] = UPLOAD_BYTES

    def complete(self) -> bool:
        return all(len(self.pair.uploaded.get(s, b"")) == size for s, size in self.uploads.items())


class Push(Traffic):
    """A live feed: the server sends without being asked."""

    def begin(self, until: float) -> None:
        pair = self.pair
        if self.stream_id is None:
            self.stream_id = pair.server.get_next_available_stream_id(is_unidirectional=True)

        def one() -> None:
            if pair.server is not None and not pair.server._role.held:
                pair.server.send_stream_data(self.stream_id, bytes(MESSAGE_BYTES))
                self.sent_bytes += MESSAGE_BYTES
            if pair.now + INTERVAL_S <= until:
                pair.after(INTERVAL_S, one)

        one()

    def complete(self) -> bool:
        return len(self.pair.received.get(self.stream_id or 0, b"")) == self.sent_bytes


class Datagrams(Traffic):
    """Unreliable datagrams both ways (RFC 9221): none comes twice, and those after the move come."""

    until: float = 0.0
    is_fed = False
    arrived_until: float = -1.0  # events may be cleared after a move

    def begin(self, until: float) -> None:
        self.until = until
        if not self.is_fed:
            self.is_fed = True
            self.feed()

    def feed(self) -> None:
        pair = self.pair
        if pair.now > self.until and self.complete():
            self.is_fed = False
            return
        self.sent_bytes += MESSAGE_BYTES
        message = b"%10.4f" % pair.now * (MESSAGE_BYTES // 10)
        pair.client.send_datagram_frame(message)
        if pair.server is not None and not pair.server._role.held:
            pair.server.send_datagram_frame(message)
        pair.after(INTERVAL_S, self.feed)

    def complete(self) -> bool:
        if self.arrived_until != self.until and all(
            max(self.arrived(events), default=0.0) > self.until
            for events in (self.pair.client_events, self.pair.server_events)
        ):
            self.arrived_until = self.until
        return self.arrived_until == self.until

    @staticmethod
    def arrived(events: list[tuple[float, Any]]) -> list[float]:
        """When those were sent that have arrived."""
        messages = [e.data for _, e in events if isinstance(e, DatagramFrameReceived)]
        assert len(messages) == len(set(messages)), "a datagram came twice"
        return [float(message[:10]) for message in messages]


KINDS: dict[str, type[Traffic]] = {
    "echo": Echo,
    "push": Push,
    "download": Download,
    "upload": Upload,
    "idle": Idle,
    "datagrams": Datagrams,
}


def followed(pair: Pair, to: Address) -> Callable[[], bool]:
    """Whether the client is where the server is."""
    return lambda: pair.server_at == to and pair.client._network_paths[0].addr == to


def life(
    strategy: Strategy,
    kind: str,
    *,
    server_first: bool = False,
    moves: int = 1,
    lost: int | None = None,
    downtime_s: float = 0.03,
    hand_off: bool = True,
) -> tuple[Pair, Traffic, int]:
    """A life with that many moves; the ``lost``-th datagram from the first move on is lost.

    Returns the datagrams that were sent while the moves were under way, besides.
    """
    pair = Pair(seed=moves, hand_off=hand_off, unreliable=kind == "datagrams")
    pair.handshake(settle_s=0.4)
    if RULES[strategy].pool:
        pair.server.offer_addresses([edge(2), edge(3)], pair.now)
        pair.drive(limit_s=0.1)
    traffic = KINDS[kind](pair)
    counted = [0]
    under_way = [False]

    def drop(data: bytes, address: Address, direction: str) -> bool:
        counted[0] += under_way[0]
        return under_way[0] and counted[0] - 1 == lost

    pair.network.drop = drop
    for number, to in enumerate(ROUTE[:moves], start=1):
        pair.validated = {pair.server_at}
        moved_at = pair.now
        traffic.begin(pair.now + 0.4)
        pair.drive(limit_s=0.05)
        under_way[0] = True
        pair.move(strategy, to=to, epoch=number, downtime_s=downtime_s, server_first=server_first)
        assert pair.drive(followed(pair, to), limit_s=3.0), f"move {number}: the client did not follow"
        pair.drive(limit_s=0.1)
        under_way[0] = False
        assert pair.drive(traffic.complete, limit_s=5.0), f"move {number}: not all has arrived"
        pair.drive(limit_s=max(0.05, moved_at + BETWEEN_MOVES_S - pair.now))
    pair.assert_open()
    return pair, traffic, counted[0]
