"""Every strategy, whoever speaks first, whatever is under way, one to three moves, any datagram lost.

All combinations of the other axes are played; of the datagrams that could be lost, each combination draws
a few by its own seed, so that together they cover the whole of a move.
"""

from __future__ import annotations

import random

import pytest

from quicferry.quic.snapshot import thaw
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, Strategy

from .harness import EDGE_1, Address, Pair, edge
from .traffic import KINDS, followed, life

DRAWN = 4  # lost datagrams per combination, besides the life without loss


@pytest.mark.parametrize("moves", [1, 2, 3])
@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", list(RULES))
def test_a_life_loses_nothing(strategy: Strategy, kind: str, server_first: bool, moves: int) -> None:
    draw = random.Random(f"{strategy}-{kind}-{server_first}-{moves}")
    hand_off = draw.random() < 0.5
    _, _, datagrams = life(strategy, kind, server_first=server_first, moves=moves, hand_off=hand_off)
    assert datagrams > 0
    for _ in range(DRAWN):
        life(
            strategy,
            kind,
            server_first=server_first,
            moves=moves,
            hand_off=not hand_off,
            lost=draw.randrange(datagrams),
        )


@pytest.mark.parametrize("forwarding", [False, True])
@pytest.mark.parametrize("gap_s", [0.0, 0.004, 0.012, 0.030])
@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_moves_that_follow_each_other_within_a_round_trip(strategy, gap_s, forwarding):
    """Out, on, back to where the client still is, and on: it ends where the server is."""
    for kind in KINDS:
        for server_first in (False, True):
            hurry(strategy, kind, gap_s, server_first=server_first, forwarding=forwarding)


def hurry(strategy: Strategy, kind: str, gap_s: float, *, server_first: bool, forwarding: bool) -> None:
    pair = Pair(hand_off=True, unreliable=kind == "datagrams")
    pair.handshake(settle_s=0.5)
    if RULES[strategy].pool:
        pair.server.offer_addresses([edge(2), edge(3), edge(4)], pair.now)
    pair.drive(limit_s=0.1)
    traffic = KINDS[kind](pair)
    traffic.begin(pair.now + 0.5)
    pair.drive(limit_s=0.05)
    for epoch, number in enumerate((2, 3, 1, 4), start=1):
        to = edge(number)
        pair.server_events.clear()
        pair.move(
            strategy,
            to=to,
            epoch=epoch,
            downtime_s=0.003,
            server_first=server_first,
            forwarding=forwarding,
            notice_s=0.1,
        )
        assert pair.drive(lambda to=to: pair.server_at == to, limit_s=2.0)
        pair.drive(limit_s=gap_s)
    assert pair.drive(lambda: followed(pair, to)() and traffic.complete(), limit_s=4.0), (kind, server_first)
    pair.assert_open()


@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("strategy", list(RULES))
def test_a_move_that_is_called_off_and_begun_again(strategy, held, server_first):
    """Up to five times, within a round trip or not, with any traffic, and one datagram lost."""
    draw = random.Random(f"{strategy}-{held}-{server_first}")
    for kind in KINDS:
        call_off(strategy, kind, draw, held=held, server_first=server_first)


def call_off(strategy: Strategy, kind: str, draw: random.Random, *, held: bool, server_first: bool) -> None:
    times, gap_s, lost = draw.randint(1, 5), draw.choice([0.0, 0.004, 0.02, 0.2]), draw.randrange(60)
    counted = [0]

    def drop(data: bytes, address: Address, direction: str) -> bool:
        counted[0] += 1
        return counted[0] - 1 == lost

    pair = Pair(hand_off=True, unreliable=kind == "datagrams")
    pair.handshake(settle_s=0.5)
    if RULES[strategy].pool:
        pair.server.offer_addresses([edge(2), edge(3)], pair.now)
    pair.drive(limit_s=0.1)
    pair.network.drop = drop
    traffic = KINDS[kind](pair)
    traffic.begin(pair.now + times * (gap_s + 0.05) + 0.3)
    pair.drive(limit_s=0.05)
    for epoch in range(1, times + 1):
        addresses = [edge(2)] if RULES[strategy].carries_address else []
        pair.server.prepare_migration(epoch, strategy, addresses, 50, server_first, pair.now)
        pair.drive(limit_s=draw.choice([0.0, 0.01, 0.05]))
        if held:
            source = pair.server
            pair.freeze(edge(2))
            pair.drive(limit_s=0.01)
            pair.server, pair.server_at = source, EDGE_1
            thaw(source, pair.now)
        pair.server.abort_migration(epoch, "operator", pair.now)
        pair.drive(limit_s=gap_s)
    what = (kind, times, gap_s, lost)
    assert pair.drive(traffic.complete, limit_s=6.0), what
    assert pair.client._network_paths[0].addr == EDGE_1, what
    pair.drive(limit_s=1.2)
    pair.server_events.clear()
    pair.move(strategy, to=edge(3), epoch=times + 1, downtime_s=0.02, server_first=server_first)
    assert pair.drive(followed(pair, edge(3)), limit_s=5.0), what
    assert pair.drive(traffic.complete, limit_s=5.0), what
    pair.assert_open()
