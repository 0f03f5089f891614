"""Starts a run from outside its private root: preflight, private root, complete run directory.

The run itself happens in another process, in namespaces of its own; this side watches its events,
and whatever becomes of it, a complete run directory with an outcome is left.
"""

from __future__ import annotations

import datetime
import shutil
import sys
from collections.abc import Callable

import msgspec

from quicferry.emulation.sandbox import private_root
from quicferry.errors import last_line
from quicferry.events import Event
from quicferry.experiment import faults
from quicferry.experiment.store import RunStore
from quicferry.model import Topology
from quicferry.paths import CHECKOUT
from quicferry.process import PIPE
from quicferry.record import Manifest, RunPaths, read_manifest, write_json
from quicferry.spec import RunSpec

OnEvent = Callable[[Event], None]


def launch(
    spec: RunSpec,
    topology: Topology,
    store: RunStore,
    player: str,
    on_event: OnEvent | None = None,
) -> RunPaths:
    """Perform one run and return its complete directory; the outcome is in the manifest.

    ``player`` is the module that plays the run within the private root. ``spec`` was checked by whoever made
    it, and the machine was asked whether it can.
    """
    run_id, paths = store.begin(spec)
    manifest = Manifest(
        id=run_id,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        spec=spec,
        topology=topology,
        fault_places=faults.allowed_places(spec.faults),
    )
    write_json(paths.manifest, manifest)
    argv = [sys.executable, "-m", player, str(paths.root)]
    log = paths.logs / "run.log"
    with log.open("wb") as stderr:
        root = private_root.start(argv, run_id=run_id, stdout=PIPE, stderr=stderr, cwd=CHECKOUT)
    assert root.process.stdout is not None
    with root, root.process.stdout as lines:
        for line in lines:
            if on_event is not None:
                try:
                    on_event(msgspec.json.decode(line, type=Event))
                except msgspec.DecodeError:
                    continue  # not an event: a library's print
        status = root.wait()
    # what was mounted there went with the private root
    shutil.rmtree(paths.credentials, ignore_errors=True)
    ended = read_manifest(paths.root)
    if ended.outcome == "running":
        last = last_line(log.read_text(errors="replace"))
        ended.outcome = "failed"
        ended.error = f"the run ended early with status {status}: {last}"
        write_json(paths.manifest, ended)
    return store.complete(paths)
