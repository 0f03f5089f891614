"""A rehearsal of the hand-off in the standby server, before anything depends on it.

The first time a process restores a connection it makes what is made on demand: decoders, key schedules,
code pages never touched. That takes 12 to 25 ms instead of 2 to 4 (measured), all of it downtime. So a
standby moves a connection of its own once, between two ends in memory.

Until the hand-off comes, the processor has forgotten much of that again: to restore one connection, resume it
and have it speak takes 1.3 ms then, and a quarter of it directly after another (measured). So the
part that is downtime is repeated when the copies of connections have come, shortly before the freeze.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from quicferry.quic import ExtensionConfig, MigratableConnection
from quicferry.quic.copies import Copy
from quicferry.quic.snapshot import (
    freeze,
    pack_bundle,
    record_commit,
    restore_snapshot,
    take_snapshot,
    unpack_bundle,
)
from quicferry.strategies import Strategy
from quicferry.units import now_s

CLIENT, SERVER = ("192.0.2.1", 1), ("192.0.2.2", 2)
ROUNDS = 12  # datagram exchanges; a handshake and a request need fewer
EPOCH = 1


class Rehearsal:
    """A connection of this process's own, with keys that nobody else has, and its moves."""

    def __init__(self) -> None:
        self._again: Callable[[], None] = lambda: None

    def play(self, configuration: QuicConfiguration, extension: ExtensionConfig | None) -> None:
        """Move it from this process to itself. ``configuration`` is the server's."""
        build: Callable[..., QuicConnection] = functools.partial(MigratableConnection, extension=extension)
        snapshot = _move(configuration, extension, build)
        self._again = functools.partial(_take_over, snapshot, configuration, build)
        self.repeat()

    def repeat(self) -> None:
        """Take it over and give it away once more; nothing when it was not played."""
        self._again()


def _take_over(
    snapshot: bytes, configuration: QuicConfiguration, build: Callable[..., QuicConnection]
) -> None:
    copy = Copy(snapshot, configuration=configuration, build=build, now=now_s(), epoch=EPOCH)
    connection = copy.refresh(snapshot, now_s())
    assert isinstance(connection, MigratableConnection)
    connection.resume(EPOCH, Strategy.SYMMETRIC, True, now_s(), address=SERVER, withhold=True)
    connection.datagrams_to_send(now_s())  # for nobody: they have left from a copy of it before
    connection.get_timer()
    record_commit(connection)
    connection.hold()
    freeze(connection, now_s())
    take_snapshot(connection, now_s(), epoch=EPOCH)


def _move(
    configuration: QuicConfiguration,
    extension: ExtensionConfig | None,
    build: Callable[..., QuicConnection],
) -> bytes:
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
    bundle = pack_bundle(EPOCH, [take_snapshot(server, now_s(), epoch=EPOCH)], b"")
    (snapshot,) = unpack_bundle(bundle).snapshots
    moved = restore_snapshot(snapshot, configuration=configuration, build=build, now=now_s())
    assert isinstance(moved, MigratableConnection)
    moved.resume(EPOCH, Strategy.SYMMETRIC, True, now_s())
    moved.send_stream_data(0, b"it works", True)
    _exchange(client, moved)
    return snapshot


def _exchange(client: QuicConnection, server: QuicConnection) -> None:
    for _ in range(ROUNDS):
        for sender, receiver, origin in ((client, server, CLIENT), (server, client, SERVER)):
            for data, _ in sender.datagrams_to_send(now_s()):
                receiver.receive_datagram(data, origin, now_s())
            while receiver.next_event() is not None:
                pass
