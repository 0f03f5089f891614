"""Lives of connections drawn at random: any strategy after any other, aborts, loss, jitter, duplicates.

What holds in all of them: no request is lost or doubled, nothing goes to an address that has not been
validated, the connection stays open, and nothing is left behind.
"""

from __future__ import annotations

import random

import pytest

from quicferry.quic import ServerState
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, Strategy, speaks_first

from .harness import Network, Pair, edge


def live(seed: int, moves: int) -> Pair:
    rng = random.Random(seed)
    network = Network(
        loss=rng.choice([0.0, 0.0, 0.02, 0.08]),
        duplication=rng.choice([0.0, 0.05]),
        jitter_s=rng.choice([0.0, 0.002, 0.010]),
        one_way_s={edge(n): rng.choice([0.002, 0.009, 0.060]) for n in range(1, 6)},
    )
    pair = Pair(seed=seed, network=network)
    pair.handshake(settle_s=2.0)
    pair.server.offer_addresses([edge(n) for n in range(1, 6)], pair.now)
    pair.drive(limit_s=1.0)
    pair.response_size = rng.choice([100, 5_000])
    for epoch in range(1, moves + 1):
        strategy = rng.choice(EXTENSION_STRATEGIES)
        to = edge(rng.choice([n for n in range(1, 6) if edge(n) != pair.server_at]))
        server_first = rng.random() < 0.5
        downtime_s = rng.choice([0.0, 0.005, 0.05, 0.3, 1.0])
        pair.server_events.clear()
        pair.client_events.clear()
        pair.validated = {pair.server_at}
        pair.load(rng.choice([0.010, 0.1]), until=pair.now + downtime_s + 0.5)
        pair.drive(limit_s=rng.uniform(0.0, 0.1))
        if rng.random() < 0.25:
            abort(pair, epoch, strategy, to, rng)
        else:
            pair.move(
                strategy,
                to=to,
                downtime_s=downtime_s,
                server_first=server_first,
                epoch=epoch,
                announced_s=rng.choice([0.01, 0.2, 2.0]),
                waiting_room=rng.random() < 0.5,
            )
            moved = pair.drive(lambda to=to: pair.switched_to(to), limit_s=15.0)
            if not moved and not speaks_first(strategy, server_first):
                pair.request()  # one who had nothing to ask could not notice
                moved = pair.drive(lambda to=to: pair.switched_to(to), limit_s=15.0)
            assert moved, (epoch, strategy, server_first, downtime_s)
        assert pair.drive(pair.answered, limit_s=30.0), (epoch, strategy)
        pair.drive(limit_s=1.5)
        pair.up.clear()
        pair.down.clear()
    return pair


def abort(pair: Pair, epoch: int, strategy: Strategy, to, rng: random.Random) -> None:
    addresses = [to] if RULES[strategy].carries_address else []
    pair.server.prepare_migration(epoch, strategy, addresses, 200, rng.random() < 0.5, pair.now)
    pair.drive(limit_s=rng.choice([0.0, 0.05, 0.2]))
    if rng.random() < 0.7:
        pair.server.hold()
        pair.drive(limit_s=rng.choice([0.0, 0.05, 0.5]))
    pair.server.abort_migration(epoch, "operator", pair.now)
    pair.drive(limit_s=0.5)


@pytest.mark.parametrize("first", range(0, 24, 4))
def test_a_random_life(first):
    for seed in range(first, first + 4):
        pair = live(seed, moves=8)
        pair.network.loss = pair.network.jitter_s = pair.network.duplication = 0.0
        pair.drive(limit_s=20.0)
        pair.assert_open()
        assert pair.answered(), seed
        assert pair.client.migration_state == "idle", seed
        assert pair.server.migration_state in (ServerState.IDLE, ServerState.COMMITTED), seed
        for connection in (pair.client, pair.server):
            assert len(connection._network_paths) == 1, seed
            assert len(connection._host_cids) == 8, seed
            assert len(connection._peer_cid_available) == 7, seed
            assert connection._loss.bytes_in_flight == 0, seed
        role = pair.client._role
        assert not role._prober.candidates and not role._former and not role._control
        assert not pair.server._role._control
