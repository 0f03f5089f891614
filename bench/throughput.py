"""Bulk throughput of a connection with the extension against stock aioquic, side by side.

Two endpoints in one process, without a network: all that counts is the processor time of the
protocol. The two kinds take turns, so that a machine that slows down slows both.

    python -m bench.throughput
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent, StreamDataReceived

from bench.turns import ROUNDS, ratio_by_turns, show
from quicferry.migration.rpc.credentials import Authority, TlsFiles
from quicferry.quic import ExtensionConfig, MigratableConnection

CLIENT, SERVER = ("192.0.2.1", 5000), ("192.0.2.2", 4433)
SIZE_BYTES = 6 << 20
TRANSFERS = 8


def configurations(files: TlsFiles) -> tuple[QuicConfiguration, QuicConfiguration]:
    """A client's and a server's, which know each other."""
    client = QuicConfiguration(is_client=True, alpn_protocols=["bench"], server_name="bench")
    server = QuicConfiguration(is_client=False, alpn_protocols=["bench"])
    client.load_verify_locations(files.authority)
    server.load_cert_chain(files.certificate, files.key)
    return client, server


def make_pair(extended: bool, files: TlsFiles) -> tuple[QuicConnection, QuicConnection]:
    """A client and a server that do not know each other yet."""
    client, server = configurations(files)
    if not extended:
        first = QuicConnection(configuration=client)
        return first, QuicConnection(
            configuration=server, original_destination_connection_id=first.original_destination_connection_id
        )
    extension = ExtensionConfig()
    first = MigratableConnection(configuration=client, extension=extension)
    return first, MigratableConnection(
        configuration=server,
        extension=extension,
        original_destination_connection_id=first.original_destination_connection_id,
    )


def carry(
    client: QuicConnection,
    server: QuicConnection,
    now_s: float,
    heard: Callable[[QuicConnection, QuicEvent], None] | None = None,
) -> bool:
    """Give each end what the other has to send now; whether that was anything. ``heard`` gets the events."""
    moved = False
    for sender, receiver, address in ((client, server, CLIENT), (server, client, SERVER)):
        due_s = sender.get_timer()
        if due_s is not None and due_s <= now_s:
            sender.handle_timer(now_s)
        for data, _ in sender.datagrams_to_send(now_s):
            receiver.receive_datagram(data, address, now_s)
            moved = True
        while (event := receiver.next_event()) is not None:
            if heard is not None:
                heard(receiver, event)
    return moved


def transfer_s(client: QuicConnection, server: QuicConnection) -> float:
    """Seconds of processor time to bring SIZE_BYTES from server to client."""
    now, received, asked = 0.0, 0, False

    def heard(receiver: QuicConnection, event: QuicEvent) -> None:
        nonlocal received
        if isinstance(event, StreamDataReceived):
            if receiver is server:
                server.send_stream_data(event.stream_id, bytes(SIZE_BYTES), True)
            else:
                received += len(event.data)

    client.connect(SERVER, now)
    begun = time.process_time()
    while received < SIZE_BYTES:
        now += 0.0005
        moved = carry(client, server, now, heard)
        if not moved and not asked:
            asked = True
            begun = time.process_time()  # the handshake does not count
            client.send_stream_data(client.get_next_available_stream_id(), b"go", True)
    return time.process_time() - begun


def fastest_s(extended: bool, transfers: int = TRANSFERS) -> float:
    """The shortest of several transfers in this process, after one that warms it up."""
    with TemporaryDirectory() as name:
        files = Authority().issue("bench").save(Path(name), "bench")
        transfer_s(*make_pair(extended, files))
        return min(transfer_s(*make_pair(extended, files)) for _ in range(transfers))


def throughput_ratio(rounds: int = ROUNDS) -> float:
    """Throughput with the extension / stock throughput; see ``ratio_by_turns``."""
    return ratio_by_turns("bench.throughput", rounds)


if __name__ == "__main__":
    show("throughput with the extension / stock aioquic", throughput_ratio, fastest_s)
