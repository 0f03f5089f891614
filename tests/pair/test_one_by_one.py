"""A pool that is asked one address after another, as published, beside one that is raced for."""

from __future__ import annotations

import itertools

import pytest

from quicferry.quic import ExtensionConfig, LossNoticed, PathSwitched, Probing
from quicferry.quic._aioquic.seam import pto_s
from quicferry.strategies import Strategy

from .harness import EDGE_2, Pair, edge

DOWNTIME_S = 0.1
OTHERS = [edge(3), edge(4)]


def moved(probing: Probing, pool: int, seed: int = 1, downtime_s: float = DOWNTIME_S) -> Pair:
    pair = Pair(client=ExtensionConfig(probing=probing), seed=seed)
    pair.handshake(settle_s=1.0)
    pair.server.offer_addresses([*OTHERS[: pool - 1], EDGE_2], pair.now)
    pair.drive(limit_s=0.5)
    pair.load(0.010, until=pair.now + 0.5)
    pair.drive(limit_s=0.3)
    pair.move(Strategy.POOL, downtime_s=downtime_s, server_first=False, forwarding=False)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=20.0), "the server was not found"
    return pair


def searched(pair: Pair) -> list[tuple[float, tuple[str, int]]]:
    """The probes from the loss until the server runs again, in the order in which they left."""
    lost, switched = pair.first(LossNoticed), pair.first(PathSwitched)
    assert lost is not None and switched is not None
    candidates = {EDGE_2, *OTHERS}
    end = min(switched[0], pair.resumed_at)  # a server that has spoken is asked out of turn
    return [(t, address) for t, address, _ in pair.up if lost[0] <= t < end and address in candidates]


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_one_address_after_another_each_waited_for_twice_as_long(pool: int) -> None:
    pair = moved(Probing.ONE_BY_ONE, pool, downtime_s=3.0)
    probes = searched(pair)
    assert len(probes) >= 4, "a downtime of three seconds has several turns"
    assert len({address for _, address in probes[:pool]}) == pool, "each before any again"
    for (_, before), (_, again) in zip(probes, probes[pool:], strict=False):
        assert before == again, "always in the same order"
    waits = [later - sooner for (sooner, _), (later, _) in itertools.pairwise(probes)]
    for wait, next_wait in itertools.pairwise(waits):
        assert next_wait == pytest.approx(2 * wait, rel=0.05)


def test_the_first_wait_is_one_pto() -> None:
    pair = Pair(client=ExtensionConfig(probing=Probing.ONE_BY_ONE))
    pair.handshake(settle_s=1.0)
    pair.server.offer_addresses([edge(3), EDGE_2], pair.now)
    pair.load(0.010, until=pair.now + 0.3)
    pair.drive(limit_s=0.3)
    wait_s = pto_s(pair.client)
    pair.move(Strategy.POOL, downtime_s=2.0, server_first=False, forwarding=False)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=20.0)
    (first, _), (second, _), *_ = searched(pair)
    assert second - first == pytest.approx(wait_s, rel=0.2)


@pytest.mark.parametrize("pool", [1, 2, 3])
def test_a_race_finds_it_sooner_and_neither_loses_a_request(pool: int) -> None:
    found_s: dict[Probing, list[float]] = {Probing.RACE: [], Probing.ONE_BY_ONE: []}
    for probing, seed in itertools.product(Probing, range(1, 9)):
        pair = moved(probing, pool, seed)
        switched = pair.first(PathSwitched)
        assert switched is not None
        found_s[probing].append(switched[0] - pair.resumed_at)
        pair.drive(limit_s=3.0)
        assert pair.answered()
        pair.assert_open()
    race, one_by_one = (sorted(found_s[probing]) for probing in (Probing.RACE, Probing.ONE_BY_ONE))
    assert race[4] < one_by_one[4]
    assert race[-1] <= one_by_one[-1]


def test_who_speaks_first_is_answered_out_of_turn() -> None:
    """With the server first nobody waits for a turn: an address that was heard is asked at once."""
    pair = Pair(client=ExtensionConfig(probing=Probing.ONE_BY_ONE))
    pair.handshake(settle_s=1.0)
    pair.server.offer_addresses([*OTHERS, EDGE_2], pair.now)
    pair.load(0.010, until=pair.now + 1.0)
    pair.drive(limit_s=0.3)
    pair.move(Strategy.POOL, downtime_s=0.5, server_first=True, forwarding=False)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=5.0)
    switched = pair.first(PathSwitched)
    assert switched is not None
    assert switched[0] - pair.resumed_at <= 0.040, "two round trips"
