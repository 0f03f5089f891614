"""The client of TCP with DNS: a pool of connections, and what becomes of it when the server moves.

    python -m baselines.tcp_dns.client --config FILE

Notices by reset, by TCP_USER_TIMEOUT or by its own request time-out; then it resolves the name
again, as the cache allows, connects, and repeats what was open. Events go to stdout as JSON lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ssl

from apps.client import workloads
from apps.client.load import Load
from apps.client.load_schedule import LoadSchedule, first
from apps.config import read_config
from apps.reporting import print_event
from baselines.dns.resolver import FixedAddress, NameNotFound, Resolver
from baselines.repeating import Exchanges, OpenExchange
from baselines.tcp_dns.config import TcpClientConfig
from baselines.tcp_dns.connection import ConnectFailed, HttpConnection, client_context
from quicferry.events import EventLog

#: A server that is away for a moment is asked again soon, one that stays away more and more rarely.
BACKOFF_S = (0.02, 0.04, 0.08, 0.16, 0.25)
ASK_AGAIN_S = 0.1  # after so long without an answer the name is resolved again during an attempt


class TcpClient:
    """One client process."""

    def __init__(self, config: TcpClientConfig, events: EventLog) -> None:
        self.config = config
        self.events = events
        self._context = client_context(config)
        self._session: ssl.SSLSession | None = None
        self._exchanges = Exchanges()
        self.load = self._exchanges.load = Load(config, events, self._send, self._backlog_bytes)
        self.schedule = LoadSchedule(config, self.load, self._request)
        self.connected = asyncio.Event()
        self._ended = asyncio.Event()  # never set: this client does not give up before its patience is over
        self._moved = asyncio.Event()
        self.resolver = (
            Resolver(config.resolver, events, self._moved.set)
            if config.resolver is not None
            else FixedAddress(config.server.host)
        )
        self._connections: list[HttpConnection] = []
        self._dials: set[asyncio.Task[None]] = set()
        # a poll that waits at the server keeps its connection until its event happens
        workload = workloads.of_client(config.workload, config.session)
        self._most = config.most_connections + workloads.polls_ahead(workload, config.interval_ms / 1e3)
        self._reached = False  # whether the latest attempt to connect succeeded

    async def run(self) -> None:
        """Connect, load until told to stop, wait for what is open, write the summary."""
        self.schedule.listen()
        self._dial()
        await first(self.connected, self.schedule.stopping)
        if self.config.warm:
            for _ in range(self._most - 1):
                self._dial()
        gc.freeze()
        self.load.start_transfers(self._exchanges.next_stream)
        await self.schedule.run(self._ended)
        self.schedule.conclude(self.events)
        for dial in list(self._dials):
            dial.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        await self.resolver.close()
        for connection in self._connections:
            connection.close()
        await asyncio.sleep(0)

    # --- the load --------------------------------------------------------------------------------

    def _request(self) -> None:
        self.load.request(self._exchanges.next_stream)

    def _send(self, stream: int, data: bytes, end: bool) -> None:
        exchange = self._exchanges.send(stream, data, end)
        for connection in self._connections:
            if connection.exchange is exchange:
                connection.feed()
                return
        self._dispatch()

    def _backlog_bytes(self, stream: int) -> int:
        return self._exchanges.backlog_bytes(stream, self._transport_backlog)

    def _transport_backlog(self, stream: int) -> int:
        exchange = self._exchanges.get(stream)
        return sum(c.backlog_bytes() for c in self._connections if c.exchange is exchange)

    # --- the pool --------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Give waiting exchanges to free connections; open further connections up to the limit."""
        for connection in list(self._connections):
            if connection.usable and connection.exchange is None:
                exchange = self._exchanges.take()
                if exchange is None:
                    break
                connection.carry(exchange)
        # one attempt finds out whether the server is reachable; only then do others follow
        most = self._most if self._reached else 1
        while (
            self._exchanges.waiting > len(self._dials)
            and len(self._connections) + len(self._dials) < self._most
            and len(self._dials) < most
        ):
            self._dial()

    def _dial(self) -> None:
        task = asyncio.get_running_loop().create_task(self._connect())
        self._dials.add(task)
        task.add_done_callback(self._dialled)

    def _dialled(self, task: asyncio.Task[None]) -> None:
        self._dials.discard(task)
        if not task.cancelled():
            task.result()
            self._dispatch()
            self.load.pump()

    async def _connect(self) -> None:
        failures = 0
        while True:
            self._moved.clear()
            connection = HttpConnection(
                self.config, self._context, self.events, self._idle, self._lost, self.load.pump
            )
            try:
                address = await self.resolver.resolve()
                await self._open(connection, address)
            except (NameNotFound, ConnectFailed) as error:
                self._reached = False
                self.events.emit("client.connect.failed", address=connection.origin, reason=str(error))
                if len(self._dials) > 1:
                    return  # another attempt is under way
                await self._wait(BACKOFF_S[min(failures, len(BACKOFF_S) - 1)])
                failures += 1
                continue
            self._reached = True
            self._connections.append(connection)
            if not self.connected.is_set():
                self.connected.set()
                self.events.emit("client.connected", negotiated=False, strategies=[])
            return

    async def _open(self, connection: HttpConnection, address: str) -> None:
        """Open a connection unless the name comes to stand for another address meanwhile."""
        session = self._session if self.config.tls_resumption else None
        opening = asyncio.get_running_loop().create_task(connection.open(address, session))
        try:
            while not opening.done():
                moved = asyncio.get_running_loop().create_task(self._moved.wait())
                await asyncio.wait({opening, moved}, timeout=ASK_AGAIN_S, return_when=asyncio.FIRST_COMPLETED)
                moved.cancel()
                if not opening.done():
                    with contextlib.suppress(NameNotFound):
                        await self.resolver.resolve()
                if not opening.done() and self.resolver.address != address:
                    raise ConnectFailed("the server is elsewhere now")
                self._moved.clear()
            opening.result()
        finally:
            if not opening.done():
                opening.cancel()
                await asyncio.wait({opening})
                connection.abort()

    async def _wait(self, backoff_s: float) -> None:
        """Wait before the next attempt: ``backoff_s``, or until the cached record expires or changes."""
        left_s = self.resolver.seconds_left()
        wait_s = min(backoff_s, left_s + 0.001) if left_s else backoff_s
        try:
            async with asyncio.timeout(wait_s):
                await self._moved.wait()
        except TimeoutError:
            pass

    def _idle(self, connection: HttpConnection) -> None:
        """Give the next exchange to a connection whose exchange is over."""
        self._session = connection.session or self._session
        self._dispatch()

    def _lost(self, connection: HttpConnection, reason: str) -> None:
        exchange, connection.exchange = connection.exchange, None
        self._connections.remove(connection)
        self.events.emit(
            "client.connection.lost",
            address=connection.origin,
            reason=reason,
            open=int(exchange is not None),
        )
        self._reached = False
        if isinstance(exchange, OpenExchange):
            self._exchanges.wait_again(exchange)
        self._dispatch()


async def serve(config: TcpClientConfig) -> None:
    """Run a client to its end."""
    await TcpClient(config, EventLog("client", sink=print_event)).run()


def main() -> None:
    """Run the TCP client and its load until told to stop."""
    asyncio.run(serve(read_config("baselines.tcp_dns.client", TcpClientConfig)))


if __name__ == "__main__":
    main()
