"""Exchanges of the load that outlive their connection: kept until answered, and sent again.

Between the load and a transport that may lose its connection. A request carries its number, and the
service obeys each number once, so a repeat is safe. Of a download only the rest is asked for again,
as by an HTTP range request; an upload begins anew.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from apps.client.load import Load
from apps.workload import Ask, header
from quicferry.units import now_s


class OpenExchange:
    """One exchange: what the load has sent of it, and how much of that the connection has taken."""

    def __init__(self, stream: int, load: Load, finished: Callable[[OpenExchange], None]) -> None:
        self.stream = stream
        self._load = load
        self._finished = finished
        self._op: str | None = None
        self._parts: list[bytes] = []
        self._taken = 0
        self._answer: list[bytes] = []
        self._all_sent = False
        self.attempts = 0
        #: before that no answer can be missed: when the latest attempt began, or a poll's moment
        self.due_s = 0.0

    @property
    def _ask(self) -> Ask:
        return msgspec.json.decode(self._parts[0].partition(b"\n")[0], type=Ask)

    @property
    def ended(self) -> bool:
        """Whether all that was not yet taken has been taken and nothing will follow."""
        return self._all_sent and self._taken == len(self._parts)

    @property
    def untaken_bytes(self) -> int:
        """What the connection has not taken yet."""
        return sum(map(len, self._parts[self._taken :]))

    def sent(self, data: bytes, end: bool) -> None:
        """Add what the load sends of it."""
        self._parts.append(data)
        self._all_sent = end

    def next_part(self) -> bytes | None:
        """The next part for the connection."""
        if self._taken == len(self._parts):
            return None
        self._taken += 1
        return self._parts[self._taken - 1]

    def begin(self) -> None:
        """Note that a connection is about to send it; from the second time on it is a repeat."""
        self.attempts += 1
        now, ask = now_s(), self._ask
        if self.attempts == 1:
            self.due_s = now + ask.delay_ms / 1e3
            return
        self._taken = 0
        self._answer.clear()
        self._load.repeated(self.stream)
        done = self._load.received_bytes(self.stream)
        if done:
            self._parts = [header(msgspec.structs.replace(ask, offset=done))]
        elif ask.delay_ms:  # what it waits for comes no later for being asked again
            self._wait_less(ask, max(0.0, self.due_s - now) * 1e3)
        self.due_s = max(self.due_s, now)

    def _wait_less(self, ask: Ask, delay_ms: float) -> None:
        _, _, body = self._parts[0].partition(b"\n")
        self._parts[0] = header(msgspec.structs.replace(ask, delay_ms=delay_ms)) + body

    def answered(self, data: bytes, end: bool, origin: str, t_ns: int | None = None) -> None:
        """Take in bytes of the answer; all but a download's are passed on only when complete.

        ``origin`` and ``t_ns`` are as in ``Load.received``.
        """
        if self._op is None:
            self._op = self._ask.op
        if end:
            self._finished(self)
        if self._op == "download":
            self._load.received(self.stream, data, end, origin, t_ns)
            return
        self._answer.append(data)
        if end:
            self._load.received(self.stream, b"".join(self._answer), True, origin, t_ns)


class Exchanges:
    """All open exchanges of a client, and the order of those that wait for a connection."""

    def __init__(self) -> None:
        self.load: Load | None = None
        self._open: dict[int, OpenExchange] = {}
        self._waiting: list[int] = []
        self._next = 0

    def next_stream(self) -> int:
        """The number of the next exchange: the load's name for it, not that of any connection."""
        self._next += 1
        return self._next

    def send(self, stream: int, data: bytes, end: bool) -> OpenExchange:
        """The load sends; a new exchange waits for a connection."""
        assert self.load is not None
        exchange = self._open.get(stream)
        if exchange is None:
            exchange = self._open[stream] = OpenExchange(stream, self.load, self._answered)
            self._waiting.append(stream)
        exchange.sent(data, end)
        return exchange

    def take(self) -> OpenExchange | None:
        """Begin the oldest that waits; returns it, or None."""
        if not self._waiting:
            return None
        exchange = self._open[self._waiting.pop(0)]
        exchange.begin()
        return exchange

    def wait_again(self, exchange: OpenExchange) -> None:
        """Put an exchange whose connection is lost back into the queue, before all younger ones."""
        if exchange.stream not in self._waiting:
            self._waiting.append(exchange.stream)
            self._waiting.sort()

    def _answered(self, exchange: OpenExchange) -> None:
        self._open.pop(exchange.stream, None)

    def get(self, stream: int) -> OpenExchange | None:
        """An open exchange."""
        return self._open.get(stream)

    def all_open(self) -> list[OpenExchange]:
        """All open exchanges, the oldest first."""
        return [self._open[stream] for stream in sorted(self._open)]

    def earliest_due_s(self) -> float | None:
        """Since when an answer may be missed: of all that are with a connection, the earliest."""
        due = [exchange.due_s for exchange in self._open.values() if exchange.attempts]
        return min(due, default=None)

    @property
    def waiting(self) -> int:
        """How many wait for a connection."""
        return len(self._waiting)

    def backlog_bytes(self, stream: int, transport: Callable[[int], int]) -> int:
        """The bytes of an exchange that have not left yet; ``transport`` counts those in its connection."""
        exchange = self._open.get(stream)
        return 0 if exchange is None else exchange.untaken_bytes + transport(stream)
