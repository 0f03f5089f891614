"""Random lives of a connection: requests, moves, moves that fail, key updates, new addresses, all mixed."""

from __future__ import annotations

import hashlib
import random

import pytest

from quicferry.quic.snapshot import freeze, restore_snapshot, take_snapshot, thaw
from tests.snapshot_support import World, pattern, watched_nonces


def fail_to_move(world: World, rng: random.Random) -> None:
    """Freeze, and let a destination speak for a while to nobody; then go on at the source."""
    source = world.server
    assert source is not None
    now = world.server_now
    freeze(source, now)
    data = take_snapshot(source, now, epoch=1000)
    if rng.random() < 0.7:
        there = 9000.0
        destination = restore_snapshot(data, configuration=world.configuration, build=world.build, now=there)
        for _ in range(rng.randrange(1, 60)):
            destination.datagrams_to_send(there)
            timer = destination.get_timer()
            if timer is None:
                break  # it gave up
            there = max(there, timer) + 1e-6
            destination.handle_timer(there)
    thaw(source, now)


@pytest.mark.parametrize("seed", range(40))
def test_a_random_life(seed: int) -> None:
    rng = random.Random(seed)
    options = {
        "congestion_control_algorithm": rng.choice(["reno", "cubic"]),
        "max_data": rng.choice([20_000, 1_048_576]),
        "max_stream_data": rng.choice([10_000, 1_048_576]),
    }
    with watched_nonces() as nonces:
        world = World(
            seed=seed,
            loss=rng.choice([0.0, 0.02, 0.1]),
            jitter_s=rng.choice([0.0, 0.005]),
            server_options=options,
            client_options={"max_data": rng.choice([30_000, 1_048_576])},
        )
        world.connect()
        expected: dict[int, bytes] = {}
        for step in range(40):
            assert world.server is not None
            what = rng.choice(["get", "get", "put", "hop", "hop", "fail", "key", "address", "ping"])
            if what == "get":
                size = rng.choice([0, 1, 500, 40_000])
                expected[world.get(size, step)] = pattern(size, step)
            elif what == "put":
                data = pattern(rng.choice([1, 3000, 50_000]), step)
                expected[world.ask(b"PUT " + data)] = hashlib.sha256(b"PUT " + data).digest()
            elif what == "hop":
                world.forward_late = rng.random() < 0.5
                world.hop(downtime_s=rng.choice([0.0, 0.005, 0.1, 1.0]))
                world.run(lambda: world.down_until is None)
            elif what == "fail":
                fail_to_move(world, rng)
            elif what == "key" and world.loss == 0.0:
                # Only after an acknowledgement in this phase (RFC 9001 §6.1), which aioquic does not check.
                world.settle()
                rng.choice([world.client, world.server]).request_key_update()
                world.client.send_ping(step)
                world.server.send_ping(step)
                world.flush()
                world.settle()
            elif what == "address":
                world.client_address = (world.client_address[0], world.client_address[1] + 1)
            else:
                world.server.send_ping(step)
            world.flush()
            target, until = world.delivered + rng.randrange(60), world.now + 0.3
            while world.delivered < target and world.now < until:
                world.step(until)
        world.run(lambda: expected.keys() <= world.finished)
    assert {stream: world.answers[stream] for stream in expected} == expected
    assert world.service.requests == len(expected)
    assert nonces.repeated == []
