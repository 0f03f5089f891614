"""The move as the hand-off engine makes it: a snapshot crosses, with every strategy, over and over."""

from __future__ import annotations

import pytest

from quicferry.quic import MigrationCommitted
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, speaks_first

from .harness import EDGE_1, EDGE_2, RTT_S, Network, Pair


@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_a_snapshot_goes_on_at_the_new_address(strategy, server_first):
    pair = Pair(hand_off=True)
    pair.handshake()
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
    pair.load(0.010, until=pair.now + 1.0)
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=0.005, server_first=server_first)
    pair.drive(limit_s=3.0)
    assert pair.switched_to(EDGE_2)
    assert pair.answered()
    assert pair.first(MigrationCommitted, side="server") is not None
    pair.assert_open()
    if speaks_first(strategy, server_first):
        assert pair.first_answer_after_move() - pair.resumed_at <= RTT_S / 2 + 0.0035


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_snapshots_of_snapshots_under_loss(strategy):
    pair = Pair(hand_off=True, network=Network(loss=0.03, jitter_s=0.003), seed=5)
    pair.handshake(settle_s=1.0)
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_1, EDGE_2], pair.now)
        pair.drive(limit_s=0.3)
    pair.response_size = 20_000
    for epoch in range(1, 11):
        to = EDGE_2 if epoch % 2 else EDGE_1
        pair.validated = {pair.server_at}
        pair.client_events.clear()
        pair.server_events.clear()
        pair.load(0.020, until=pair.now + 0.5)
        pair.move(strategy, to=to, epoch=epoch, downtime_s=0.01, server_first=epoch % 2 == 0)
        assert pair.drive(lambda to=to: pair.switched_to(to), limit_s=5.0), epoch
        assert pair.drive(pair.answered, limit_s=10.0), epoch
        pair.drive(limit_s=1.0)
    pair.assert_open()
    assert len(pair.server._host_cids) == 8 and len(pair.client._network_paths) == 1
