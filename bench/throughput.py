"""Bulk throughput of a connection with the extension against stock aioquic, side by side.

Two endpoints in one process, without a network: all that counts is the processor time of the
protocol. The two kinds take turns, so that a machine that slows down slows both.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived

from quicferry.migration.certificates import Authority, TlsFiles
from quicferry.quic import ExtensionConfig, MigratableConnection

CLIENT, SERVER = ("192.0.2.1", 5000), ("192.0.2.2", 4433)
SIZE_BYTES = 6 << 20
ROUNDS = 9


def make_pair(extended: bool, files: TlsFiles) -> tuple[QuicConnection, QuicConnection]:
    """A client and a server that do not know each other yet."""
    client = QuicConfiguration(is_client=True, alpn_protocols=["bench"], server_name="bench")
    server = QuicConfiguration(is_client=False, alpn_protocols=["bench"])
    client.load_verify_locations(files.authority)
    server.load_cert_chain(files.certificate, files.key)
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


def transfer_s(client: QuicConnection, server: QuicConnection) -> float:
    """Seconds of processor time to bring SIZE_BYTES from server to client."""
    now, received, asked = 0.0, 0, False
    client.connect(SERVER, now)
    begun = time.process_time()
    while received < SIZE_BYTES:
        now += 0.0005
        moved = False
        for sender, receiver, address in ((client, server, CLIENT), (server, client, SERVER)):
            due = sender.get_timer()
            if due is not None and due <= now:
                sender.handle_timer(now)
            for data, _ in sender.datagrams_to_send(now):
                receiver.receive_datagram(data, address, now)
                moved = True
            while (event := receiver.next_event()) is not None:
                if isinstance(event, StreamDataReceived):
                    if receiver is server:
                        server.send_stream_data(event.stream_id, bytes(SIZE_BYTES), True)
                    else:
                        received += len(event.data)
        if not moved and not asked:
            asked = True
            begun = time.process_time()  # the handshake does not count
            client.send_stream_data(client.get_next_available_stream_id(), b"go", True)
    return time.process_time() - begun


def throughput_ratio(rounds: int = ROUNDS) -> float:
    """Median over ``rounds`` of (throughput with the extension) / (stock throughput), pair by pair."""
    ratios: list[float] = []
    with TemporaryDirectory() as name:
        files = Authority().issue("bench").save(Path(name), "bench")
        for number in range(rounds):
            times: dict[bool, float] = {}
            for extended in (False, True) if number % 2 else (True, False):
                times[extended] = transfer_s(*make_pair(extended, files))
            ratios.append(times[False] / times[True])
    return statistics.median(ratios)


if __name__ == "__main__":
    print(f"throughput with the extension / stock aioquic: {throughput_ratio():.3f}")
