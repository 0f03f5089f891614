"""What an idle connection costs a server, with the extension against stock: memory and processor time.

Connections whose handshake is over, in one process and in virtual time; the clients' ends are given away. The
two kinds take turns, each in a process of its own.

    python -m bench.idle
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import psutil
from aioquic.quic.connection import QuicConnection

from bench.throughput import SERVER, carry, make_pair
from bench.turns import ROOT
from quicferry.migration.rpc.credentials import Authority, TlsFiles
from quicferry.process import run

CONNECTIONS = 200
ROUNDS = 5
STEP_S, STEPS = 0.01, 60  # of virtual time, until nothing of the handshake is open any more
LOOKS = 5
MEMORY, TIMER, NOTHING, PING = "memory, KiB", "timer asked for, us", "nothing to send, us", "keep-alive, us"


def idle_pair(extended: bool, files: TlsFiles) -> tuple[QuicConnection, QuicConnection]:
    """A client and a server after their handshake."""
    client, server = make_pair(extended, files)
    now_s = 0.0
    client.connect(SERVER, now_s)
    for _ in range(STEPS):
        now_s += STEP_S
        carry(client, server, now_s)
    return client, server


def costs(extended: bool, count: int = CONNECTIONS) -> dict[str, float]:
    """Of one server's connection: KiB that it adds to the process, and microseconds of each step."""
    with TemporaryDirectory() as name:
        files = Authority().issue("bench").save(Path(name), "bench")
        clients = [idle_pair(extended, files)[0] for _ in range(count)]  # whose memory is used again
        del clients
        gc.collect()
        before = psutil.Process().memory_info().rss
        pairs = [idle_pair(extended, files) for _ in range(count)]
    clients, servers = [client for client, _ in pairs], [server for _, server in pairs]
    gc.collect()
    # both ends are equal but for what a handshake leaves: half of what they take together
    found = {MEMORY: (psutil.Process().memory_info().rss - before) / count / 2 / 1024}
    gc.freeze()
    now_s = STEP_S * STEPS

    def least_us(work: Callable[[], object]) -> float:
        times = []
        for _ in range(LOOKS):
            begun_s = time.process_time()
            work()
            times.append(time.process_time() - begun_s)
        return min(times) / count * 1e6

    def keep_alive() -> None:
        nonlocal now_s
        now_s += 1.0
        for client, server in zip(clients, servers, strict=True):
            client.send_ping(1)
            carry(client, server, now_s)
            carry(client, server, now_s + 3 * STEP_S)

    found[TIMER] = least_us(lambda: [server.get_timer() for server in servers])
    found[NOTHING] = least_us(lambda: [server.datagrams_to_send(now_s) for server in servers])
    found[PING] = least_us(keep_alive)
    return found


def by_turns(rounds: int) -> dict[str, list[dict[str, float]]]:
    """``costs`` of both kinds, each measured in a process of its own, in the order of the rounds."""
    seen: dict[str, list[dict[str, float]]] = {"stock": [], "extended": []}
    for number in range(rounds):
        for kind in ("stock", "extended") if number % 2 else ("extended", "stock"):
            done = run([sys.executable, "-m", "bench.idle", kind], cwd=ROOT, timeout_s=300)
            seen[kind].append(msgspec.json.decode(done.stdout, type=dict[str, float]))
    return seen


def main() -> None:
    """Measure by turns and print, or with ``stock`` or ``extended`` measure once."""
    if sys.argv[1:]:
        print(msgspec.json.encode(costs(sys.argv[1] == "extended")).decode())
        return
    seen = by_turns(ROUNDS)
    for what in (MEMORY, TIMER, NOTHING, PING):
        stock, ours = ([each[what] for each in seen[kind]] for kind in ("stock", "extended"))
        ratio = statistics.median(b / a for a, b in zip(stock, ours, strict=True))
        print(
            f"idle connection, {what}: {statistics.median(ours):.2f} with the extension, "
            f"{statistics.median(stock):.2f} stock; ratio {ratio:.2f}"
        )


if __name__ == "__main__":
    main()
