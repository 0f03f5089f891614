"""Many clients in one process: each with a connection, a socket and a session of its own.

    python -m apps.client.multi_client --config FILE      (apps.config.ClientConfig, with ``clients``)

The first ``plain_clients`` of them do without the extension: such a client cannot follow a server
that moves. When its connection is closed with ``MOVED_ERROR``, it connects to the address in the
reason and sends again what was not answered; the service recognises what it had obeyed before.

They send requests in turn, all together at the rate of one client alone, but no faster than one request
every LEAST_INTERVAL_MS; with ``own_load`` each of them sends as one alone would. At the end each sends one
more, which shows whether its connection still works. All events of the first client are printed, of the
others only those in TOLD.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import msgspec
from aioquic.quic.events import ConnectionTerminated, QuicEvent, StreamDataReceived

from apps.client.client import Client, open_keys
from apps.client.load_schedule import first
from apps.config import LEAST_INTERVAL_MS, MOVED_ERROR, ClientConfig, read_config
from apps.reporting import EventPrinter, errors_to_stderr
from quicferry.errors import Unsupported
from quicferry.events import Event, EventLog, Sink
from quicferry.model import Endpoint
from quicferry.record import ClientSummary, write_json
from quicferry.slowness import longer
from quicferry.strategies import StrategyName
from quicferry.units import now_s

CONNECTING_AT_ONCE = 10  # handshakes cost both ends some milliseconds each
CONNECT_S = 25.0
OTHER_FILES = 100  # that a process has open besides the sockets of its clients
#: the events that clients after the first print
TOLD = frozenset(
    {
        *("client.connected", "client.migration.announced", "client.migration.aborted", "client.switched"),
        *("client.fell-back", "client.reconnecting", "client.move.requested", "client.move.answered"),
    }
)


def one_in_turn(strategies: Sequence[StrategyName], number: int) -> tuple[StrategyName, ...]:
    """The one strategy to which the client of that number, from 1, agrees where each has another."""
    return (strategies[number % len(strategies)],)


class Member(Client):
    """One of the clients. Its load knows exchanges by numbers that outlive a connection."""

    def __init__(self, config: ClientConfig, events: EventLog, keys: TextIO) -> None:
        super().__init__(config, events, keys)
        self._exchanges = 0
        self._open: dict[int, bytes] = {}  # exchange -> the request
        self._streams: dict[int, int] = {}  # stream of the present connection -> exchange
        self._answers: dict[int, bytes] = {}  # exchange -> what has come
        self.reconnected = 0

    async def join(self) -> None:
        """Connect; returns when connected, or when that failed."""
        self.port.start()
        self.connection.connect((self.config.server.host, self.config.server.port), now_s())
        self._proceed()
        await first(self.connected, self.closed)

    async def load_until_told(self, delay_s: float, last_delay_s: float) -> None:
        """Send requests until told to stop, then one more, and wait for the answers.

        The first one leaves after ``delay_s``, the last one ``last_delay_s`` after the word to stop.
        """
        await self.schedule.run(self.closed, delay_s=delay_s, last_delay_s=last_delay_s)

    def leave(self) -> ClientSummary:
        """Close the connection; returns the summary of the load."""
        summary = self.load.summary()
        summary.negotiated = sorted(str(strategy) for strategy in self.connection.negotiated)
        self.connection.close()
        self._proceed()
        self.port.close()
        return summary

    def _request(self) -> None:
        self.load.request(self._next_exchange)
        self._proceed()

    def _next_exchange(self) -> int:
        self._exchanges += 1
        return self._exchanges

    def _send(self, stream: int, data: bytes, end: bool) -> None:
        self._open[stream] = data
        if self.connected.is_set():  # else when it is again: whoever waits for the answer asks nothing more
            self._carry(stream)

    def _carry(self, exchange: int) -> None:
        stream = self.connection.get_next_available_stream_id()
        self._streams[stream] = exchange
        self._answers[exchange] = b""
        self.connection.send_stream_data(stream, self._open[exchange], True)

    def _on_event(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            exchange = self._streams[event.stream_id]
            self._answers[exchange] += event.data
            self.load.came_bytes += len(event.data)
            if event.end_stream:
                del self._streams[event.stream_id], self._open[exchange]
                self.load.received(
                    exchange, self._answers.pop(exchange), True, self._origin, self._received_ns
                )
        elif isinstance(event, ConnectionTerminated) and event.error_code == MOVED_ERROR:
            asyncio.get_running_loop().call_soon(self._connect_again, event.reason_phrase)
        else:
            super()._on_event(event)
            if self.connected.is_set() and self.reconnected and self._open and not self._streams:
                self._repeat()

    def _connect_again(self, address: str) -> None:
        self.reconnected += 1
        self.connected.clear()
        self._streams.clear()
        self.events.emit("client.reconnecting", address=address, open=len(self._open))
        self.connection = self.make_connection()
        self.connection.connect(Endpoint.parse(address), now_s())
        self._proceed()

    def _repeat(self) -> None:
        """Send on the new connection what was not answered, or asked for meanwhile."""
        for exchange in list(self._open):
            if exchange in self._answers:
                self.load.repeated(exchange)
            self._carry(exchange)


class MultiClient:
    """The process: its clients, and one summary of all their loads."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self._printer = EventPrinter()
        self._keys = open_keys(config)
        together_ms = max(config.interval_ms, LEAST_INTERVAL_MS)
        self._stagger_s = together_ms / 1e3
        each_ms = config.interval_ms if config.own_load else together_ms * config.clients
        self.members = [
            Member(
                msgspec.structs.replace(
                    config,
                    session=f"client-{number}",
                    extension=config.extension and number > config.plain_clients,
                    interval_ms=each_ms,
                    strategies=(
                        one_in_turn(config.strategies, number)
                        if config.mixed_strategies
                        else config.strategies
                    ),
                ),
                EventLog("client", sink=told_by(number, self._printer)),
                self._keys,
            )
            for number in range(1, config.clients + 1)
        ]

    def _ask(self) -> None:
        """One client asks the server to move: the first that can."""
        able = (member for member in self.members if member.connection.may_ask)
        next(able, self.members[0]).ask()

    def _address_has_changed(self) -> None:
        for member in self.members:
            member.address_has_changed()

    async def run(self) -> None:
        """Connect all, load until told to stop, write one summary."""
        schedule = self.members[0].schedule
        schedule.listen(self._ask)
        for_all = asyncio.get_running_loop().add_signal_handler
        for_all(signal.SIGUSR1, self._address_has_changed)
        for start in range(0, len(self.members), CONNECTING_AT_ONCE):
            group = self.members[start : start + CONNECTING_AT_ONCE]
            async with asyncio.timeout(longer(CONNECT_S)):
                await asyncio.gather(*(member.join() for member in group))
        gc.freeze()
        loads = [
            asyncio.create_task(
                member.load_until_told(number * self._stagger_s, number * LEAST_INTERVAL_MS / 1e3)
            )
            for number, member in enumerate(self.members)
        ]
        await schedule.stopping.wait()
        for member in self.members:
            member.schedule.stopping.set()
        await asyncio.gather(*loads)
        summary = sum_up([member.leave() for member in self.members])
        summary.reconnected = sum(member.reconnected for member in self.members)
        write_json(Path(self.config.summary), summary)
        self.members[0].events.emit("client.done", sent=summary.requests_sent, lost=summary.requests_lost)
        self._printer.flush()
        self._keys.close()


def allow_sockets(clients: int) -> None:
    """Let this process open a socket for each client: many systems allow 1024 files unless told otherwise.

    Raises ``Unsupported`` where the hard limit is less.
    """
    wanted = clients + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != hard < wanted:
        raise Unsupported(
            f"{clients} clients need {wanted} open files, and a process here may have {hard}",
            hint="raise the hard limit (`ulimit -Hn`, limits.conf(5)), or give fewer --clients",
        )
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def told_by(number: int, printer: EventPrinter) -> Sink:
    """One client's sink of events: ``printer``, with its number; of later clients only those in ``TOLD``."""

    def sink(event: Event) -> None:
        if number == 1 or event.name in TOLD:
            printer(msgspec.structs.replace(event, detail={**event.detail, "client": number}))

    return sink


def sum_up(summaries: list[ClientSummary]) -> ClientSummary:
    """One summary of the loads of all clients."""
    wrong = [each.state_detail for each in summaries if not each.state_ok]
    return ClientSummary(
        connections=len(summaries),
        requests_sent=sum(each.requests_sent for each in summaries),
        responses=sum(each.responses for each in summaries),
        requests_lost=sum(each.requests_lost for each in summaries),
        requests_duplicated=sum(each.requests_duplicated for each in summaries),
        requests_repeated=sum(each.requests_repeated for each in summaries),
        repeats_recognised=sum(each.repeats_recognised for each in summaries),
        bytes_verified=sum(each.bytes_verified for each in summaries),
        state_ok=not wrong,
        state_detail="; ".join(wrong[:3]) or f"right for all {len(summaries)} clients",
        negotiated=summaries[-1].negotiated,
        requests=sorted((r for each in summaries for r in each.requests), key=lambda r: r.sent_ns),
        stalls=sum(each.stalls for each in summaries),
        stalled_ms=sum(each.stalled_ms for each in summaries),
        datagrams_sent=sum(each.datagrams_sent for each in summaries),
        datagrams_received=sum(each.datagrams_received for each in summaries),
        late=sorted((each for every in summaries for each in every.late), key=lambda each: each.due_ns),
        closed=next((each.closed for each in summaries if each.closed is not None), None),
    )


def main() -> None:
    """Run all clients and their loads until told to stop."""
    with errors_to_stderr():
        config = read_config("apps.client.multi_client", ClientConfig)
        allow_sockets(config.clients)
        asyncio.run(MultiClient(config).run())


if __name__ == "__main__":
    main()
