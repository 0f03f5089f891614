"""How long an emulated network of many hosts takes to be there: `make bench-hosts`.

    sudo .venv/bin/python -m bench.bench_hosts [--hosts 10,100,1000] [--shaped]

Hosts, ten at a router each, and a router in the middle; each link is a network of its own. With ``--shaped``
every link has a delay. That the network carries packets is asked by one host of each router, which pings the
last host of all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from quicferry.emulation.mininet.emulator import MininetEmulator
from quicferry.emulation.sandbox import private_root
from quicferry.model import Link, Node, NodeKind, Shape, Topology
from quicferry.process import PIPE

PER_ROUTER = 10
DELAY_MS = 1.0


class Deployed(NamedTuple):
    """One network."""

    hosts: int
    links: int
    phases_s: dict[str, float]  # name of the phase -> its end, from the beginning
    destroyed_s: float
    unreachable: list[str]


def network(hosts: int, *, shaped: bool) -> Topology:
    """That many hosts, ``PER_ROUTER`` at a router, all routers at one in the middle."""
    routers = [f"r{number}" for number in range(-(-hosts // PER_ROUTER))]
    pairs = [("middle", router) for router in routers]
    pairs += [(routers[number // PER_ROUTER], f"h{number}") for number in range(hosts)]
    shape = Shape(delay_ms=DELAY_MS) if shaped else Shape()
    return Topology(
        name="many",
        summary=f"{hosts} hosts",
        nodes=(
            *(Node(name=name, kind=NodeKind.ROUTER) for name in ("middle", *routers)),
            *(Node(name=f"h{number}") for number in range(hosts)),
        ),
        links=tuple(
            Link(
                a=a,
                b=b,
                a_address=f"10.{number // 256}.{number % 256}.1/24",
                b_address=f"10.{number // 256}.{number % 256}.2/24",
                a_to_b=shape,
                b_to_a=shape,
            )
            for number, (a, b) in enumerate(pairs)
        ),
    )


def deployed(hosts: int, *, shaped: bool) -> Deployed:
    """Deploy such a network, ask who is reached, and take it down. Runs in a private root."""
    topology = network(hosts, shaped=shaped)
    phases: dict[str, float] = {}
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        emulator = MininetEmulator(
            Path(work), progress=lambda phase: phases.update({str(phase): time.monotonic() - begun})
        )
        emulator.deploy(topology)
        last = f"h{hosts - 1}"
        unreachable = [
            host
            for host in (f"h{number}" for number in range(0, hosts - 1, PER_ROUTER))
            if emulator.execute(
                host, ["ping", "-n", "-c1", "-W5", emulator.address(last)], check=False
            ).status
        ]
        ending = time.monotonic()
        emulator.destroy()
    return Deployed(hosts, len(topology.links), phases, time.monotonic() - ending, unreachable)


def measured(hosts: int, *, shaped: bool) -> Deployed:
    """As ``deployed``, in a private root of its own. Raises ``RuntimeError`` when that fails."""
    argv = [sys.executable, "-m", "bench.bench_hosts", "--inside", "--hosts", str(hosts)]
    root = private_root.start([*argv, *(["--shaped"] if shaped else [])], stdout=PIPE)
    assert root.process.stdout is not None
    with root.process.stdout as said:
        text = said.read()
    if root.wait(60.0) != 0:
        raise RuntimeError(f"a network of {hosts} hosts could not be made")
    return msgspec.json.decode(text, type=Deployed)


def main() -> int:
    """Measure and print a table; 1 when a host was not reached."""
    parser = argparse.ArgumentParser(prog="bench.bench_hosts", description=__doc__.split("\n")[0])
    parser.add_argument("--hosts", default="10,100", help="how many, separated by commas (10,100)")
    parser.add_argument("--shaped", action="store_true", help="give every link a delay")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    counts = [int(word) for word in arguments.hosts.split(",")]
    if arguments.inside:
        print(msgspec.json.encode(deployed(counts[0], shaped=arguments.shaped)).decode())
        return 0
    table = Table(title="A network of many hosts, medians")
    for column in ("hosts", "links", "nodes, s", "links, s", "addresses, s", "all, s", "down, s", "reached"):
        table.add_column(column, justify="right")
    status = 0
    for count in counts:
        seen = [measured(count, shaped=arguments.shaped) for _ in range(arguments.repetitions)]
        ends = {phase: statistics.median(each.phases_s[phase] for each in seen) for phase in seen[0].phases_s}
        lost = sum(len(each.unreachable) for each in seen)
        status |= bool(lost)
        table.add_row(
            str(count),
            str(seen[0].links),
            *(f"{ends[phase]:.2f}" for phase in ("nodes", "links", "addresses", "ready")),
            f"{statistics.median(each.destroyed_s for each in seen):.2f}",
            "all" if not lost else f"not {lost}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    return status


if __name__ == "__main__":
    sys.exit(main())
