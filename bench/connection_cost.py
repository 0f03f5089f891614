"""What one connection costs a hand-off: processor time of each step, and memory at the destination.

    python -m bench.connection_cost [--connections 200]

Client and server are in this process and in virtual time; nothing is sent. The steps are those of the two
server processes (``apps.server.copies``), for connections that have had one request each and are at rest.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import msgspec
import psutil

from apps.server.connections import ConnectionTable, Peer
from apps.server.copies import Copied, CopiesIn, CopiesOut
from bench.throughput import SERVER, carry, configurations
from bench.turns import ROOT
from quicferry.migration.rpc.credentials import Authority
from quicferry.process import run
from quicferry.quic import ExtensionConfig, MigratableConnection
from quicferry.quic.snapshot import blank, connection_ids, freeze, take_snapshot
from quicferry.units import now_s

EPOCH = 1
STEP_S = 0.01  # of virtual time between two exchanges
STEPS = 60  # until the last acknowledgement and timer
REQUEST, ANSWER = b"q" * 64, b"a" * 256
EXTENSION = ExtensionConfig()
MEMORY = "memory at the destination, KiB"  # the one that is no time
T = TypeVar("T")


class _Pair:
    """A client and its server's connection, in virtual time."""

    def __init__(self, client: Any, server: Any, start_s: float) -> None:
        self.client = MigratableConnection(configuration=client, extension=EXTENSION)
        self.server = MigratableConnection(
            configuration=server,
            extension=EXTENSION,
            original_destination_connection_id=self.client.original_destination_connection_id,
        )
        self.now_s = start_s
        self.client.connect(SERVER, self.now_s)
        self._pass(6)
        stream = self.client.get_next_available_stream_id()
        self.client.send_stream_data(stream, REQUEST, True)
        self._pass(1)
        self.server.send_stream_data(stream, ANSWER, True)
        self._pass(STEPS)

    def _pass(self, steps: int) -> None:
        for _ in range(steps):
            self.now_s += STEP_S
            carry(self.client, self.server, self.now_s)


def connection_cost(count: int) -> dict[str, float]:
    """Microseconds of processor time of each step per connection, and KiB of memory per connection."""
    port: Any = None  # nothing is sent
    start_s = now_s() - 10.0  # so that virtual time does not run ahead of the clock
    with TemporaryDirectory() as name:
        client, server = configurations(Authority().issue("bench").save(Path(name), "bench"))
        pairs = [_Pair(client, server, start_s) for _ in range(count)]
    source, destination = (
        ConnectionTable(port, server, EXTENSION, lambda *_: None, lambda _: None) for _ in range(2)
    )
    for number, pair in enumerate(pairs):
        source.adopt(pair.server, set(connection_ids(pair.server)), str(number))
    build = functools.partial(MigratableConnection, extension=EXTENSION)
    costs: dict[str, float] = {}

    def timed(step: str, work: Callable[[], T]) -> T:
        gc.collect()
        gc.freeze()
        begun_s = time.process_time()
        result = work()
        costs[step] = (time.process_time() - begun_s) / count * 1e6
        return result

    before = psutil.Process().memory_info().rss
    blanks: list[Any] = timed(
        "ahead: an empty connection",
        lambda: [blank(configuration=server, build=build) for _ in range(count)],
    )
    out, ahead = CopiesOut(source, EPOCH), CopiesIn(destination, build, blanks, EPOCH)
    copied = timed("ahead: copied", lambda: asyncio.run(_copy_all(out)))
    timed("ahead: made", lambda: asyncio.run(ahead.take_in(copied)))
    costs[MEMORY] = (psutil.Process().memory_info().rss - before) / count / 1024
    unchanged = timed("downtime, at rest: found unchanged", lambda: out.unchanged(now_s()))
    peers = [source.peers[key] for key in unchanged]
    timed("after the answer: sealed", lambda: _freeze(peers))
    snapshots = timed(
        "downtime, changed: taken apart",
        lambda: [take_snapshot(peer.connection, now_s(), epoch=EPOCH) for peer in peers],
    )
    half = len(peers) // 2  # each copy can be used once
    timed(
        "downtime, at rest: taken",
        lambda: destination.admit([ahead.taken(unchanged[peer.key], now_s()) for peer in peers[:half]], {}),
    )
    timed(
        "downtime, changed: put together",
        lambda: destination.admit(
            [
                ahead.restored(peer.key, data)
                for peer, data in zip(peers[half:], snapshots[half:], strict=True)
            ],
            ahead.routes(),
        ),
    )
    for step in ("downtime, at rest: taken", "downtime, changed: put together"):
        costs[step] *= count / max(1, half)
    return costs


async def _copy_all(out: CopiesOut) -> list[Copied]:
    copied: list[Copied] = []
    while some := await out.copy_some(1):
        copied += some
    return copied


def _freeze(peers: list[Peer]) -> None:
    for peer in peers:
        peer.connection.hold()
        freeze(peer.connection, now_s())


def measured_apart(count: int) -> dict[str, float]:
    """``connection_cost`` in a process of its own, whose memory holds nothing else."""
    argv = [sys.executable, "-m", "bench.connection_cost", "--connections", str(count), "--json"]
    return msgspec.json.decode(run(argv, cwd=ROOT, timeout_s=300).stdout, type=dict[str, float])


def main() -> None:
    """Measure once, and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--connections", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    costs = connection_cost(arguments.connections)
    if arguments.json:
        print(msgspec.json.encode(costs).decode())
        return
    for step, cost in costs.items():
        print(f"{step:40} {cost:8.1f}" + ("" if step == MEMORY else " us"))


if __name__ == "__main__":
    main()
