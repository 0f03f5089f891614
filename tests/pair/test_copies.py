"""Connections that are copied ahead: what is taken or refreshed is what a snapshot would have made."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from aioquic.quic.connection import QuicConnection

from quicferry.errors import MigrationError
from quicferry.quic import ExtensionConfig, MigratableConnection
from quicferry.quic._aioquic.state_capture import capture
from quicferry.quic.copies import (
    Copy,
    ack_fresh_until,
    changes,
    copy_connection,
    is_at_rest,
    next_number,
)
from quicferry.quic.snapshot import freeze, restore_snapshot, take_snapshot, thaw
from tests.snapshot_support import World, pattern, watched_nonces

EPOCH = 1000
BUILD = functools.partial(MigratableConnection, extension=ExtensionConfig())
COPIED_S, FROZEN_S, MADE_S, TAKEN_S = 0.0, 0.75, 9000.0, 9002.0  # the first two after the source's now


def extended_world(seed: int, **other: Any) -> World:
    client: Any = functools.partial(MigratableConnection, extension=ExtensionConfig())
    return World(seed=seed, build=BUILD, client_class=client, **other)


def seen(connection: QuicConnection, now: float) -> Any:
    """All that a snapshot would say of it, with times to the microsecond."""
    return rounded(msgspec.to_builtins(capture(connection, now, frozen=False), builtin_types=(bytes,)))


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list | tuple) else value


def make(world: World, data: bytes, now: float) -> Copy:
    return Copy(data, configuration=world.configuration, build=world.build, now=now, epoch=EPOCH)


def frozen(world: World, now: float) -> bytes:
    source = world.server
    assert source is not None
    if isinstance(source, MigratableConnection):
        source.hold()
    freeze(source, now)
    return take_snapshot(source, now, epoch=EPOCH)


def restored(world: World, data: bytes) -> QuicConnection:
    return restore_snapshot(data, configuration=world.configuration, build=world.build, now=TAKEN_S)


@pytest.mark.parametrize("congestion", ["reno", "cubic"])
@pytest.mark.parametrize("downloads", [0, 3])
def test_a_connection_at_rest_is_taken_as_its_snapshot_would_be_restored(
    congestion: str, downloads: int
) -> None:
    world = extended_world(4, server_options={"congestion_control_algorithm": congestion})
    world.connect()
    for number in range(downloads):
        world.get(20_000, number)
    world.flush()
    world.settle(3.0)
    source = world.server
    assert source is not None and is_at_rest(source)
    now = world.server_now
    data = copy_connection(source, now + COPIED_S, epoch=EPOCH)
    assert data is not None
    before, number = changes(source), next_number(source)
    copy = make(world, data, MADE_S)
    assert changes(source) == before
    snapshot = frozen(world, now + FROZEN_S)
    taken = copy.take(TAKEN_S, age_s=FROZEN_S - COPIED_S, number=number)
    assert seen(taken, TAKEN_S) == seen(restored(world, snapshot), TAKEN_S)


def test_nothing_leaves_a_copy_before_it_has_resumed() -> None:
    world = extended_world(5)
    world.connect()
    world.get(100, 1)
    world.flush()
    world.settle(3.0)
    source = world.server
    assert source is not None
    data = copy_connection(source, world.server_now, epoch=EPOCH)
    assert data is not None
    taken = make(world, data, MADE_S).take(TAKEN_S, age_s=1.0, number=next_number(source))
    taken.send_ping(1)
    assert taken.datagrams_to_send(TAKEN_S) == []
    assert taken.get_timer() is None


def test_a_copy_with_another_packet_number_is_refused() -> None:
    world = extended_world(6)
    world.connect()
    world.settle(3.0)
    assert world.server is not None
    data = copy_connection(world.server, world.server_now, epoch=EPOCH)
    assert data is not None
    with pytest.raises(MigrationError, match="packet number"):
        make(world, data, MADE_S).take(TAKEN_S, age_s=0.0, number=next_number(world.server) + 1)


def test_a_copy_of_another_move_is_refused() -> None:
    world = extended_world(7)
    world.connect()
    assert world.server is not None
    data = copy_connection(world.server, world.server_now, epoch=EPOCH - 1)
    assert data is not None
    with pytest.raises(MigrationError, match="belongs to move"):
        make(world, data, MADE_S)


def test_what_is_on_its_way_is_not_at_rest() -> None:
    world = extended_world(8)
    world.connect()
    world.settle(3.0)
    source = world.server
    assert source is not None and is_at_rest(source)
    source.send_ping(1)
    source.datagrams_to_send(world.server_now)
    assert not is_at_rest(source)


CALLS: list[Callable[[Any, float], object]] = [
    lambda it, now: it.send_stream_data(0, b"more"),
    lambda it, now: it.send_datagram_frame(b"x"),
    lambda it, now: it.send_ping(5),
    lambda it, now: it.reset_stream(0, 1),
    lambda it, now: it.stop_stream(0, 1),
    lambda it, now: it.request_key_update(),
    lambda it, now: it.change_connection_id(),
    lambda it, now: it.close(),
    lambda it, now: it.receive_datagram(b"\x40" + bytes(40), ("10.0.0.2", 1), now),
    lambda it, now: it.datagrams_to_send(now),
    lambda it, now: it.handle_timer(now),
    lambda it, now: it.offer_addresses([("10.0.0.9", 4433)], now),
    lambda it, now: it.prepare_migration(1, "symmetric", [], 10.0, False, now),
    lambda it, now: it.hold(),
]


@pytest.mark.parametrize("call", range(len(CALLS)))
def test_every_call_that_may_change_a_connection_counts(call: int) -> None:
    world = extended_world(9)
    world.connect()
    world.client.send_stream_data(world.client.get_next_available_stream_id(), b"half a request")
    world.flush()
    world.run(lambda: world.delivered > 12)
    source = world.server
    assert source is not None
    before = changes(source)
    assert before is not None
    CALLS[call](source, world.server_now)
    after = changes(source)
    assert after is not None and after > before


@pytest.mark.parametrize("seed", range(30))
def test_a_random_life_with_copies(seed: int) -> None:
    """At any moment: a copy that counts as unchanged is exact, and one that is not is brought up to date."""
    rng = random.Random(seed)
    options = {"congestion_control_algorithm": rng.choice(["reno", "cubic"])}
    make_world = extended_world if rng.random() < 0.7 else functools.partial(World)
    with watched_nonces() as nonces:
        world = make_world(seed=seed, loss=rng.choice([0.0, 0.05]), server_options=options)
        world.connect()
        expected: dict[int, bytes] = {}
        copy, known = None, (None, 0.0, 0)
        for step in range(30):
            source = world.server
            assert source is not None
            what = rng.choice(["get", "get", "copy", "copy", "look", "look", "key", "wait", "ping"])
            if what == "get":
                size = rng.choice([1, 500, 20_000])
                expected[world.get(size, step)] = pattern(size, step)
            elif what == "copy":
                now = world.server_now
                data = copy_connection(source, now, epoch=EPOCH)
                if data is not None:
                    if copy is None:
                        copy = make(world, data, MADE_S)
                    else:
                        copy.update(data, MADE_S)
                    known = changes(source) if is_at_rest(source) else None, now, next_number(source)
            elif what == "look" and copy is not None:
                now = world.server_now
                unchanged = known[0] is not None and known[0] == changes(source)
                owes_ack = now < ack_fresh_until(source)
                snapshot = frozen(world, now)
                reference = seen(restored(world, snapshot), TAKEN_S)
                if unchanged:
                    taken = copy.take(TAKEN_S, age_s=now - known[1], number=known[2], owes_ack=owes_ack)
                else:
                    taken = copy.refresh(snapshot, TAKEN_S)
                assert seen(taken, TAKEN_S) == reference
                copy, known = None, (None, 0.0, 0)
                thaw(source, now)
                if isinstance(source, MigratableConnection):
                    source.abort_migration(step + 1, "unspecified", now)
            elif what == "key" and world.loss == 0.0:
                world.settle()
                source.request_key_update()
                source.send_ping(step)
                world.flush()
                world.settle()
            elif what == "wait":
                world.settle(rng.choice([0.05, 2.0]))
            else:
                source.send_ping(step)
            world.flush()
            target, until = world.delivered + rng.randrange(40), world.now + 0.2
            while world.delivered < target and world.now < until:
                world.step(until)
        world.run(lambda: expected.keys() <= world.finished)
    assert {stream: world.answers[stream] for stream in expected} == expected
    assert nonces.repeated == []
