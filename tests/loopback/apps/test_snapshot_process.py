"""A connection goes on in a fresh process that gets nothing but bytes on its standard input."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import msgspec
import pytest
from aioquic.quic.events import QuicEvent
from cryptography.hazmat.primitives import serialization

from quicferry.paths import CHECKOUT
from quicferry.quic.snapshot import freeze, is_frozen, pack_bundle, take_snapshot
from tests.certificate import certificate
from tests.snapshot_process import Reply, Start, Turn, dump_service, pem, read, write
from tests.snapshot_support import World, pattern


class Remote:
    """The server object of a ``World``, in a process of its own."""

    def __init__(self, world: World, bundle: bytes) -> None:
        self._world, self._start = world, world.now
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.snapshot_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
        )
        made, key = certificate()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        self._tell(Start(pem(made), private, bundle))
        self._waiting: list[bytes] = []
        self._timer: float | None = world.server_now
        self.reply: Reply | None = None

    def _tell(self, message: msgspec.Struct) -> None:
        assert self._process.stdin is not None
        write(self._process.stdin, msgspec.msgpack.encode(message))  # type: ignore[arg-type]

    def receive_datagram(self, data: bytes, _: Any, now: float) -> None:
        self._waiting.append(data)

    def handle_timer(self, now: float) -> None:
        """The process looks at its timer in every turn."""

    def next_event(self) -> QuicEvent | None:
        return None

    def get_timer(self) -> float | None:
        return self._timer

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, None]]:
        self._tell(Turn(self._world.now - self._start, self._waiting))
        self._waiting = []
        assert self._process.stdout is not None
        data = read(self._process.stdout)  # type: ignore[arg-type]
        assert data is not None, "the server process ended"
        self.reply = msgspec.msgpack.decode(data, type=Reply)
        timer = self.reply.timer_in_s
        self._timer = None if timer is None else now + timer
        return [(datagram, None) for datagram in self.reply.datagrams]

    def end(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        assert self._process.wait(timeout=20) == 0
        self._process.stdout.close()


@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_a_fresh_process_goes_on_in_the_middle_of_transfers(loss: float) -> None:
    world = World(loss=loss, jitter_s=0.004 if loss else 0.0, seed=4)
    world.connect()
    upload = pattern(100_000, 5)
    expected = {
        world.get(300_000, 1): pattern(300_000, 1),
        world.ask(upload): hashlib.sha256(upload).digest(),
    }
    for number in range(100):
        expected[world.get(300, number)] = pattern(300, number)
    world.flush()
    world.run(lambda: world.delivered > 150)
    source = world.server
    assert source is not None
    freeze(source, world.server_now)
    bundle = pack_bundle(9, [take_snapshot(source, world.server_now, epoch=9)], dump_service(world.service))
    remote = Remote(world, bundle)
    world.server = remote  # type: ignore[assignment]
    world.server_clock = 0.0
    try:
        world.flush()
        world.run(lambda: expected.keys() <= world.finished)
        assert {stream: world.answers[stream] for stream in expected} == expected
        assert remote.reply is not None
        assert remote.reply.requests == len(expected)
        assert is_frozen(source)
        for number in range(20):  # a connection that goes on for long
            stream = world.get(1000, number)
            world.flush()
            world.run(lambda stream=stream: stream in world.finished)  # type: ignore[misc]  # binds the loop value
            assert world.answers[stream] == pattern(1000, number)
    finally:
        remote.end()
