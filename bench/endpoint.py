"""Bulk throughput of the whole endpoint, socket to application, against aioquic's own asyncio endpoint.

Server and client are in one process and talk over loopback; what counts is the processor time of both, the
kernel's part of it included. Ours are the port and the connection table of ``apps``, with the extension;
stock are ``aioquic.asyncio.serve`` and ``connect`` with a protocol that reads events, without streams of
asyncio, which would cost more.

    python -m bench.endpoint
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import HandshakeCompleted, QuicEvent, StreamDataReceived

from apps.deadline import Deadline
from apps.server.connections import ConnectionTable, Peer
from apps.udp import Datagram, UdpPort
from bench.throughput import SIZE_BYTES, configurations
from bench.turns import ROUNDS, ratio_by_turns, show
from quicferry.migration.rpc.credentials import Authority, TlsFiles
from quicferry.model import Endpoint
from quicferry.quic import ExtensionConfig, MigratableConnection
from quicferry.units import now_s

HOST = "127.0.0.1"
TRANSFERS = 4


class _StockServer(QuicConnectionProtocol):
    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self._quic.send_stream_data(event.stream_id, bytes(SIZE_BYTES), True)


class _StockClient(QuicConnectionProtocol):
    received = 0
    done: asyncio.Event

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            self.received += len(event.data)
            if event.end_stream:
                self.done.set()


async def stock_s(files: TlsFiles) -> float:
    """Seconds of processor time to bring SIZE_BYTES from server to client, by aioquic's own endpoint."""
    client, server = configurations(files)
    serving = await serve(HOST, 0, configuration=server, create_protocol=_StockServer)
    assert serving._transport is not None  # noqa: SLF001  (it has no other way to tell its port)
    port = serving._transport.get_extra_info("sockname")[1]  # noqa: SLF001
    async with connect(HOST, port, configuration=client, create_protocol=_StockClient) as made:
        protocol = cast(_StockClient, made)
        protocol.done = asyncio.Event()
        begun = time.process_time()
        protocol._quic.send_stream_data(0, b"go", True)  # noqa: SLF001
        protocol.transmit()
        await protocol.done.wait()
        spent_s = time.process_time() - begun
        assert protocol.received == SIZE_BYTES
    serving.close()
    return spent_s


class _Client:
    """The client's port and connection, as in ``apps.client``, without its log and its load."""

    def __init__(self, configuration: QuicConfiguration, server: tuple[str, int]) -> None:
        self.connection = MigratableConnection(configuration=configuration, extension=ExtensionConfig())
        self.port = UdpPort(Endpoint("0.0.0.0", 0), self._received, stamped=True)
        self.connected, self.done = asyncio.Event(), asyncio.Event()
        self.received = 0
        self._deadline = Deadline(self._due)
        self.port.start()
        self.connection.connect(server, now_s())
        self.proceed()

    def _received(self, batch: list[Datagram]) -> None:
        for data, sender, _, _ in batch:
            self.connection.receive_datagram(data, sender, now_s())
            self._events()
        self.proceed()

    def _events(self) -> None:
        while (event := self.connection.next_event()) is not None:
            if isinstance(event, StreamDataReceived):
                self.received += len(event.data)
                if event.end_stream:
                    self.done.set()
            elif isinstance(event, HandshakeCompleted):
                self.connected.set()

    def proceed(self) -> None:
        self._events()
        for data, receiver in self.connection.datagrams_to_send(now_s()):
            self.port.send(data, (receiver[0], receiver[1]))
        self._deadline.set(self.connection.get_timer())

    def _due(self, now: float) -> None:
        self.connection.handle_timer(now)
        self.proceed()

    def close(self) -> None:
        self.connection.close()
        self.proceed()
        self._deadline.cancel()
        self.port.close()


async def extended_s(files: TlsFiles) -> float:
    """Seconds of processor time to bring SIZE_BYTES from server to client, by the endpoints of ``apps``."""
    client_configuration, server_configuration = configurations(files)

    def on_event(peer: Peer, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            peer.connection.send_stream_data(event.stream_id, bytes(SIZE_BYTES), True)

    port = UdpPort(Endpoint(HOST, 0), lambda batch: table.received(batch))
    table = ConnectionTable(port, server_configuration, ExtensionConfig(), on_event, lambda _: None)
    port.start()
    client = _Client(client_configuration, port.socket.getsockname())
    await client.connected.wait()
    begun = time.process_time()
    client.connection.send_stream_data(0, b"go", True)
    client.proceed()
    await client.done.wait()
    spent_s = time.process_time() - begun
    assert client.received == SIZE_BYTES
    client.close()
    table.remove_all()
    port.close()
    return spent_s


def fastest_s(extended: bool, transfers: int = TRANSFERS) -> float:
    """The shortest of several transfers in this process, after one that warms it up."""
    transfer = extended_s if extended else stock_s
    with TemporaryDirectory() as name:
        files = Authority().issue("bench").save(Path(name), "bench")
        asyncio.run(transfer(files))
        return min(asyncio.run(transfer(files)) for _ in range(transfers))


def endpoint_ratio(rounds: int = ROUNDS) -> float:
    """Throughput of our endpoint / throughput of aioquic's; see ``ratio_by_turns``."""
    return ratio_by_turns("bench.endpoint", rounds)


if __name__ == "__main__":
    show("throughput of the whole endpoint / aioquic's asyncio endpoint", endpoint_ratio, fastest_s)
