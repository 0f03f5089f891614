"""One QUIC connection of a client that may have several in the course of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
    StreamReset,
)
from aioquic.tls import SessionTicket

from apps.udp import Datagram, UdpPort
from baselines.repeating import OpenExchange
from quicferry.model import Endpoint
from quicferry.quic import MigratableConnection
from quicferry.units import now_ns, now_s


class Attempt:
    """A connection to one address, stock in every respect, on a UDP port of its own.

    ``on_ready`` is called when the handshake is over, ``on_end`` once when the connection has ended
    by itself, with the reason. ``finish`` ends it from here, without either.
    """

    def __init__(
        self,
        server: Endpoint,
        configuration: QuicConfiguration,
        on_ready: Callable[[Attempt], None],
        on_end: Callable[[Attempt, str], None],
        on_ticket: Callable[[SessionTicket], None],
    ) -> None:
        self.server = server
        self.origin = str(server)
        self.connection = MigratableConnection(configuration=configuration, session_ticket_handler=on_ticket)
        self._on_ready = on_ready
        self._on_end = on_end
        self._port = UdpPort(
            Endpoint("::" if ":" in server.host else "0.0.0.0", 0), self._received, stamped=True
        )
        self._timer: asyncio.TimerHandle | None = None
        self._carried: dict[int, OpenExchange] = {}  # QUIC stream -> exchange
        self._streams: dict[int, int] = {}  # the load's stream -> QUIC stream
        self.offers_early_data = configuration.session_ticket is not None
        self.ready = False
        self.ended = False
        self.heard_s: float | None = None  # when something of the server came last

    def start(self) -> None:
        """Send the first flight, with what is carried already as early data if there is a ticket."""
        self._port.start()
        self.connection.connect((self.server.host, self.server.port), now_s())

    # --- exchanges -----------------------------------------------------------------------------

    def carry(self, exchange: OpenExchange) -> None:
        """Send an exchange on a stream of its own."""
        stream = self.connection.get_next_available_stream_id()
        self._carried[stream] = exchange
        self._streams[exchange.stream] = stream
        self.feed(exchange)

    def feed(self, exchange: OpenExchange) -> None:
        """Send what there is more of an exchange."""
        stream = self._streams.get(exchange.stream)
        while stream is not None and (part := exchange.next_part()) is not None:
            self.connection.send_stream_data(stream, part, exchange.ended)

    def unsent_bytes(self, load_stream: int) -> int:
        """What of an exchange waits to be sent."""
        stream = self._streams.get(load_stream)
        return 0 if stream is None else self.connection.unsent_bytes(stream)

    # --- the connection ------------------------------------------------------------------------

    def _received(self, batch: list[Datagram]) -> None:
        for data, sender, received_ns, _ in batch:
            if sender == (self.server.host, self.server.port):
                self.heard_s = now_s()
            self.connection.receive_datagram(data, sender, now_s())
            self._events(received_ns)
        self.proceed()

    def proceed(self) -> None:
        """Send what wants to leave, and set the timer."""
        if self.ended:
            return
        self._events(now_ns())
        for data, receiver in self.connection.datagrams_to_send(now_s()):
            self._port.send(data, (receiver[0], receiver[1]))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due = self.connection.get_timer()
        if due is not None and not self.ended:
            self._timer = asyncio.get_running_loop().call_at(due, self._timer_due, due)

    def _timer_due(self, due: float) -> None:
        self._timer = None
        self.connection.handle_timer(max(due, now_s()))
        self.proceed()

    def _events(self, t_ns: int) -> None:
        while not self.ended and (event := self.connection.next_event()) is not None:
            self._event(event, t_ns)
        if not self.ended and self.connection.is_closing:
            # at once: aioquic's own event comes only when the connection has drained, three PTOs later
            self._end("closed")

    def _event(self, event: QuicEvent, t_ns: int) -> None:
        match event:
            case StreamDataReceived():
                exchange = self._carried.get(event.stream_id)
                if exchange is not None:
                    if event.end_stream:
                        self._carried.pop(event.stream_id)
                        self._streams.pop(exchange.stream, None)
                    exchange.answered(event.data, event.end_stream, self.origin, t_ns)
            case HandshakeCompleted():
                self.ready = True
                self._on_ready(self)
            case StreamReset():
                self._end(f"the server reset stream {event.stream_id}")
            case ConnectionTerminated():
                self._end(event.reason_phrase or f"error {event.error_code:#x}")
            case _:
                pass

    def _end(self, reason: str) -> None:
        if not self.ended:
            self.finish()
            self._on_end(self, reason)

    def finish(self, *, politely: bool = False) -> None:
        """Forget the connection; ``politely``: the server is told."""
        self.ended = True
        if politely:
            self.connection.close()
            for data, receiver in self.connection.datagrams_to_send(now_s()):
                self._port.send(data, (receiver[0], receiver[1]))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._port.close()
