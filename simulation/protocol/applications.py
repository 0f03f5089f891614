"""The service and its client in the protocol's world; both check every byte that they get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from simulation import payload

BACKLOG_BYTES = 60_000
GIVEN_UP = 7  # an error code of the application


@dataclass
class Exchange:
    """Something that somebody waits for."""

    number: int
    what: str
    opened_at: float
    size_bytes: int
    received: int = 0
    closed_at: float | None = None
    given_up: bool = False  # its stream was reset; it ends when the service has answered with a reset


@dataclass
class Service:
    """The service's state: it moves with the server, and a copy of it stays behind until the commit."""

    received: dict[int, int] = field(default_factory=dict)  # stream -> bytes that have come
    asked: dict[int, tuple[int, int]] = field(default_factory=dict)  # stream -> (number, bytes asked for)
    heads: dict[int, bytes] = field(default_factory=dict)
    obeyed: list[int] = field(default_factory=list)  # numbers, in the order they were carried out
    feed_stream: int | None = None
    feed_sent: int = 0

    def take(self, stream: int, data: bytes, ended: bool, wrong: Callable[[str, str], None]) -> bytes | None:
        """A piece of a request; returns the answer when it is complete."""
        start = self.received.get(stream, 0)
        self.received[stream] = start + len(data)
        head = self.heads.get(stream, b"")
        rest = data
        if len(head) < payload.HEADER.size:
            missing = payload.HEADER.size - len(head)
            head += data[:missing]
            self.heads[stream], rest = head, data[missing:]
            if len(head) < payload.HEADER.size:
                return None
        number, size = payload.HEADER.unpack(head)
        if rest != payload.pattern(number, start + len(data) - len(rest), len(rest)):
            wrong("bytes:request", f"request {number} differs near byte {start}")
        if not ended:
            return None
        if number in self.obeyed:
            wrong("obeyed-twice", f"request {number} was carried out twice")
        self.obeyed.append(number)
        return payload.pattern(number, 0, size)


class ClientLoad:
    """The client's side of all exchanges."""

    def __init__(self, now: Callable[[], float], wrong: Callable[[str, str], None]) -> None:
        self._now = now
        self._wrong = wrong
        self.exchanges: dict[int, Exchange] = {}  # by stream
        self.feeds: dict[int, Exchange] = {}  # what the server sends of its own accord, by stream

    def ask(self, connection: Any, size_bytes: int, answer_bytes: int) -> Exchange:
        """Send a request."""
        stream = connection.get_next_available_stream_id()
        number = len(self.exchanges)
        exchange = Exchange(number, "request", self._now(), answer_bytes)
        self.exchanges[stream] = exchange
        connection.send_stream_data(stream, payload.request(number, answer_bytes, size_bytes), True)
        return exchange

    def give_up(self, connection: Any, size_bytes: int) -> Callable[[], None]:
        """Send half of a request; the returned call resets its stream (RFC 9000 §3.5)."""
        stream = connection.get_next_available_stream_id()
        exchange = Exchange(len(self.exchanges), "request", self._now(), 0, given_up=True)
        self.exchanges[stream] = exchange
        connection.send_stream_data(stream, payload.request(exchange.number, 0, size_bytes), False)
        return lambda: connection.reset_stream(stream, GIVEN_UP)

    def was_reset(self, stream: int) -> None:
        """The service has ended its half of a stream, as the client did."""
        exchange = self.exchanges.get(stream)
        if exchange is None or not exchange.given_up:
            self._wrong("bytes:reset", f"stream {stream} was reset, which nobody had given up")
        else:
            exchange.closed_at = self._now()

    def expect(self, stream: int, size_bytes: int) -> Exchange:
        """The server has begun a feed of so many bytes."""
        return self.feeds.setdefault(stream, Exchange(stream, "feed", self._now(), size_bytes))

    def received(self, stream: int, data: bytes, ended: bool) -> None:
        """Bytes have come in order, as a stream promises."""
        exchange = self.exchanges.get(stream) or self.feeds.get(stream)
        if exchange is None:
            self._wrong("bytes:unasked", f"{len(data)} bytes on stream {stream} that nobody asked for")
            return
        if data != payload.pattern(exchange.number, exchange.received, len(data)):
            self._wrong("bytes:answer", f"{exchange.what} {exchange.number} differs near {exchange.received}")
        exchange.received += len(data)
        if ended:
            if exchange.received != exchange.size_bytes:
                self._wrong(
                    "bytes:length",
                    f"{exchange.what} {exchange.number}: {exchange.received} of {exchange.size_bytes} bytes",
                )
            exchange.closed_at = self._now()

    @property
    def open(self) -> list[Exchange]:
        """What is still waited for."""
        every = [*self.exchanges.values(), *self.feeds.values()]
        return [exchange for exchange in every if exchange.closed_at is None]
