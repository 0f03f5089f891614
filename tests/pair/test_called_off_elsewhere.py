"""A move is called off where the client does not look for its server, by one that knows no address."""

from __future__ import annotations

import pytest

from quicferry.quic import PathSwitched
from quicferry.quic.errors import LocalError
from quicferry.quic.snapshot import thaw
from quicferry.strategies import RULES, Strategy
from simulation.protocol.mover import forked

from .harness import EDGE_1, EDGE_2, Pair, edge
from .test_relays import Relay


def call_off(pair: Pair, strategy: Strategy, epoch: int, *, frozen_s: float | None) -> None:
    """Announces a move to a third place and takes it back, before or after the freeze."""
    addresses = [edge(3)] if RULES[strategy].carries_address else []
    pair.server.prepare_migration(epoch, strategy, addresses, 50, False, pair.now)
    pair.flush()
    if frozen_s is not None:
        source, at = pair.server, pair.server_at
        pair.freeze()
        pair.drive(limit_s=frozen_s)
        pair.server, pair.server_at = source, at
        if pair.hand_off:
            thaw(source, pair.now)
            pair._snapshot = b""
    pair.server.abort_migration(epoch, "operator", pair.now)
    pair.flush()


@pytest.mark.parametrize("hand_off", [False, True])
@pytest.mark.parametrize("frozen_s", [None, 0.0, 0.05])
@pytest.mark.parametrize("strategy", [Strategy.PROACTIVE_EXPLICIT, Strategy.SYMMETRIC])
def test_a_client_that_has_not_heard_of_the_move_before_follows_that(strategy, frozen_s, hand_off):
    #: wire-format 7.1: it MUST send SM_MIGRATED of the epoch
    pair = Pair(hand_off=hand_off)
    pair.handshake(settle_s=1.2)
    pair.load(0.010, until=pair.now + 1.0)
    pair.drive(limit_s=0.2)
    pair.move(Strategy.SYMMETRIC, downtime_s=0.05)
    assert pair.drive(lambda: pair.server_at == EDGE_2, limit_s=1.0)
    pair.server.record_commit()
    pair.drive(limit_s=0.003)  # SM_MIGRATED is on its way
    call_off(pair, strategy, 2, frozen_s=frozen_s)
    pair.drive(limit_s=0.003)
    call_off(pair, strategy, 3, frozen_s=frozen_s)  # and again, before the client can have heard the first
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=3.0)
    assert pair.drive(pair.answered, limit_s=5.0)
    assert [event.new for event in pair.all(PathSwitched)] == [EDGE_2]
    pair.drive(limit_s=1.0)
    assert pair.client.migration_state == "idle"
    pair.assert_open()


@pytest.mark.parametrize("hand_off", [False, True])
def test_a_client_goes_where_a_source_goes_on_that_it_knows_by_its_challenges_alone(hand_off):
    """The move back to where the client is has served and is taken down; the way there was never finished."""
    pair = Pair(hand_off=hand_off)
    pair.handshake(settle_s=1.2)
    pair.move(Strategy.SYMMETRIC, downtime_s=0.05)
    assert pair.drive(lambda: pair.server_at == EDGE_2, limit_s=1.0)
    pair.server.record_commit()
    pair.flush()
    pair.server.prepare_migration(2, Strategy.SYMMETRIC, [], 50, True, pair.now)
    pair.server.hold()
    source = pair.server if hand_off else forked(pair.server)
    pair.freeze(EDGE_1)
    pair.drive(limit_s=0.05)
    pair.resume(2, Strategy.SYMMETRIC, EDGE_1, True)
    pair.drive(limit_s=1.0)
    assert pair.all(PathSwitched) == []
    pair.go_on(source, EDGE_2, 2, thawed=hand_off)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=3.0)
    request = pair.request()
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)
    pair.assert_open()


@pytest.mark.parametrize("relayed", [False, True])
@pytest.mark.parametrize("strategy", [Strategy.PROACTIVE_EXPLICIT, Strategy.SYMMETRIC])
def test_a_client_goes_on_following_the_move_before_when_the_next_is_called_off(strategy, relayed):
    """It has acknowledged SM_MIGRATED by the old path: SM_ABORT is alone, and may first come by a relay."""
    #: wire-format 7.1: it MUST send SM_MIGRATED of the epoch
    pair = Pair()
    pair.handshake(settle_s=1.2)
    pair.load(0.010, until=pair.now + 1.5)
    pair.drive(limit_s=0.2)
    blocked = [True]  # the way from the client to the new place: its challenges are lost for a while
    pair.network.drop = lambda data, address, direction: (
        blocked[0] and direction == "up" and address == EDGE_2
    )
    pair.move(Strategy.SYMMETRIC, downtime_s=0.05)
    assert pair.drive(lambda: pair.server_at == EDGE_2, limit_s=1.0)
    pair.server.record_commit()
    assert pair.drive(lambda: not pair.server._role._word, limit_s=1.0)
    assert not pair.switched_to(EDGE_2)
    relay = Relay(pair) if relayed else None
    call_off(pair, strategy, 2, frozen_s=None)
    pair.drive(limit_s=0.03)
    blocked[0] = False
    if relay is not None:
        relay.running = False
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=1.0)
    assert pair.drive(pair.answered, limit_s=5.0)
    assert [event.new for event in pair.all(PathSwitched)] == [EDGE_2]
    pair.assert_open()


@pytest.mark.parametrize("client", ["stock", "default"])
def test_a_move_of_which_the_client_could_not_be_told_is_called_off(client):
    """The connection has moved before: a server with many clients calls the move off for all of them."""
    pair = Pair(client=client)
    pair.handshake(settle_s=1.2)
    pair.server.hold()
    pair.server.resume(1, Strategy.SYMMETRIC, True, pair.now)
    request = pair.request()
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)
    call_off(pair, Strategy.POOL, 2, frozen_s=None)  # not negotiated, or without a pool
    again = pair.request()
    assert pair.drive(lambda: again.answered_at is not None, limit_s=2.0)
    with pytest.raises(LocalError, match="abort in the state"):
        pair.server.abort_migration(1, "operator", pair.now)
    pair.assert_open()


@pytest.mark.parametrize("frozen_s", [None, 0.05])
def test_a_relay_of_a_called_off_move_draws_nobody(frozen_s):
    """The server has never moved, so no SM_MIGRATED stands before its SM_ABORT."""
    pair = Pair()
    pair.handshake(settle_s=1.2)
    relay = Relay(pair)
    pair.load(0.010, until=pair.now + 2.0)
    pair.drive(limit_s=0.3)
    call_off(pair, Strategy.SYMMETRIC, 1, frozen_s=frozen_s)
    pair.drive(limit_s=1.0)
    relay.running = False
    assert pair.drive(pair.answered, limit_s=5.0)
    assert pair.all(PathSwitched) == [] and pair.server_at == EDGE_1
