"""The client's resolver: asks the name server, keeps the answer as long as its TTL says, and no longer.

It stands for the cache between an application and the authoritative server. A record of TTL 0 is
never kept (RFC 1035 §3.2.1). Nothing is served stale (RFC 8767 is not followed).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import dns.exception
import dns.message
import dns.rcode
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA

from baselines.dns.config import ResolverConfig
from quicferry.errors import FerryError
from quicferry.events import EventLog

#: How long an answer is waited for, attempt by attempt.
TIMEOUTS_S = (0.25, 0.5, 1.0, 2.0)


class NameNotFound(FerryError):
    """The name could not be resolved."""


class Record(NamedTuple):
    """An address and until when, in the loop's time, it may be used without asking again."""

    address: str
    expires_s: float
    ttl_s: int


def read_answer(answer: dns.message.Message) -> tuple[str, int]:
    """The first address of an answer and its TTL. Raises ``NameNotFound``."""
    if answer.rcode() != dns.rcode.NOERROR:
        raise NameNotFound(f"the name server says {dns.rcode.to_text(answer.rcode())}")
    for rrset in answer.answer:
        for item in rrset:
            if isinstance(item, dns.rdtypes.IN.A.A | dns.rdtypes.IN.AAAA.AAAA):
                return item.address, rrset.ttl
    raise NameNotFound("the name has no address")


class _Query(asyncio.DatagramProtocol):
    """One question over UDP from a port of its own."""

    def __init__(self, question: dns.message.Message) -> None:
        self._question = question
        self.answer: asyncio.Future[dns.message.Message] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            message = dns.message.from_wire(data)
        except dns.exception.DNSException:
            return
        if self._question.is_response(message) and not self.answer.done():
            self.answer.set_result(message)

    def error_received(self, exc: Exception) -> None:
        """The name server's port is closed for now: the next attempt may find it open."""


class Resolver:
    """Resolves one name. ``changed`` is called when a fresh answer names another address than the last."""

    def __init__(
        self, config: ResolverConfig, events: EventLog, changed: Callable[[], None] = lambda: None
    ) -> None:
        self._config = config
        self._events = events
        self._changed = changed
        self._record: Record | None = None
        self._asking: asyncio.Task[Record] | None = None
        self._keeping_warm: asyncio.Task[None] | None = None
        self._first = True

    async def resolve(self) -> str:
        """The address, from the cache while its record lives. Raises ``NameNotFound``."""
        now = asyncio.get_running_loop().time()
        record = self._record
        cached = record is not None and now < record.expires_s
        if record is None or not cached:
            record = await self._ask()
        left_s = max(0.0, record.expires_s - asyncio.get_running_loop().time())
        self._events.emit(
            "client.resolved", address=record.address, cached=cached, ttl_left_s=round(left_s, 6)
        )
        return record.address

    @property
    def address(self) -> str | None:
        """The latest answer, whether it may still be used or not."""
        return self._record.address if self._record is not None else None

    def seconds_left(self) -> float:
        """How long the cached record will be used without asking."""
        if self._record is None:
            return 0.0
        return max(0.0, self._record.expires_s - asyncio.get_running_loop().time())

    async def close(self) -> None:
        """Stop fetching the record in the background."""
        tasks = [task for task in (self._keeping_warm, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self) -> Record:
        # one question at a time: whoever wants the name meanwhile waits for the same answer
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._query())
        return await asyncio.shield(self._asking)

    async def _query(self) -> Record:
        loop = asyncio.get_running_loop()
        for attempt, timeout_s in enumerate(TIMEOUTS_S, 1):
            question = dns.message.make_query(self._config.name, self._config.kind)
            self._events.emit("client.dns.query", record=self._config.name, attempt=attempt)
            server = self._config.server
            transport, exchange = await loop.create_datagram_endpoint(
                lambda question=question: _Query(question),  # type: ignore[misc] # the loop's variable
                remote_addr=(server.host, server.port),
            )
            try:
                transport.sendto(question.to_wire())
                address, ttl_s = read_answer(await asyncio.wait_for(exchange.answer, timeout_s))
            except TimeoutError:
                continue
            finally:
                transport.close()
            return self._keep(address, ttl_s)
        raise NameNotFound(f"the name server did not answer {len(TIMEOUTS_S)} questions")

    def _keep(self, address: str, ttl_s: int) -> Record:
        loop = asyncio.get_running_loop()
        life_s = ttl_s * (1.0 - self._config.age_share if self._first and self._config.warm else 1.0)
        self._first = False
        previous = self._record
        self._record = Record(address, loop.time() + life_s, ttl_s)
        self._events.emit("client.dns.answer", record=self._config.name, address=address, ttl_s=ttl_s)
        if self._config.warm and ttl_s > 0 and self._keeping_warm is None:
            self._keeping_warm = loop.create_task(self._keep_warm())
        if previous is not None and previous.address != address:
            self._changed()
        return self._record

    async def _keep_warm(self) -> None:
        """As others on this host would: a record that has run out is fetched again."""
        while True:
            await asyncio.sleep(max(0.001, self.seconds_left()))
            if self.seconds_left() == 0.0:
                try:
                    await self._ask()
                except NameNotFound:
                    await asyncio.sleep(TIMEOUTS_S[0])


class FixedAddress:
    """In the place of a resolver, for a service that keeps its address."""

    def __init__(self, address: str) -> None:
        self.address = address

    async def resolve(self) -> str:
        """The address."""
        return self.address

    def seconds_left(self) -> float:
        """As of a record that is not kept: there is nothing to wait for."""
        return 0.0

    async def close(self) -> None:
        """Nothing runs in the background."""
