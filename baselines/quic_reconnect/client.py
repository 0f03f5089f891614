"""The client of stock QUIC with DNS.

    python -m baselines.quic_reconnect.client --config FILE

It holds its connection for dead when the server closes it, when nothing has come for some PTOs although
something must, or when the request time-out is over. Then it asks for the name again, as the cache
allows, until another address comes, makes a new connection there and repeats what is open. Unless it
was closed, the old connection is kept until the new one stands: it may have been a pause. Events go
to stdout as JSON lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from pathlib import Path

from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import SessionTicket

from apps.client.load import Load
from apps.client.load_schedule import LoadSchedule, first
from apps.config import ALPN, SERVER_NAME, read_config
from apps.reporting import print_event
from baselines.dns.resolver import NameNotFound, Resolver
from baselines.quic_reconnect.attempt import Attempt
from baselines.quic_reconnect.config import SILENT_PTOS, ReconnectConfig
from baselines.repeating import Exchanges
from quicferry.events import EventLog
from quicferry.model import Endpoint
from quicferry.units import now_s

BACKOFF_S = (0.02, 0.04, 0.08, 0.16, 0.25)
#: How often the silence of the server is compared with the PTO.
LOOK_S = 0.005
ASK_AGAIN_S = 0.1  # after so long without an answer the name is resolved again during an attempt


class ReconnectingClient:
    """One client process."""

    def __init__(self, config: ReconnectConfig, events: EventLog) -> None:
        self.config = config
        self.events = events
        self._keys = Path(config.keys).open("a", encoding="ascii")  # noqa: SIM115 (aioquic writes for the process's life)
        self._ticket: SessionTicket | None = None
        self._exchanges = Exchanges()
        self.load = self._exchanges.load = Load(config, events, self._send, self._backlog_bytes)
        self.schedule = LoadSchedule(config, self.load, self._request)
        self.connected = asyncio.Event()
        self._ended = asyncio.Event()  # never set: this client does not give up before its patience is over
        self._changed = asyncio.Event()  # the address, or the state of an attempt
        self.resolver = Resolver(config.resolver, events, self._changed.set)
        self._current: Attempt | None = None
        self._over = asyncio.Event()  # the current connection has ended by itself

    async def run(self) -> None:
        """Connect, load until told to stop, wait for what is open, write the summary."""
        self.schedule.listen()
        keeping = asyncio.get_running_loop().create_task(self._keep_connected())
        await first(self.connected, self.schedule.stopping)
        gc.freeze()
        self.load.start_transfers(self._exchanges.next_stream)
        await self.schedule.run(self._ended)
        self.schedule.conclude(self.events)
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)
        await self.resolver.close()
        if self._current is not None:
            self._current.finish(politely=True)
        self._keys.close()

    # --- the load --------------------------------------------------------------------------------

    def _request(self) -> None:
        self.load.request(self._exchanges.next_stream)

    def _send(self, stream: int, data: bytes, end: bool) -> None:
        exchange = self._exchanges.send(stream, data, end)
        if self._current is None:
            return
        if exchange.attempts:
            self._current.feed(exchange)
        else:
            self._carry_all(self._current)
        self._current.proceed()

    def _carry_all(self, attempt: Attempt) -> None:
        while (exchange := self._exchanges.take()) is not None:
            attempt.carry(exchange)

    def _backlog_bytes(self, stream: int) -> int:
        current = self._current
        return self._exchanges.backlog_bytes(
            stream, lambda number: current.unsent_bytes(number) if current is not None else 0
        )

    # --- the connection --------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        """Connect, and connect again whenever the connection is held for dead."""
        await self._connect(anywhere=True)
        while True:
            reason = await self._until_dead()
            assert self._current is not None
            self.events.emit(
                "client.connection.lost",
                address=self._current.origin,
                reason=reason,
                open=len(self._exchanges.all_open()),
            )
            await self._connect(anywhere=self._current.ended)

    async def _until_dead(self) -> str:
        """Wait until the connection is held for dead; returns the reason."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S):
                    await self._over.wait()
            current = self._current
            assert current is not None
            if current.ended:
                return "closed"
            self.load.pump()
            current.proceed()
            now = now_s()
            due_s = self._exchanges.earliest_due_s()
            if due_s is None:
                continue
            silent_s = now - max(due_s, current.heard_s or 0.0)
            if silent_s > SILENT_PTOS * current.connection.pto_s:
                return "silent"
            if now - due_s > self.config.request_timeout_ms / 1e3 and silent_s > current.connection.pto_s:
                return "request-timeout"

    async def _connect(self, *, anywhere: bool) -> None:
        """Connect until there is a live connection: a new one, or the old one if it is heard from again.

        ``anywhere``: the address of the old connection is worth an attempt as well.
        """
        failures = 0
        begun_s = now_s()
        while True:
            self._changed.clear()
            old = self._current
            try:
                address = await self.resolver.resolve()
            except NameNotFound as error:
                self.events.emit("client.connect.failed", address="", reason=str(error))
                address = None
            limit_s = self.config.request_timeout_ms / 1e3
            anywhere = anywhere or now_s() - begun_s > limit_s
            worth_it = anywhere or old is None or address != old.server.host
            if (
                address is not None
                and worth_it
                and await self._dial(Endpoint(address, self.config.server.port), limit_s)
            ):
                return
            if address is not None and self.resolver.address != address:
                continue  # the name has a new address: no reason to wait
            if old is not None and not old.ended and (old.heard_s or 0.0) > begun_s:
                return
            await self._wait(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
            failures += 1

    async def _dial(self, server: Endpoint, limit_s: float) -> bool:
        """Make one attempt; True when it is established and has taken over the open exchanges."""
        old = self._current
        ticket = self._ticket if self.config.early_data else None
        attempt = Attempt(server, self._configuration(ticket), self._ready, self._lost, self._keep_ticket)
        self.events.emit(
            "client.quic.connecting", address=attempt.origin, early_data=attempt.offers_early_data
        )
        attempt.start()
        if attempt.offers_early_data:
            self._take_over(attempt, old)
        attempt.proceed()
        deadline_s = now_s() + limit_s
        while not attempt.ready and not attempt.ended and (left_s := deadline_s - now_s()) > 0:
            try:
                async with asyncio.timeout(min(left_s, ASK_AGAIN_S)):
                    await self._changed.wait()
            except TimeoutError:
                with contextlib.suppress(NameNotFound):
                    await self.resolver.resolve()
            self._changed.clear()
            if self.resolver.address != server.host:
                break  # the name has a new address: no answer will come from this one
        if not attempt.ready:
            self.events.emit(
                "client.connect.failed",
                address=attempt.origin,
                reason="ended" if attempt.ended else "timeout",
            )
            attempt.finish()
            return False
        return True

    def _configuration(self, ticket: SessionTicket | None) -> QuicConfiguration:
        quic = QuicConfiguration(
            is_client=True,
            alpn_protocols=[ALPN],
            server_name=SERVER_NAME,
            idle_timeout=self.config.idle_timeout_s,
            session_ticket=ticket,
        )
        quic.load_verify_locations(self.config.authority)
        quic.secrets_log_file = self._keys
        return quic

    def _keep_ticket(self, ticket: SessionTicket) -> None:
        self._ticket = ticket

    def _take_over(self, attempt: Attempt, old: Attempt | None) -> None:
        """Make it the current connection, and send the open exchanges again on it."""
        if old is not None and not old.ended:
            old.finish()
        self._current = attempt
        self._over.clear()
        for exchange in self._exchanges.all_open():
            self._exchanges.wait_again(exchange)
        self._carry_all(attempt)

    def _ready(self, attempt: Attempt) -> None:
        self.events.emit(
            "client.quic.established",
            address=attempt.origin,
            early_data=attempt.offers_early_data and attempt.connection.tls.early_data_accepted,
        )
        if attempt is not self._current:
            self._take_over(attempt, self._current)
        if not self.connected.is_set():
            self.connected.set()
            self.events.emit("client.connected", negotiated=False, strategies=[])
        self._changed.set()

    def _lost(self, attempt: Attempt, reason: str) -> None:
        self._changed.set()
        if attempt is self._current:
            self._over.set()

    async def _wait(self, backoff_s: float) -> None:
        """Wait before the next look-up: ``backoff_s``, or until the cached record expires or changes."""
        left_s = self.resolver.seconds_left()
        try:
            async with asyncio.timeout(min(backoff_s, left_s + 0.001) if left_s else backoff_s):
                await self._changed.wait()
        except TimeoutError:
            pass


async def serve(config: ReconnectConfig) -> None:
    """Run a client to its end."""
    await ReconnectingClient(config, EventLog("client", sink=print_event)).run()


def main() -> None:
    """Run the reconnecting QUIC client and its load until told to stop."""
    asyncio.run(serve(read_config("baselines.quic_reconnect.client", ReconnectConfig)))


if __name__ == "__main__":
    main()
