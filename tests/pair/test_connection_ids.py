"""Connection IDs: a race, a pool, a move that is called off leave one; few are enough (RFC 9000 §5.1)."""

from __future__ import annotations

import pytest

from quicferry.strategies import RULES, Strategy

from .harness import EDGE_2, Address, Pair, edge

RELAY: Address = ("10.0.66.2", 4433)


@pytest.mark.parametrize("pool", [5, 6, 7])
def test_a_race_never_takes_the_last_connection_id(pool):
    """All of the pool is dead; the server comes back where nobody has named it."""
    #: RFC 9000 5.1.1: SHOULD ensure that its peer has a sufficient number
    #: RFC 9000 5.1.1: SHOULD ensure that the pool of connection IDs
    #: RFC 9000 9.5: SHOULD provide new connection IDs before peers migrate
    pair = Pair(hand_off=True)
    pair.handshake()
    pair.server.offer_addresses([edge(n) for n in range(2, 2 + pool)], pair.now)
    pair.drive(limit_s=1.0)
    pair.load(0.010, until=pair.now + 1.5)
    pair.drive(limit_s=0.2)
    pair.move(Strategy.SYMMETRIC, to=edge(9), downtime_s=0.3, forwarding=False)
    assert pair.drive(lambda: pair.switched_to(edge(9)), limit_s=2.0)
    assert pair.drive(pair.answered, limit_s=5.0)


def test_a_client_that_holds_few_connection_ids_is_told_few_addresses(monkeypatch):
    #: RFC 9000 5.1.1: MUST NOT provide more connection IDs than the peer's limit
    make = Pair._make

    def made(configuration, extension, **keywords):
        connection = make(configuration, extension, **keywords)
        connection._local_active_connection_id_limit = 5
        return connection

    monkeypatch.setattr(Pair, "_make", staticmethod(made))
    pair = Pair()
    pair.handshake()
    assert pair.server._role.max_addresses == pair.client._role.max_addresses == 3
    pair.server.offer_addresses([edge(n) for n in range(2, 9)], pair.now)
    pair.drive(limit_s=0.5)
    assert len(pair.client._role._book.known) == 3
    pair.assert_open()


def test_a_move_that_is_called_off_takes_no_connection_ids():
    """Six times within a round trip each, and then it is made: every time with the same ID."""
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.0)
    strategy = Strategy.PROACTIVE_EXPLICIT
    used: set[bytes] = set()
    for epoch in range(1, 7):
        pair.server.prepare_migration(epoch, strategy, [EDGE_2], 300, True, pair.now)
        pair.drive(limit_s=0.011)
        used |= {c.cid.cid for c in pair.client._role._prober.candidates.values() if c.cid is not None}
        pair.server.abort_migration(epoch, "operator", pair.now)
        pair.drive(limit_s=0.011)
    pair.load(0.010, until=pair.now + 0.5)
    pair.move(strategy, epoch=7, downtime_s=0.05)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=2.0)
    assert pair.drive(pair.answered, limit_s=5.0)
    assert len(used) == 1


@pytest.mark.parametrize("strategy", list(RULES))
def test_the_pool_is_followed_over_any_number_of_edges(strategy):
    """In any order, the place just left among them; nobody speaks first where that is not published."""
    pair = Pair(hand_off=True)
    pair.handshake()
    if RULES[strategy].pool:
        pair.server.offer_addresses([edge(2), edge(3), edge(4)], pair.now)
    pair.drive(limit_s=1.0)
    for epoch, n in enumerate((2, 1, 3, 1, 4, 2, 3, 2, 1), start=1):
        pair.validated = {pair.server_at}
        pair.load(0.010, until=pair.now + 0.4)
        pair.drive(limit_s=0.1)
        pair.move(strategy, to=edge(n), epoch=epoch, downtime_s=0.02)
        assert pair.drive(lambda n=n: pair.client._network_paths[0].addr == edge(n), limit_s=2.0), epoch
        assert pair.drive(pair.answered, limit_s=5.0), epoch
        pair.drive(limit_s=1.0)
    pair.assert_open()
