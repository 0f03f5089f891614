"""Can this machine emulate? Probes that make a private root and a small network in it.

As a program (``python -m quicferry.emulation.probes``) it is the inner part of the ``mininet`` probe.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from quicferry.emulation.sandbox import private_root
from quicferry.errors import EmulationError, Unsupported, last_line
from quicferry.model import Link, Node, NodeKind, Topology
from quicferry.probe import Probe
from quicferry.process import DEVNULL, TimeoutExpired
from quicferry.slowness import longer_than_emulated

TIMEOUT_S = 90.0  # an emulated processor needs 40 s

#: Two hosts, a bridge, a router: one of each kind.
SMALLEST = Topology(
    name="smallest",
    summary="two hosts, a bridge and a router",
    nodes=(
        Node(name="a"),
        Node(name="b", kind=NodeKind.EDGE),
        Node(name="r", kind=NodeKind.ROUTER),
        Node(name="s", kind=NodeKind.SWITCH),
    ),
    links=(
        Link(a="a", b="s", a_address="10.9.1.2/24"),
        Link(a="s", b="r", b_address="10.9.1.1/24"),
        Link(a="r", b="b", a_address="10.9.2.1/24", b_address="10.9.2.2/24"),
    ),
)


def ask_root() -> str:
    """Whether a private root can be made, and how long one takes."""
    begun = time.perf_counter()
    _in_private_root(["true"])
    return f"a private root was made and ended in {(time.perf_counter() - begun) * 1e3:.0f} ms"


def ask_mininet() -> str:
    """Whether Mininet builds a network whose first packet arrives."""
    return _in_private_root([sys.executable, "-m", "quicferry.emulation.probes"])


def _in_private_root(argv: list[str]) -> str:
    """Run a program in a private root; its last line. Raises ``Unsupported`` when it fails."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        with private_root.start(argv, stdin=DEVNULL, stdout=stdout, stderr=stderr) as root:
            status = _wait(root, argv[0])
        said = _last_line(stdout.fileno())
        why = _last_line(stderr.fileno())
    if status != 0:
        raise Unsupported(
            why or f"{argv[0]} in a private root ended with status {status}",
            hint="`make setup` installs the programs; a container needs CAP_SYS_ADMIN and CAP_NET_ADMIN",
        )
    return said


def _wait(root: private_root.PrivateRoot, program: str) -> int:
    """Its exit status, within ``TIMEOUT_S``, or longer where the processor is slower than an emulated one."""
    try:
        return root.wait(TIMEOUT_S)
    except TimeoutExpired:
        limit_s = longer_than_emulated(TIMEOUT_S)
    try:
        return root.wait(limit_s - TIMEOUT_S)
    except TimeoutExpired:
        raise Unsupported(f"{program} in a private root did not end in {limit_s:g} s") from None


def _last_line(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return last_line(os.pread(descriptor, size, 0).decode("utf-8", "replace"), "")


def main() -> str:
    """Inside the private root: deploy the smallest network and ping once through it."""
    from quicferry.emulation.mininet.emulator import MininetEmulator

    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory, MininetEmulator(Path(directory)) as emulator:
        emulator.deploy(SMALLEST)
        took_ms = (time.perf_counter() - begun) * 1e3
        answer = emulator.execute("a", ["ping", "-n", "-c", "1", "-W", "2", "10.9.2.2"], check=False)
        if answer.status != 0:
            raise EmulationError(f"a host cannot reach another one: {answer.stdout} {answer.stderr}")
        return (
            f"a network of {len(SMALLEST.nodes)} nodes was up in {took_ms:.0f} ms, its first ping came back"
        )


PROBES = [
    Probe(name="root", needed_for="everything that runs", ask=ask_root),
    Probe(name="mininet", needed_for="the emulated network", ask=ask_mininet),
]

if __name__ == "__main__":
    sys.stdout.write(main() + "\n")
