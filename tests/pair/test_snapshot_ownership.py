"""One owner of the keys at any time: no nonce twice, no packet from a frozen connection, a way back."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnection

from quicferry.errors import FencedError, MigrationError
from quicferry.quic import snapshot
from quicferry.quic.snapshot import (
    ABORT_GAP,
    PACKET_NUMBER_LEASE,
    freeze,
    is_frozen,
    restore_snapshot,
    take_snapshot,
    thaw,
)
from tests.snapshot_support import CLIENT, SERVER, World, pattern, watched_nonces


def busy(seed: int = 1, loss: float = 0.0) -> World:
    world = World(seed=seed, loss=loss)
    world.connect()
    world.get(300_000, 1)
    world.flush()
    world.run(lambda: world.delivered > 80)
    return world


def restore(world: World, data: bytes) -> QuicConnection:
    return restore_snapshot(
        data, configuration=world.configuration, build=QuicConnection, now=world.server_now
    )


def squeeze(connection: QuicConnection, now: float, seconds: float) -> int:
    """Make a connection that nobody answers send all that it can; returns the number of datagrams."""
    sent, until = 0, now + seconds
    while now < until:
        sent += len(connection.datagrams_to_send(now))
        timer = connection.get_timer()
        assert timer is not None
        now = max(now, timer) + 1e-6
        connection.handle_timer(now)
    return sent


@pytest.mark.parametrize("seed", range(10))
def test_source_before_destination_and_thawed_source_never_share_a_nonce(seed: int) -> None:
    #: wire-format 9: MUST NOT use one packet number twice
    #: RFC 9000 12.3: MUST NOT reuse a packet number within
    with watched_nonces() as nonces:
        world = busy(seed, loss=0.05)
        source = world.server
        assert source is not None
        now = world.server_now
        freeze(source, now)
        before = source._packet_number
        destination = restore(world, take_snapshot(source, now, epoch=1))
        assert destination._packet_number == before + PACKET_NUMBER_LEASE
        # the destination speaks, nobody hears it, and it is given up: the source goes on
        assert squeeze(destination, now, 20.0) > 10
        assert destination._packet_number < before + ABORT_GAP
        thaw(source, now)
        assert source._packet_number == before + ABORT_GAP
        world.run(lambda: 0 in world.finished)
        # and is moved once more
        world.get(50_000, 2)
        world.flush()
        world.hop(downtime_s=0.01)
        world.run(lambda: 4 in world.finished)
    assert world.answers[0] == pattern(300_000, 1)
    assert world.answers[4] == pattern(50_000, 2)
    assert len(nonces.used) > 300
    assert nonces.repeated == []


def test_without_the_lease_nonces_would_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch itself works: the same move without gaps is caught."""
    monkeypatch.setattr(snapshot, "PACKET_NUMBER_LEASE", 0)
    monkeypatch.setattr(snapshot, "ABORT_GAP", 0)
    with watched_nonces() as nonces:
        world = busy()
        source = world.server
        assert source is not None
        freeze(source, world.server_now)
        data = take_snapshot(source, world.server_now, epoch=1)
        thaw(source, world.server_now)
        world.run(lambda: 0 in world.finished)
        monkeypatch.undo()
        monkeypatch.setattr(snapshot, "PACKET_NUMBER_LEASE", 0)
        squeeze(restore(world, data), world.server_now, 5.0)
    assert nonces.repeated


def test_a_large_window_is_bounded_so_that_a_silent_destination_stays_below_the_abort_gap() -> None:
    world = busy()
    assert world.server is not None
    world.server._loss._cc.congestion_window = 50_000_000
    freeze(world.server, world.server_now)
    before = world.server._packet_number
    destination = restore(world, take_snapshot(world.server, world.server_now, epoch=1))
    stream = destination.get_next_available_stream_id()
    destination._remote_max_data = 1 << 40
    destination.send_stream_data(stream, bytes(8_000_000))
    destination._streams[stream].max_stream_data_remote = 1 << 40
    assert squeeze(destination, world.server_now, 20.0) > 1000
    assert destination._packet_number < before + ABORT_GAP


CALLS: dict[str, tuple[Any, ...]] = {
    "change_connection_id": (),
    "close": (),
    "datagrams_to_send": (11.0,),
    "handle_timer": (11.0,),
    "receive_datagram": (b"late", CLIENT, 11.0),
    "request_key_update": (),
    "reset_stream": (0, 1),
    "send_datagram_frame": (b"x",),
    "send_ping": (1,),
    "send_stream_data": (0, b"x"),
    "stop_stream": (0, 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_frozen_connection_refuses(name: str) -> None:
    world = busy()
    assert world.server is not None
    freeze(world.server, world.server_now)
    assert is_frozen(world.server)
    with pytest.raises(FencedError):
        getattr(world.server, name)(*CALLS[name])
    assert world.server.get_timer() is None


def test_a_frozen_connection_cannot_encrypt_by_any_way() -> None:
    """Not even code that builds packets by itself, past the methods that are closed."""
    world = busy()
    assert world.server is not None
    freeze(world.server, world.server_now)
    with pytest.raises(FencedError):
        world.server._cryptos[tls.Epoch.ONE_RTT].encrypt_packet(b"header", b"payload", 1)
    with pytest.raises(FencedError):
        QuicConnection.datagrams_to_send(world.server, world.server_now)


def test_after_a_thaw_the_client_carries_on_and_frozen_time_is_not_idle_time() -> None:
    world = busy()
    source = world.server
    assert source is not None and source._close_at is not None
    left = source._close_at - world.server_now
    freeze(source, world.server_now)
    take_snapshot(source, world.server_now, epoch=1)
    world.down_until = world.now + 2.0
    left_after: list[float] = []

    def resume() -> None:
        thaw(source, world.server_now)
        assert source._close_at is not None
        left_after.append(source._close_at - world.server_now)

    world._resume = resume
    world.run(lambda: world.down_until is None)
    assert not is_frozen(source)
    assert left_after == [pytest.approx(left)]
    world.run(lambda: 0 in world.finished)
    assert world.answers[0] == pattern(300_000, 1)


def test_the_order_of_the_steps_is_held() -> None:
    world = busy()
    assert world.server is not None
    now = world.server_now
    with pytest.raises(MigrationError, match="frozen"):
        take_snapshot(world.server, now, epoch=1)
    with pytest.raises(MigrationError, match="not frozen"):
        thaw(world.server, now)
    freeze(world.server, now)
    with pytest.raises(MigrationError, match="already"):
        freeze(world.server, now)
    data = take_snapshot(world.server, now, epoch=4)
    with pytest.raises(MigrationError, match="move 4"):
        restore_snapshot(data, configuration=world.configuration, build=QuicConnection, now=now, epoch=5)


def test_what_cannot_be_moved_is_refused_and_stays_usable() -> None:
    world = World()
    world.client.connect(SERVER, world.now)
    with pytest.raises(MigrationError, match="server's end"):
        freeze(world.client, world.now)
    world.flush()
    world.step()
    assert world.server is not None
    with pytest.raises(MigrationError):
        freeze(world.server, world.server_now)  # in the middle of the handshake
    world.run(lambda: world.client._handshake_confirmed)
    world.get(1000, 1)
    world.flush()
    world.run(lambda: 0 in world.finished)
    world.settle()
    freeze(world.server, world.server_now)
    thaw(world.server, world.server_now)
    world.server.close()
    with pytest.raises(MigrationError, match="not open"):
        freeze(world.server, world.server_now)


def test_moves_that_the_client_cannot_hear_end_before_it_could_not_decode_any_more() -> None:
    """aioquic writes packet numbers in two bytes (RFC 9000 §17.1)."""
    world = World()
    world.connect()
    world.settle()
    hops = 0
    with pytest.raises(MigrationError, match="left out"):
        while hops < 100:
            world.hop()
            hops += 1
    assert 30 < hops < 64
    assert world.server is not None and not is_frozen(world.server)
    stream = world.get(1000, 1)
    world.flush()
    world.run(lambda: stream in world.finished, limit_s=1.0)
    world.settle()
    world.hop()  # there was an acknowledgement
    stream = world.get(1000, 2)
    world.flush()
    world.run(lambda: stream in world.finished, limit_s=1.0)


def test_failed_moves_that_the_client_cannot_hear_end_as_well() -> None:
    world = World()
    world.connect()
    world.settle()
    source = world.server
    assert source is not None
    aborts = 0
    with pytest.raises(MigrationError, match="left out"):
        while aborts < 100:
            freeze(source, world.server_now)
            thaw(source, world.server_now)
            aborts += 1
    assert aborts == 5
    stream = world.get(1000, 1)
    world.flush()
    world.run(lambda: stream in world.finished, limit_s=1.0)


def test_a_server_that_only_acknowledges_can_be_moved() -> None:
    """In a long upload, nothing of what the server sends is acknowledged."""
    world = World()
    world.connect()
    world.settle()
    source = world.server
    assert source is not None
    for _ in range(40):
        source._packet_number += 1000  # as many acknowledgements more
        world.client.send_stream_data(0, b"x" * 100)
        world.flush()
        world.settle(0.1)
    assert source._packet_number - source._spaces[tls.Epoch.ONE_RTT].largest_acked_packet > 39_000
    world.hop()
    stream = world.get(1000, 1)
    world.flush()
    world.run(lambda: stream in world.finished, limit_s=1.0)


def test_no_secret_is_shown_by_any_representation(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    world = busy()
    assert world.server is not None
    keys = world.server._cryptos[tls.Epoch.ONE_RTT]
    secrets = [keys.send.secret, keys.recv.secret]
    freeze(world.server, world.server_now)
    data = take_snapshot(world.server, world.server_now, epoch=1)
    opened = snapshot._open_up(snapshot._SNAPSHOT_MAGIC, data, snapshot._snapshot_decoder)
    restored = restore(world, data)
    shown = [repr(opened), repr(opened.connection), repr(opened.connection.keys), repr(restored)]
    shown += [repr(snapshot.unpack_bundle(snapshot.pack_bundle(1, [data], b""))), caplog.text]
    for secret in secrets:
        assert secret is not None
        for text in shown:
            assert repr(secret)[2:-1] not in text
            assert secret.hex() not in text
    assert opened.connection.keys.__rich_repr__() == []
