"""The process inside the private root: plays the run whose directory it is given, or one after another.

    python -m session.play DIRECTORY
    python -m session.play --once            # a run that is ordered on stdin (quicferry.experiment.stage)
    python -m session.play --keep FOLDER     # run after run, in one network

Its stdout is the events of the run, as JSON lines, for whoever watches.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

import baselines
from apps.client import workloads
from apps.deployment.quic import QuicDeployment
from quicferry.emulation.emulator import Emulator
from quicferry.emulation.mininet.emulator import MininetEmulator
from quicferry.emulation.mininet.kept import KeptEmulator
from quicferry.emulation.sandbox.ownership import RUN_TAG
from quicferry.events import Event
from quicferry.experiment.run import MakeDeployment, perform
from quicferry.experiment.stage import KEEP, LOG, ONCE, RunOrder, RunOver
from quicferry.fork_server import ForkServer
from quicferry.process import run
from quicferry.record import Manifest, RunPaths, read_manifest
from quicferry.slowness import measure

LINKS = "links"  # in a run's directory: the files of its cable
PRIORITY = -10  # niceness of all that plays in a run: what else the machine does should not be measured

#: Programs that every run with a strategy has, and most with a baseline: forked, not started one by one.
FORKED = (
    *("apps.agent", "apps.orchestrator", "apps.client.client", "apps.client.multi_client"),
    *("quicferry.capture.recorder", "quicferry.emulation.links.cable.__main__"),
)


def show(event: Event) -> None:
    """One event as a line on stdout."""
    sys.stdout.buffer.write(msgspec.json.encode(event) + b"\n")
    sys.stdout.buffer.flush()


def keep_in_memory(directory: Path) -> None:
    """Give a directory a file system of this private root: what is in it goes with the root, even by SIGKILL.

    Raises ``CommandFailed``.
    """
    directory.mkdir(mode=0o700)
    run(["mount", "-t", "tmpfs", "-o", "mode=0700,size=4m", "tmpfs", directory])


def main() -> None:
    """Perform the run whose directory is the first argument, or the one or many that are ordered on stdin."""
    os.nice(PRIORITY)
    forks = ForkServer.start(FORKED)
    if sys.argv[1] == KEEP:
        play_orders(Path(sys.argv[2]), forks)
        return
    if sys.argv[1] == ONCE:
        order = next(_orders(), None)
        if order is None:
            return  # nobody needed it
        root = Path(order.directory)
    else:
        root = Path(sys.argv[1])
    paths = RunPaths(root)
    keep_in_memory(paths.credentials)  # private keys
    manifest = read_manifest(paths.root)
    spec = manifest.spec
    emulator = MininetEmulator(
        paths.root / LINKS, seed=spec.seed, backend=_backend(spec.link_backend), forks=forks
    )
    _perform(manifest, paths, emulator)


def _perform(manifest: Manifest, paths: RunPaths, emulator: Emulator, *, slower: float | None = None) -> None:
    spec = manifest.spec
    every_ms = workloads.longest_pause_s(spec.workload, spec.interval_ms) * 1e3
    deployment = _deployment(spec.baseline)
    perform(manifest, paths, emulator, deployment, show, asks_every_ms=every_ms, slower=slower)


def _orders() -> Iterator[RunOrder]:
    """The orders on stdin, as they come; what this process says goes into the log of each run."""
    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=RunOrder)
        os.environ[RUN_TAG] = order.run_id
        _log_into(RunPaths(Path(order.directory)).logs / LOG)
        yield order


def play_orders(folder: Path, forks: ForkServer) -> None:
    """Perform run after run, each of a line on stdin, in a network that is kept; until stdin ends.

    ``folder`` becomes the place of all runs' keys, in memory: a node's mounts are those of its making.
    """
    keys = folder / "keys"
    keep_in_memory(keys)
    emulator = KeptEmulator(forks=forks)
    slower = measure()  # once: it takes 30 ms, of the 700 that a run takes besides its load
    for order in _orders():
        paths = RunPaths(Path(order.directory))
        if emulator.why is not None:
            sys.stderr.write(f"a network is built: {emulator.why}\n")
            sys.stderr.flush()
        paths.credentials = keys / order.run_id
        paths.credentials.mkdir(mode=0o700)
        manifest = read_manifest(paths.root)
        spec = manifest.spec
        manifest.network_run = emulator.next_run(
            manifest.topology,
            paths.root / LINKS,
            seed=spec.seed,
            backend=_backend(spec.link_backend),
            may_stay=not spec.faults,
        )
        _perform(manifest, paths, emulator, slower=slower)
        sys.stdout.buffer.write(msgspec.json.encode(RunOver(over=order.run_id)) + b"\n")
        sys.stdout.buffer.flush()
        emulator.tidy_up()  # beside the analysis
    emulator.destroy()


def _backend(asked: str) -> str | None:
    return None if asked == "auto" else asked


def _deployment(baseline: str | None) -> MakeDeployment:
    return baselines.get(baseline).deployment if baseline is not None else QuicDeployment


def _log_into(path: Path) -> None:
    """Let what this process says on stderr go into a file; that of the run before is not touched again."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(descriptor, 2)
    os.close(descriptor)


if __name__ == "__main__":
    main()
