"""Each fault of the simulated network really occurs, as often as it should, and only where it should."""

from __future__ import annotations

import asyncio
import random

import pytest

from simulation.clock import VirtualLoop
from simulation.network import (
    DOWN,
    UP,
    Address,
    Blackhole,
    BurstLoss,
    Corrupt,
    Datagram,
    Duplicate,
    Impairment,
    Jitter,
    LoseOne,
    SmallMtu,
    Where,
    Wire,
)

EDGE: Address = ("10.0.1.2", 4433)
OTHER: Address = ("10.0.2.2", 4433)


def carry(
    *impairments: Impairment, count: int = 2000, size: int = 100, edge: Address = EDGE
) -> list[tuple[float, bytes]]:
    """Sends datagrams a millisecond apart; returns (delay, content) of what arrived, in its order."""
    loop = VirtualLoop()
    wire = Wire(loop, random.Random(7), {EDGE: 0.010, OTHER: 0.010})
    wire.impairments += impairments
    arrived: list[tuple[float, bytes]] = []

    def send(number: int) -> None:
        at = loop.time()
        data = number.to_bytes(4, "big") * (size // 4)
        wire.send(Datagram(data, UP, edge), lambda copy: arrived.append((loop.time() - at, copy)))

    for number in range(count):
        loop.call_later(number / 1000, send, number)
    loop.run_until_complete(asyncio.sleep(count / 1000 + 10))
    loop.close()
    return arrived


def numbers(arrived: list[tuple[float, bytes]]) -> list[int]:
    return [int.from_bytes(data[:4], "big") for _, data in arrived]


def test_one_is_lost_and_no_other() -> None:
    assert numbers(carry(LoseOne(7))) == [number for number in range(2000) if number != 7]
    assert numbers(carry(LoseOne(7, Where(DOWN)))) == list(range(2000))


def test_a_good_network_only_delays() -> None:
    arrived = carry()
    assert numbers(arrived) == list(range(2000))
    assert all(delay_s == pytest.approx(0.010) for delay_s, _ in arrived)


def test_a_blackhole_takes_all_and_only_what_is_meant() -> None:
    assert carry(Blackhole(), count=50) == []
    assert len(carry(Blackhole(Where(DOWN)), count=50)) == 50
    assert len(carry(Blackhole(Where(UP, frozenset({OTHER}))), count=50)) == 50
    assert carry(Blackhole(Where(UP, frozenset({OTHER}))), count=50, edge=OTHER) == []


def test_losses_come_in_bursts() -> None:
    arrived = numbers(carry(BurstLoss(enter=0.02, leave=0.25), count=5000))
    lost = sorted(set(range(5000)) - set(arrived))
    assert 0.02 < len(lost) / 5000 < 0.15  # enter / (enter + leave) = 0.074
    follows = sum(number + 1 in set(lost) for number in lost)
    assert follows / len(lost) > 0.5  # 1 - leave = 0.75; independent losses would give 0.07


def test_jitter_reorders() -> None:
    arrived = numbers(carry(Jitter(0.01)))
    assert sorted(arrived) == list(range(2000))
    assert arrived != sorted(arrived)


def test_duplicates_are_equal_and_a_replay_comes_late() -> None:
    arrived = carry(Duplicate(0.5, after_s=1.0), count=400)
    assert 500 < len(arrived) < 700
    assert len(set(numbers(arrived))) == 400
    assert max(delay_s for delay_s, _ in arrived) > 0.5


def test_corruption_changes_one_bit() -> None:
    arrived = carry(Corrupt(1.0), count=100)
    for number, (_, data) in enumerate(arrived):
        right = number.to_bytes(4, "big") * 25
        assert sum((a ^ b).bit_count() for a, b in zip(data, right, strict=True)) == 1


def test_a_small_mtu_takes_what_is_larger() -> None:
    assert carry(SmallMtu(1280), count=10, size=1284) == []
    assert len(carry(SmallMtu(1280), count=10, size=1280)) == 10
