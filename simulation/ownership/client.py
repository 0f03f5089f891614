"""A client of the real service: the project's connection and load, on a simulated wire."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
)

from quicferry.events import Event, EventLog
from quicferry.model import Endpoint
from quicferry.quic import ExtensionConfig, MigratableConnection, PathSwitched
from simulation.clock import VirtualLoop
from simulation.history import History
from simulation.network import Address
from simulation.ownership.adapter import ALPN, ClientConfig, Load
from simulation.protocol.endpoint import Endpoint as Driver
from simulation.protocol.endpoint import client_view

IDLE_TIMEOUT_S = 120.0


class SimulatedClient:
    """One client with one connection."""

    def __init__(
        self, loop: VirtualLoop, history: History, server: Address, send: Callable[[bytes, Address], None]
    ) -> None:
        self._loop = loop
        self._history = history
        configuration = QuicConfiguration(
            is_client=True, alpn_protocols=[ALPN], idle_timeout=IDLE_TIMEOUT_S, verify_mode=ssl.CERT_NONE
        )
        connection = MigratableConnection(configuration=configuration, extension=ExtensionConfig())
        self.driver = Driver(loop, connection, self._on_event, send)
        config = ClientConfig(server=Endpoint(*server), authority="", keys="", summary="")
        self.load = Load(
            config,
            EventLog("client", None, self._told),
            connection.send_stream_data,
            connection.unsent_bytes,
        )
        self.connected = False
        self.sent = 0
        self.answered = 0
        connection.connect(server, loop.time())
        self.driver.proceed()

    @property
    def address(self) -> Address:
        """Where it sends to."""
        found: Address = client_view(self.driver.connection)["address"]
        return found

    @property
    def closed(self) -> str | None:
        """Why the connection has ended."""
        return self.load.closed

    def ask(self) -> None:
        """One request."""
        self.sent += 1
        self.load.request(self.driver.connection.get_next_available_stream_id)
        self.driver.proceed()

    @property
    def waiting(self) -> int:
        """How many requests have no answer."""
        return self.sent - self.answered

    def _told(self, event: Event) -> None:
        self.answered += event.name == "client.response.received"

    def receive(self, data: bytes, source: Address) -> None:
        """A datagram has come."""
        self.driver.receive(data, source)
        self.driver.proceed()

    def _on_event(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self.load.received(event.stream_id, event.data, event.end_stream, "server")
        elif isinstance(event, HandshakeCompleted):
            self.connected = True
        elif isinstance(event, PathSwitched):
            self._history.note("client", "switched", new=event.new)
        elif isinstance(event, ConnectionTerminated):
            self.load.closed = event.reason_phrase or f"error {event.error_code:#x}"
            self._history.note("client", "closed", reason=self.load.closed)
