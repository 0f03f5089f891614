"""A server's connections that cross ahead of the freeze: the rounds, and what is left for the freeze."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import msgspec
import pytest
from aioquic.quic.connection import QuicConnection

from apps.server.connections import ConnectionTable
from apps.server.copies import Copied, CopiesIn, CopiesOut
from quicferry.errors import MigrationError
from quicferry.quic import ExtensionConfig, MigratableConnection
from quicferry.quic.snapshot import freeze, take_snapshot
from quicferry.strategies import Strategy
from quicferry.units import now_s
from tests.snapshot_support import World

EPOCH = 3
EXTENSION = ExtensionConfig()
BUILD = functools.partial(MigratableConnection, extension=EXTENSION)


def settled(seed: int) -> World:
    client: Any = functools.partial(MigratableConnection, extension=EXTENSION)
    world = World(seed=seed, build=BUILD, client_class=client)
    world.connect()
    world.get(500, seed)
    world.flush()
    world.settle(3.0)
    return world


def table(world: World) -> ConnectionTable:
    port: Any = None  # nothing is sent in these tests
    return ConnectionTable(port, world.configuration, EXTENSION, lambda p, e: None, lambda p: None)


class Both:
    """The tables of source and destination, and some connections at the source."""

    def __init__(self, clients: int) -> None:
        self.worlds = [settled(seed) for seed in range(1, clients + 1)]
        self.source, self.destination = table(self.worlds[0]), table(self.worlds[0])
        for number, world in enumerate(self.worlds, 1):
            connection = world.server
            assert isinstance(connection, MigratableConnection)
            self.source.adopt(connection, {connection.host_cid}, str(number))
        self.out = CopiesOut(self.source, EPOCH)
        self.ahead = CopiesIn(self.destination, BUILD, [], EPOCH)

    def cross(self, round_: int) -> list[str]:
        """One round; the keys of what was copied."""

        async def play() -> list[Copied]:
            copied: list[Copied] = []
            while some := await self.out.copy_some(round_):
                copied += some
            await self.ahead.take_in(copied)
            return copied

        return [each.key for each in asyncio.run(play())]

    def connection(self, key: str) -> MigratableConnection:
        return self.source.peers[key].connection

    def snapshot(self, key: str) -> bytes:
        self.connection(key).hold()
        freeze(self.connection(key), now_s())
        return take_snapshot(self.connection(key), now_s(), epoch=EPOCH)


def resumed(connection: QuicConnection) -> list[bytes]:
    assert isinstance(connection, MigratableConnection)
    connection.resume(EPOCH, Strategy.SYMMETRIC, True, now_s())
    return [data for data, _ in connection.datagrams_to_send(now_s())]


def test_each_connection_crosses_once_as_long_as_nothing_changes() -> None:
    both = Both(3)
    assert both.cross(1) == ["1", "2", "3"]
    assert both.cross(2) == []
    assert set(both.out.unchanged(now_s())) == {"1", "2", "3"}


def test_what_has_changed_crosses_in_the_next_round() -> None:
    both = Both(3)
    both.cross(1)
    both.connection("2").send_ping(1)
    assert both.cross(2) == ["2"]
    # a packet is on its way: the copy is good for no more than to be brought up to date
    both.connection("2").datagrams_to_send(now_s())
    assert set(both.out.unchanged(now_s())) == {"1", "3"}


def test_a_connection_that_has_gone_is_not_among_the_unchanged() -> None:
    both = Both(2)
    both.cross(1)
    both.source.remove(both.source.peers["1"])
    assert set(both.out.unchanged(now_s())) == {"2"}


def test_taken_and_restored_connections_both_speak() -> None:
    both = Both(2)
    both.cross(1)
    both.connection("2").send_ping(1)
    unchanged = both.out.unchanged(now_s())
    taken = both.ahead.taken(unchanged["1"], now_s())
    restored = both.ahead.restored("2", both.snapshot("2"))
    both.destination.admit([taken, restored], both.ahead.routes())
    assert set(both.destination.peers) == {"1", "2"}
    for peer in (taken, restored):
        assert peer.connection_ids
        peer.awaken()
        assert resumed(peer.connection)


def test_the_times_of_what_was_taken_are_those_of_the_import_however_late_it_wakes() -> None:
    both = Both(1)
    both.cross(1)
    unchanged = both.out.unchanged(now_s())["1"]
    taken = both.ahead.taken(unchanged, now_s() + 100.0)
    before_s = taken.connection._close_at
    assert before_s is not None
    taken.awaken()
    after_s = taken.connection._close_at
    assert after_s is not None and 99.0 < after_s - before_s < 101.0
    taken.awaken()
    assert taken.connection._close_at == after_s


def test_a_copy_with_another_packet_number_is_refused_before_anything_wakes() -> None:
    both = Both(1)
    both.cross(1)
    unchanged = both.out.unchanged(now_s())["1"]
    with pytest.raises(MigrationError, match="packet number"):
        both.ahead.taken(msgspec.structs.replace(unchanged, number=unchanged.number + 1), now_s())


def test_a_connection_that_came_after_the_copies_is_restored_all_the_same() -> None:
    both = Both(1)
    peer = both.ahead.restored("1", both.snapshot("1"))
    assert resumed(peer.connection)


def test_what_was_never_copied_cannot_be_taken() -> None:
    both = Both(1)
    asyncio.run(both.out.copy_some(1))  # and does not arrive
    with pytest.raises(MigrationError, match="no copy of it"):
        both.ahead.taken(both.out.unchanged(now_s())["1"], now_s())
