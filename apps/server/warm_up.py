"""A rehearsal of the hand-off in the standby server, before anything depends on it.

The first time a process restores a connection it makes what is made on demand: decoders, key schedules,
code pages never touched. That takes 12 to 25 ms instead of 2 to 4 (measured), all of it downtime. So a
standby moves a connection of its own once, between two ends in memory.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from quicferry.quic import ExtensionConfig, MigratableConnection
from quicferry.quic.snapshot import freeze, pack_bundle, restore_snapshot, take_snapshot, unpack_bundle
from quicferry.strategies import Strategy
from quicferry.units import now_s

CLIENT, SERVER = ("192.0.2.1", 1), ("192.0.2.2", 2)
ROUNDS = 12  # datagram exchanges; a handshake and a request need fewer


def rehearse(configuration: QuicConfiguration, extension: ExtensionConfig | None) -> None:
    """Move one connection from this process to itself. ``configuration`` is the server's."""
    offered = QuicConfiguration(
        is_client=True,
        alpn_protocols=configuration.alpn_protocols,
        verify_mode=ssl.CERT_NONE,  # both ends are this process, and nothing secret crosses
    )
    client = MigratableConnection(configuration=offered, extension=extension)
    server = MigratableConnection(
        configuration=configuration,
        extension=extension,
        original_destination_connection_id=client.original_destination_connection_id,
    )
    client.connect(SERVER, now_s())
    _exchange(client, server)
    client.send_stream_data(client.get_next_available_stream_id(), b"rehearsal", True)
    _exchange(client, server)
    server.hold()
    freeze(server, now_s())
    bundle = pack_bundle(1, [take_snapshot(server, now_s(), epoch=1)], b"")
    build: Callable[..., QuicConnection] = functools.partial(MigratableConnection, extension=extension)
    for snapshot in unpack_bundle(bundle).snapshots:
        moved = restore_snapshot(snapshot, configuration=configuration, build=build, now=now_s())
        assert isinstance(moved, MigratableConnection)
        moved.resume(1, Strategy.SYMMETRIC, True, now_s())
        moved.send_stream_data(0, b"it works", True)
        _exchange(client, moved)


def _exchange(client: QuicConnection, server: QuicConnection) -> None:
    for _ in range(ROUNDS):
        for sender, receiver, origin in ((client, server, CLIENT), (server, client, SERVER)):
            for data, _ in sender.datagrams_to_send(now_s()):
                receiver.receive_datagram(data, origin, now_s())
            while receiver.next_event() is not None:
                pass
