"""The client process: one connection, a load, and a log of what came back from where.

    python -m apps.client.client --config FILE

Events go to stdout as JSON lines. A line ``ask`` on stdin has the client ask its server to move. A line
``stop``, the end of stdin, or SIGTERM ends the load: the client waits for what is still open, writes its
summary and ends.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import signal
from pathlib import Path
from typing import TextIO

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
)

from apps.client.load import Load
from apps.client.load_schedule import LoadSchedule, first
from apps.config import ALPN, MAX_DATAGRAM_FRAME_BYTES, SERVER_NAME, ClientConfig, read_config
from apps.deadline import Deadline
from apps.reporting import print_event
from apps.udp import Datagram, UdpPort
from quicferry.events import EventLog
from quicferry.model import Endpoint
from quicferry.quic import (
    ExtensionConfig,
    LocalError,
    LossNoticed,
    MigratableConnection,
    MigrationAborted,
    MigrationAnnounced,
    MigrationFellBack,
    MoveAnswered,
    PathSwitched,
    PathValidated,
    PeerMigrated,
    ProbeStarted,
    Timings,
)
from quicferry.units import now_s


@functools.lru_cache(maxsize=64)  # asked for each datagram, and there are few
def address_text(address: tuple[str, int]) -> str:
    """An address as it stands in events and records."""
    return str(Endpoint(address[0], address[1]))


def open_keys(config: ClientConfig) -> TextIO:
    """The file of traffic secrets, to which aioquic writes as long as the process lives."""
    return Path(config.keys).open("a", encoding="ascii")


class Client:
    """One client. ``keys``: the file of traffic secrets of a process that has several; it closes that."""

    def __init__(self, config: ClientConfig, events: EventLog, keys: TextIO | None = None) -> None:
        self.config = config
        self.events = events
        self._keys = open_keys(config) if keys is None else keys
        self.connection = self.make_connection()
        family = "::" if ":" in config.server.host else "0.0.0.0"
        self.port = UdpPort(Endpoint(family, 0), self._received, stamped=True)
        self.load = Load(config, events, self._send, self.connection.unsent_bytes)
        self.connected = asyncio.Event()
        self.closed = asyncio.Event()
        self.schedule = LoadSchedule(config, self.load, self._request)
        self.schedule.send_datagram = self._send_datagram
        self._deadline = Deadline(self._timer_due)
        self._origin = ""
        self._received_ns = 0

    def make_connection(self) -> MigratableConnection:
        """A new connection, as the configuration wants it."""
        config = self.config
        quic = QuicConfiguration(
            is_client=True,
            alpn_protocols=[ALPN],
            server_name=SERVER_NAME,
            idle_timeout=config.idle_timeout_s,
        )
        quic.max_datagram_frame_size = MAX_DATAGRAM_FRAME_BYTES
        quic.load_verify_locations(config.authority)
        quic.secrets_log_file = self._keys
        extension = None
        if config.extension:
            # one process is all these clients, and must not drown in probes that nobody spaced out
            interval_s = Timings().shared_interval_s(config.clients)
            extension = ExtensionConfig(
                strategies=frozenset(config.strategies),
                accept_moves=config.accept_moves,
                congestion=config.congestion,
                probing=config.probing,
                timings=Timings(probe_interval_s=interval_s),
            )
        return MigratableConnection(configuration=quic, extension=extension)

    def address_has_changed(self) -> None:
        """Go on from a new address of this host, of which its system tells: with another connection ID.

        RFC 9000 section 9.5 asks for that; the PING makes the server follow although nothing is to be sent.
        """
        self.connection.change_connection_id()
        self.connection.send_ping(0)
        self._proceed()

    async def run(self) -> None:
        """Connect, load until told to stop, wait for what is open, write the summary."""
        self.schedule.listen(self.ask)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, self.address_has_changed)
        self.port.start()
        self.connection.connect((self.config.server.host, self.config.server.port), now_s())
        self._proceed()
        await first(self.connected, self.schedule.stopping, self.closed)
        gc.freeze()
        self.load.start_transfers(self.connection.get_next_available_stream_id)
        self._proceed()
        await self.schedule.run(self.closed)
        negotiated = sorted(str(strategy) for strategy in self.connection.negotiated)
        self.schedule.conclude(self.events, negotiated)
        self.connection.close()
        self._proceed()
        self.port.close()
        self._keys.close()

    def ask(self) -> None:
        """Ask the server to move; what comes of it is told in events."""
        try:
            request = self.connection.ask_for_move()
        except LocalError as error:
            self.events.emit("client.move.answered", request=0, reply=str(error))
            return
        self.events.emit("client.move.requested", request=request)
        self._proceed()

    def _send_datagram(self, data: bytes) -> None:
        self.connection.send_datagram_frame(data)
        self._proceed()

    def _request(self) -> None:
        self.load.request(self.connection.get_next_available_stream_id)
        self._proceed()

    # --- the connection ----------------------------------------------------------------------

    def _send(self, stream: int, data: bytes, end: bool) -> None:
        self.connection.send_stream_data(stream, data, end)

    def _received(self, batch: list[Datagram]) -> None:
        for data, sender, self._received_ns, _ in batch:
            self._origin = address_text(sender)
            self.connection.receive_datagram(data, sender, now_s())
            self._handle_events()
        self._proceed()

    def _proceed(self) -> None:
        self._handle_events()
        self.load.pump()
        now = now_s()
        for data, receiver in self.connection.datagrams_to_send(now):
            self.port.send(data, (receiver[0], receiver[1]))
        self._handle_events()
        self._deadline.set(self.connection.get_timer())

    def _timer_due(self, now: float) -> None:
        self.connection.handle_timer(now)
        self._proceed()

    def _handle_events(self) -> None:
        while (event := self.connection.next_event()) is not None:
            self._on_event(event)

    def _on_event(self, event: QuicEvent) -> None:
        emit = self.events.emit
        match event:
            case StreamDataReceived():
                self.load.received(
                    event.stream_id, event.data, event.end_stream, self._origin, self._received_ns
                )
            case DatagramFrameReceived():
                self.load.datagram_received(event.data, self._origin, self._received_ns)
            case HandshakeCompleted():
                negotiated = sorted(str(strategy) for strategy in self.connection.negotiated)
                emit("client.connected", negotiated=bool(negotiated), strategies=negotiated)
                self.connected.set()
            case MigrationAnnounced():
                addresses = [address_text(address) for address in event.addresses]
                emit(
                    "client.migration.announced",
                    epoch=event.epoch,
                    strategy=str(event.strategy),
                    addresses=addresses,
                )
            case LossNoticed():
                emit("client.loss.noticed", pto_ms=event.pto_s * 1e3, silent_ms=event.silent_s * 1e3)
            case ProbeStarted():
                emit("client.probing", address=address_text(event.address))
            case PeerMigrated():
                emit("client.server.packet", epoch=event.epoch, address=address_text(event.address))
            case PathValidated():
                emit(
                    "client.path.validated",
                    address=address_text(event.address),
                    rtt_ms=event.rtt_s * 1e3,
                )
            case MoveAnswered():
                emit("client.move.answered", request=event.request, reply=str(event.reply))
            case PathSwitched():
                emit("client.switched", old=address_text(event.old), new=address_text(event.new))
            case MigrationAborted():
                emit("client.migration.aborted", epoch=event.epoch, reason=str(event.reason))
            case MigrationFellBack():
                emit("client.fell-back", reason=str(event.reason))
            case ConnectionTerminated():
                self.load.closed = event.reason_phrase or f"error {event.error_code:#x}"
                self.closed.set()
                self.load.answered.set()
            case _:
                pass


def main() -> None:
    """Run one client and its load until told to stop."""
    config = read_config("apps.client.client", ClientConfig)
    asyncio.run(Client(config, EventLog("client", sink=print_event)).run())


if __name__ == "__main__":
    main()
