"""The hand-off with the extension: each strategy moves between two objects that share nothing but bytes."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic.connection import QuicConnection

from quicferry.errors import MigrationError
from quicferry.quic import (
    Address,
    ClientState,
    ExtensionConfig,
    MigratableConnection,
    MigrationAborted,
    MigrationCommitted,
    ServerState,
)
from quicferry.quic._aioquic import state_fields
from quicferry.quic.snapshot import freeze, restore_snapshot, take_snapshot, thaw
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, Strategy
from tests.snapshot_support import World, pattern, watched_nonces

from .harness import EDGE_1, EDGE_2, Network, Pair, preferred_in

DOWNTIME_S = 0.06


class HandOffPair(Pair):
    """A pair whose server is moved by snapshot; between freeze and resume there is no server object."""

    data = b""
    source: Any = None

    def freeze(self, to: Address = EDGE_2, *, forwarding: bool = False, waiting_room: bool = False) -> None:
        super().freeze(to, forwarding=forwarding, waiting_room=waiting_room)
        self.source, self.server = self.server, None
        freeze(self.source, self.now)
        self.data = take_snapshot(self.source, self.now, epoch=1)

    def resume(self, epoch: int, strategy: Strategy, to: Address, speak_first: bool) -> None:
        self.server = restore_snapshot(
            self.data,
            configuration=self._server_configuration,
            build=functools.partial(MigratableConnection, extension=ExtensionConfig()),
            now=self.now,
        )
        super().resume(epoch, strategy, to, speak_first)


def ready(strategy: Strategy, **keywords: Any) -> HandOffPair:
    pair = HandOffPair(preferred=preferred_in(strategy), **keywords)
    pair.handshake()
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_1, EDGE_2], pair.now)
        pair.drive(limit_s=0.2)
    return pair


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_every_strategy_hands_a_connection_over(strategy: Strategy, server_first: bool, loss: float) -> None:
    with watched_nonces() as nonces:
        pair = ready(strategy, network=Network(jitter_s=0.004 if loss else 0.0), seed=3)
        pair.network.loss = loss
        pair.load(0.010, until=pair.now + DOWNTIME_S + 1.0)
        pair.drive(limit_s=0.3)
        pair.move(strategy, downtime_s=DOWNTIME_S, server_first=server_first)
        pair.drive(limit_s=6.0)
    assert pair.switched_to(EDGE_2)
    assert pair.answered()
    assert pair.first(MigrationCommitted, side="server") is not None
    assert pair.client.migration_state == ClientState.IDLE
    pair.assert_open()
    assert nonces.repeated == []


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_ten_moves_to_and_fro_with_a_request_always_open(strategy: Strategy) -> None:
    with watched_nonces() as nonces:
        pair = ready(strategy, network=Network(loss=0.02, jitter_s=0.002), seed=8)
        pair.load(0.010, until=pair.now + 16.0)
        for epoch in range(1, 11):
            pair.drive(limit_s=1.3)
            to = EDGE_2 if epoch % 2 else EDGE_1
            pair.move(strategy, to=to, downtime_s=DOWNTIME_S, server_first=True, epoch=epoch)
            committed = pair.drive(
                lambda epoch=epoch: MigrationCommitted(epoch) in [e for _, e in pair.server_events]
            )
            assert committed, f"move {epoch} was not committed"
        pair.drive(pair.answered, limit_s=20.0)
    assert pair.answered()
    assert len(pair.requests) > 1000
    assert pair.server_at == EDGE_1
    assert nonces.repeated == []


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_after_a_proven_abort_the_source_goes_on_and_the_client_is_told(strategy: Strategy) -> None:
    with watched_nonces() as nonces:
        pair = ready(strategy)
        pair.load(0.010, until=pair.now + 2.0)
        pair.drive(limit_s=0.3)
        pair.resume = lambda *_: None  # type: ignore[method-assign]  # the destination never comes up
        pair.move(strategy, downtime_s=DOWNTIME_S)
        pair.drive(lambda: pair.server is None)
        pair.drive(limit_s=0.1)
        thaw(pair.source, pair.now)
        pair.server, pair.server_at = pair.source, EDGE_1
        pair.server.abort_migration(1, "transfer failed", pair.now)
        pair.drive(pair.answered, limit_s=5.0)
        pair.drive(limit_s=3.0)
    assert pair.answered()
    assert not pair.switched_to(EDGE_2)
    if RULES[strategy].notice:
        assert pair.first(MigrationAborted) is not None
    assert pair.server.migration_state == ServerState.IDLE
    pair.assert_open()
    assert nonces.repeated == []


def test_frames_of_the_extension_that_were_in_flight_are_sent_by_the_destination() -> None:
    pair = ready(Strategy.PROACTIVE_EXPLICIT)
    pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 50.0, False, pair.now)
    assert pair.server.datagrams_to_send(pair.now)  # lost: it carried SM_ADDRESS and SM_PREPARE
    assert pair.server.extension_state()["control"] == []
    freeze(pair.server, pair.now)
    assert len(pair.server.extension_state()["control"]) == 2


def test_the_extension_state_is_the_same_on_the_other_side() -> None:
    pair = ready(Strategy.POOL)
    pair.server.prepare_migration(4, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 50.0, False, pair.now)
    pair.drive(limit_s=0.2)
    pair.freeze()
    before = pair.source.extension_state()
    restored = restore_snapshot(
        pair.data,
        configuration=pair._server_configuration,
        build=functools.partial(MigratableConnection, extension=ExtensionConfig()),
        now=pair.now + 777.0,
    )
    assert isinstance(restored, MigratableConnection)
    assert restored.extension_state() == before
    assert restored.migration_state == ServerState.FROZEN
    assert restored.negotiated == pair.source.negotiated


#: attributes of the server's role: in its dump under this name, or None when it is made anew
ROLE_FIELDS: dict[str, str | None] = {
    "_announced": None,  # the connection IDs for them were given
    "_answer": "answer",
    "_challenges": None,  # the client repeats what is not answered
    "_cid_before_move": "cid_before_move",
    "_config": None,
    "_control": "control",
    "_epoch": "epoch",
    "_frozen_number": "frozen_number",
    "_here": None,  # where the connection is resumed is told anew
    "_machine": "state",
    "_naming": None,  # NAMING_FIELDS
    "_path_before": "path_before",
    "_seam": None,
    "_probation": None,  # the destination has its own
    "_rechallenges": None,  # where the connection is resumed, it challenges at once
    "_speaks_at": None,  # a new wait begins where the connection is resumed
    "_standard": "standard",
    "_strategy": "strategy",
    "_word": "word",
    "_word_again_at": None,  # a new wait begins where the connection is resumed
    "asked": "asked",
    "held": "held",
    "max_addresses": "max_addresses",
    "mute": "mute",
    "negotiated": "negotiated",
    "passive": None,  # made anew from the state with each receipt
}

NAMING_FIELDS: dict[str, str | None] = {
    "_most_known": None,  # of the configuration
    "_named": "named",
    "_next_sequence": "next_sequence",
    "_pool_named_at": None,  # by the clock of one host; the next names the pool again
    "_seam": None,
    "_send": None,
    "_send_once": None,
    "_unconfirmed": "unconfirmed",
    "is_due": None,  # always, where the connection is resumed
    "offered": "offered",
}


def test_every_field_of_the_extension_has_a_fate() -> None:
    pair = ready(Strategy.POOL)
    pair.load(0.010, until=pair.now + 0.1)
    pair.drive(limit_s=0.2)
    server = pair.server
    # links to the role, which is made anew, what lives only while a datagram is handled, and what the short
    # way of a packet has looked up, which the next datagram looks up again
    # and how often it was touched here, which the next host counts anew
    known = {"_role", "_ferry", "_ferry_receipt", "_came_to", "_quiet", "change_count"}
    assert set(vars(server)) - set(state_fields.FATES["QuicConnection"]) <= known
    assert set(vars(server._role)) == set(ROLE_FIELDS)
    assert set(vars(server._role._naming)) == set(NAMING_FIELDS)
    moved = {name for fields in (ROLE_FIELDS, NAMING_FIELDS) for name in fields.values() if name}
    assert moved | {"version"} == set(server.extension_state())


def test_a_connection_made_without_the_extension_moves_as_well() -> None:
    world = World(build=MigratableConnection)
    world.connect()
    world.get(100_000, 1)
    world.flush()
    world.run(lambda: world.delivered > 40)
    world.hop(downtime_s=0.01)
    world.run(lambda: 0 in world.finished)
    assert world.answers[0] == pattern(100_000, 1)


def test_a_client_without_the_extension_is_served_on_by_a_server_that_has_it() -> None:
    build = functools.partial(MigratableConnection, extension=ExtensionConfig())
    world = World(build=build)
    world.connect()
    world.get(100_000, 1)
    world.flush()
    world.run(lambda: world.delivered > 40)
    world.hop(downtime_s=0.01)
    world.run(lambda: 0 in world.finished)
    assert world.answers[0] == pattern(100_000, 1)


@pytest.mark.parametrize("here", [None, ExtensionConfig()])
def test_source_and_destination_both_have_the_extension_or_neither(here: ExtensionConfig | None) -> None:
    there = ExtensionConfig() if here is None else None
    world = World(build=functools.partial(MigratableConnection, extension=there))
    world.connect()
    world.settle()
    assert world.server is not None
    freeze(world.server, world.server_now)
    data = take_snapshot(world.server, world.server_now, epoch=1)
    builds: list[Any] = [functools.partial(MigratableConnection, extension=here)]
    if here is None:
        builds.append(QuicConnection)
    for build in builds:
        with pytest.raises(MigrationError, match="extension"):
            restore_snapshot(data, configuration=world.configuration, build=build, now=5.0)


def test_extension_state_of_another_version_is_a_migration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ready(Strategy.SYMMETRIC)
    pair.freeze()
    monkeypatch.setattr("quicferry.quic.server._STATE_VERSION", 99)
    with pytest.raises(MigrationError, match="extension"):
        pair.resume(1, Strategy.SYMMETRIC, EDGE_2, False)


def test_the_key_phase_stays_when_the_server_moves() -> None:
    """The destination sends on with the keys of the source (docs/adr/0005-hand-off-format.md)."""
    pair = ready(Strategy.SYMMETRIC)
    phase = pair.server._cryptos[tls.Epoch.ONE_RTT].send.key_phase
    pair.load(0.010, until=pair.now + 0.5)
    pair.move(Strategy.SYMMETRIC, downtime_s=DOWNTIME_S)
    pair.drive(limit_s=1.0)
    assert pair.answered()
    assert pair.server._cryptos[tls.Epoch.ONE_RTT].send.key_phase == phase
