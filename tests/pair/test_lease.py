"""The packet numbers are shared out: whatever is sent, and whoever goes on, no number is used twice."""

from __future__ import annotations

import functools

import pytest

from quicferry.quic import ExtensionConfig, LocalError, MigratableConnection
from quicferry.quic.snapshot import (
    ABORT_GAP,
    freeze,
    record_commit,
    restore_snapshot,
    take_snapshot,
    thaw,
)
from quicferry.strategies import Strategy
from tests.snapshot_support import World, pattern, watched_nonces

from .harness import EDGE_1, EDGE_2, Pair

EXTENDED = functools.partial(MigratableConnection, extension=ExtensionConfig())
BUILDS = {"plain": None, "hooked": MigratableConnection, "extended": EXTENDED}


def world(build) -> World:
    made = World() if build is None else World(build=build)
    made.connect()
    made.settle()
    return made


def moved(w: World, build: str, *, speaks: bool = True):
    """Source and destination, both of which could send if nothing kept them from it."""
    source = w.server
    if build == "extended":
        source.hold()
    freeze(source, w.server_now)
    data = take_snapshot(source, w.server_now, epoch=1)
    there = restore_snapshot(data, configuration=w.configuration, build=w.build, now=w.server_now)
    if build == "extended":
        there.resume(1, Strategy.SYMMETRIC, speaks, w.server_now)
    return source, there


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("window", [10_000, 3_000_000])
def test_small_packets_that_nobody_hears_stay_within_the_lease(build, window):
    """The lease is a number of packets, whatever they weigh."""
    with watched_nonces() as nonces:
        w = world(BUILDS[build])
        stream = w.get(window, 1)
        w.flush()
        w.run(lambda: stream in w.finished)
        w.settle()
        source, there = moved(w, build)
        first = source._packet_number
        now = w.server_now
        for number in range(6000):
            there.send_datagram_frame(b"tick %d" % number)
            there.datagrams_to_send(now)
            now += 0.001
        assert there._packet_number <= first + ABORT_GAP
        thaw(source, w.server_now)
        if build == "extended":
            source.abort_migration(1, "operator", w.server_now)
        for number in range(2000):
            source.send_ping(number)
            w.flush()
            w.step(w.now + 0.002)
    assert nonces.repeated == []


@pytest.mark.parametrize("build", BUILDS)
def test_a_destination_that_is_heard_stays_within_the_lease_until_the_commit(build):
    """It serves a download, is taken down before it hears of the commit, and the source goes on."""
    #: wire-format 9: MUST NOT send another one before it knows
    with watched_nonces() as nonces:
        w = world(BUILDS[build])
        source, there = moved(w, build)
        first = source._packet_number
        w.server = there
        w.get(12_000_000, 1)
        w.flush()
        end = w.now + 0.6
        while w.now < end:
            w.step(end)
        assert first + ABORT_GAP - 200 < there._packet_number <= first + ABORT_GAP
        assert there.datagrams_to_send(w.server_now) == []
        timer = there.get_timer()
        assert timer is None or timer > w.server_now + 1.0, "it turns in a circle"
        w.server = source
        thaw(source, w.server_now)
        if build == "extended":
            source.abort_migration(1, "deadline", w.server_now)
        w.service.received.clear()
        w.take_events()
        unidirectional = source.get_next_available_stream_id(is_unidirectional=True)
        source.send_stream_data(unidirectional, pattern(500_000, 7))
        w.flush()
        end = w.now + 1.0
        while w.now < end:
            w.step(end)
        assert source._packet_number > first + ABORT_GAP
    assert nonces.repeated == []


@pytest.mark.parametrize("build", BUILDS)
def test_the_commit_frees_all_packet_numbers(build):
    with watched_nonces() as nonces:
        w = world(BUILDS[build])
        source, there = moved(w, build)
        first = source._packet_number
        w.server = there
        stream = w.get(6_000_000, 1)
        w.flush()
        end = w.now + 0.5
        while w.now < end:
            w.step(end)
        assert stream not in w.finished
        if build == "extended":
            there.record_commit()
        else:
            record_commit(there)
        w.flush()
        w.run(lambda: stream in w.finished)
        assert there._packet_number > first + ABORT_GAP
        assert w.answers[stream] == pattern(6_000_000, 1)
    assert nonces.repeated == []


def test_a_process_that_is_moved_whole_keeps_to_the_same_shares():
    """A checkpoint of the process knows no snapshot: hold, resume and abort leave the same gaps."""
    pair = Pair()
    pair.handshake(settle_s=1.0)
    server = pair.server
    server.hold()
    first = server._packet_number
    server.resume(1, Strategy.SYMMETRIC, True, pair.now)
    pair.server_at = EDGE_2
    pair.response_size = 8_000_000
    pair.request()
    pair.drive(limit_s=2.0)
    assert first + ABORT_GAP - 200 < server._packet_number <= first + ABORT_GAP
    assert not pair.answered()
    server.record_commit()
    assert pair.drive(pair.answered, limit_s=10.0)

    pair = Pair()
    pair.handshake(settle_s=1.0)
    pair.server.hold()
    first = pair.server._packet_number
    pair.server.abort_migration(1, "operator", pair.now)
    assert pair.server._packet_number == first + ABORT_GAP
    pair.request()
    assert pair.drive(pair.answered, limit_s=1.0)
    assert pair.server_at == EDGE_1


def test_connection_close_has_a_number_left():
    pair = Pair()
    pair.handshake(settle_s=1.0)
    pair.server.hold()
    first = pair.server._packet_number
    pair.server.resume(1, Strategy.SYMMETRIC, True, pair.now)
    pair.server_at = EDGE_2
    pair.response_size = 8_000_000
    pair.request()
    pair.drive(limit_s=2.0)
    pair.server.close(error_code=3)
    pair.drive(limit_s=0.1)
    assert pair.client._close_event.error_code == 3
    assert pair.server._packet_number <= first + ABORT_GAP


def test_only_a_servers_connection_hears_of_a_commit():
    pair = Pair()
    pair.handshake()
    with pytest.raises(LocalError):
        pair.client.record_commit()
