"""A server that is moved in the middle of everything: the client must get every byte, once and in order."""

from __future__ import annotations

import hashlib

import pytest

from tests.snapshot_support import World, pattern, watched_nonces

DOWNLOAD_BYTES = 300_000
UPLOAD_BYTES = 100_000
UPLOAD = pattern(UPLOAD_BYTES, 99)


def load(world: World, requests: int) -> dict[int, bytes]:
    """Start a download, an upload and small requests; returns what must come back."""
    expected = {world.get(DOWNLOAD_BYTES, 7): pattern(DOWNLOAD_BYTES, 7)}
    expected[world.ask(UPLOAD)] = hashlib.sha256(UPLOAD).digest()
    for number in range(requests):
        expected[world.get(200 + number, number)] = pattern(200 + number, number)
    world.flush()
    return expected


def check(world: World, expected: dict[int, bytes]) -> None:
    assert {stream: world.answers.get(stream) for stream in expected} == expected
    assert world.service.requests == len(expected)


def test_an_idle_connection_is_moved_and_goes_on() -> None:
    world = World()
    world.connect()
    world.settle()
    before = world.server
    world.hop(downtime_s=0.05)
    stream = world.get(5000, 3)
    world.flush()
    world.run(lambda: stream in world.finished)
    assert world.answers[stream] == pattern(5000, 3)
    assert world.server is not before


@pytest.mark.parametrize("algorithm", ["reno", "cubic"])
def test_ten_hops_in_a_row_in_the_middle_of_transfers(algorithm: str) -> None:
    options = {"congestion_control_algorithm": algorithm}
    with watched_nonces() as nonces:
        world = World(loss=0.1, jitter_s=0.004, seed=5, server_options=options)
        world.connect()
        expected = load(world, 100)
        for hop in range(10):
            target = world.delivered + 37 + hop
            world.run(lambda target=target: world.delivered >= target)  # type: ignore[misc]  # binds the loop value
            world.hop(downtime_s=0.02)
            world.run(lambda: world.down_until is None)
        world.run(lambda: expected.keys() <= world.finished)
    check(world, expected)
    assert nonces.repeated == []


PERIOD = 100
HOPS = 8


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("offset", range(PERIOD))
def test_hops_at_every_datagram_boundary(offset: int, loss: float) -> None:
    """Each run hops at every 100th boundary; the runs together at each of the first 800.

    The first boundary is that of the confirmed handshake; a session without hops has some 700.
    """
    with watched_nonces() as nonces:
        world = World(loss=loss, jitter_s=0.006 if loss else 0.0, seed=offset)
        world.forward_late = (offset % 2 == 0) == (loss == 0.0)
        world.connect()
        expected = load(world, 120)
        start = world.delivered

        def finished() -> bool:
            return expected.keys() <= world.finished

        for hop in range(HOPS):
            boundary = start + offset + hop * PERIOD
            world.run(lambda boundary=boundary: world.delivered >= boundary or finished())  # type: ignore[misc]  # a default binds the loop's value
            world.hop(downtime_s=0.01)
            world.run(lambda: world.down_until is None)
        world.run(finished)
    check(world, expected)
    assert nonces.repeated == []
