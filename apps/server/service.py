"""The service that is moved: counters and sessions that must survive, and half-done transfers.

Pure: it takes what came on a stream and says what to send. Everything it knows is plain data, so
that the hand-off engine can move it; CRIU moves it as memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from apps.workload import (
    BACKLOG_BYTES,
    CHUNK_BYTES,
    PAD,
    Ask,
    Chain,
    HeaderReader,
    Reply,
    content,
    header,
)
from quicferry.units import now_s

#: what a client may ask for
LARGEST_ANSWER_BYTES = 8 << 20
LONGEST_DELAY_S = 600.0
Send = Callable[[int, bytes, bool], None]  # stream, data, end of stream


class Session(msgspec.Struct, kw_only=True):
    """What the service remembers of one client: the numbers of the requests that it has counted.

    These are all up to ``contiguous``, and those in ``beyond``.
    """

    contiguous: int = 0
    beyond: set[int] = set()

    def obey(self, number: int) -> bool:
        """Count a request; False for a duplicate, which is not counted again."""
        if number <= self.contiguous or number in self.beyond:
            return False
        self.beyond.add(number)
        while self.contiguous + 1 in self.beyond:
            self.contiguous += 1
            self.beyond.remove(self.contiguous)
        return True

    @property
    def count(self) -> int:
        """How many different requests were counted."""
        return self.contiguous + len(self.beyond)


class Exchange(msgspec.Struct, kw_only=True):
    """One stream in the middle of its exchange."""

    reader: HeaderReader = msgspec.field(default_factory=HeaderReader)
    ask: Ask | None = None
    upload: Chain | None = None
    sent: int = 0  # bytes of a download's body that were given to the transport
    due_s: float | None = None  # CLOCK_MONOTONIC: a get that is answered then, on whichever host it is served


class ServiceState(msgspec.Struct, kw_only=True):
    """All that the service knows. ``connections`` maps a connection's key to its open exchanges."""

    total: int = 0
    repeated: int = 0
    sessions: dict[str, Session] = {}
    connections: dict[str, dict[int, Exchange]] = {}


_state = msgspec.msgpack.Decoder(ServiceState)  # made before there is a hurry


class ApplicationService:
    """Answers exchanges. ``edge`` is the name of the host that serves now, told to the client."""

    def __init__(self, edge: str, response_bytes: int, state: ServiceState | None = None) -> None:
        self.edge = edge
        self.response_bytes = response_bytes
        self.state = state if state is not None else ServiceState()
        self.clock: Callable[[], float] = now_s

    def dump(self) -> bytes:
        """The whole state as bytes (MessagePack)."""
        return msgspec.msgpack.encode(self.state)

    @classmethod
    def load(cls, data: bytes, edge: str, response_bytes: int) -> ApplicationService:
        """A service that goes on where ``dump`` was called. Raises ``msgspec.DecodeError``."""
        return cls(edge, response_bytes, _state.decode(data))

    def received(self, key: str, stream: int, data: bytes, end: bool, send: Send) -> None:
        """Take in bytes of a stream and answer what is complete.

        Raises ``ValueError`` for bytes that are not of this protocol.
        """
        exchanges = self.state.connections.setdefault(key, {})
        exchange = exchanges.setdefault(stream, Exchange())
        line, body = exchange.reader.feed(data)
        if line is not None:
            exchange.ask = msgspec.json.decode(line, type=Ask)
            if exchange.ask.op == "upload":
                exchange.upload = Chain()
            elif exchange.ask.op == "download":
                exchange.sent = exchange.ask.offset
                reply = Reply(edge=self.edge, size=exchange.ask.size)
                send(stream, header(reply), exchange.sent >= exchange.ask.size)
        if exchange.upload is not None and body:
            exchange.upload.update(body)
        ask = exchange.ask
        if ask is None or not end:
            return
        if ask.op == "get" and ask.delay_ms > 0:
            exchange.due_s = self.clock() + min(ask.delay_ms / 1e3, LONGEST_DELAY_S)
        elif ask.op == "get":
            send(stream, self._answer(ask), True)
            del exchanges[stream]
        elif exchange.upload is not None:
            reply = Reply(edge=self.edge, size=exchange.upload.size, chain=exchange.upload.hexdigest())
            send(stream, header(reply), True)
            del exchanges[stream]

    def _answer(self, ask: Ask) -> bytes:
        session = self.state.sessions.setdefault(ask.session, Session())
        fresh = session.obey(ask.number)
        if fresh:
            self.state.total += 1
        else:
            self.state.repeated += 1
        first = header(
            Reply(session_count=session.count, total=self.state.total, repeated=not fresh, edge=self.edge)
        )
        size = self.response_bytes if ask.answer_bytes < 0 else min(ask.answer_bytes, LARGEST_ANSWER_BYTES)
        return first + PAD * max(0, size - len(first))

    def next_due_s(self) -> float | None:
        """When the next get is to be answered that waits for its time; None: none does."""
        return min(
            (
                exchange.due_s
                for exchanges in self.state.connections.values()
                for exchange in exchanges.values()
                if exchange.due_s is not None
            ),
            default=None,
        )

    def due(self) -> list[str]:
        """The connections on which a get is to be answered now."""
        now = self.clock()
        return [
            key
            for key, exchanges in self.state.connections.items()
            if any(exchange.due_s is not None and exchange.due_s <= now for exchange in exchanges.values())
        ]

    def downloads(self, key: str) -> Iterator[int]:
        """The streams of a connection on which a download's body is still to be sent."""
        for stream, exchange in self.state.connections.get(key, {}).items():
            ask = exchange.ask
            if ask is not None and ask.op == "download" and exchange.sent < ask.size:
                yield stream

    def pump(self, key: str, backlog_bytes: Callable[[int], int], send: Send) -> None:
        """Answer what is due, and give more of every download to a transport whose backlog is short."""
        now = self.clock()
        exchanges = self.state.connections.get(key, {})
        for stream, exchange in list(exchanges.items()):
            if exchange.due_s is not None and exchange.due_s <= now and exchange.ask is not None:
                send(stream, self._answer(exchange.ask), True)
                del exchanges[stream]
        for stream in list(self.downloads(key)):
            exchange = self.state.connections[key][stream]
            ask = exchange.ask
            assert ask is not None
            room = BACKLOG_BYTES - backlog_bytes(stream)
            while room > 0 and exchange.sent < ask.size:
                part = content(ask.seed, exchange.sent, min(CHUNK_BYTES, ask.size - exchange.sent))
                exchange.sent += len(part)
                room -= len(part)
                send(stream, part, exchange.sent == ask.size)
            if exchange.sent == ask.size:
                del self.state.connections[key][stream]

    def forget(self, key: str) -> None:
        """Drop the exchanges of a closed connection. Sessions stay, as the client may come back."""
        self.state.connections.pop(key, None)
