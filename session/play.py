"""The process inside the private root: plays the run whose directory it is given.

    python -m session.play DIRECTORY

Its stdout is the events of the run, as JSON lines, for whoever watches.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

import baselines
from apps.deployment.quic import QuicDeployment
from quicferry.emulation.mininet.emulator import MininetEmulator
from quicferry.events import Event
from quicferry.experiment.run import MakeDeployment, perform
from quicferry.fork_server import ForkServer
from quicferry.process import run
from quicferry.record import RunPaths, read_manifest

PRIORITY = -10  # niceness of all that plays in a run: what else the machine does should not be measured

#: Programs that every run with a strategy has, and most with a baseline: forked, not started one by one.
FORKED = ("apps.agent", "apps.orchestrator", "apps.client.client", "apps.client.multi_client")


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
    """Perform the run whose directory is the first argument."""
    paths = RunPaths(Path(sys.argv[1]))
    os.nice(PRIORITY)
    forks = ForkServer.start(FORKED)
    keep_in_memory(paths.credentials)  # private keys
    manifest = read_manifest(paths.root)
    backend = manifest.spec.link_backend
    emulator = MininetEmulator(
        paths.root / "links",
        seed=manifest.spec.seed,
        backend=None if backend == "auto" else backend,
        forks=forks,
    )
    name = manifest.spec.baseline
    deployment: MakeDeployment = baselines.get(name).deployment if name is not None else QuicDeployment
    perform(manifest, paths, emulator, deployment, show)


if __name__ == "__main__":
    main()
