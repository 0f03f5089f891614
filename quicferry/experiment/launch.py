"""Starts a run from outside its private root: preflight, private root, complete run directory.

The run itself happens in another process, in namespaces of its own; this side watches its events,
and whatever becomes of it, a complete run directory with an outcome is left.
"""

from __future__ import annotations

import datetime
import shutil
from contextlib import suppress

from quicferry.capture.recorder import gather_left
from quicferry.capture.run_capture import write_run_capture
from quicferry.errors import CaptureError, StoreError, disk_error, last_line
from quicferry.experiment import faults
from quicferry.experiment.stage import LOG, OnEvent, Stage
from quicferry.experiment.store import RunStore, free_reserve
from quicferry.model import Topology
from quicferry.record import Manifest, RunPaths, read_manifest, write_json
from quicferry.spec import RunSpec


def launch(
    spec: RunSpec,
    topology: Topology,
    store: RunStore,
    stage: Stage,
    on_event: OnEvent | None = None,
) -> RunPaths:
    """Perform one run and return its complete directory; the outcome is in the manifest.

    ``stage`` is where it is played. ``spec`` was checked by whoever made
    it, and the machine was asked whether it can. Raises ``StoreError`` when nothing can be written down.
    Whatever else is raised here, such as ``KeyboardInterrupt``: what plays has ended by then, and the
    directory says so.
    """
    run_id, paths = store.begin(spec)
    manifest = Manifest(
        id=run_id,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        spec=spec,
        topology=topology,
        fault_places=faults.allowed_places(spec.faults),
    )
    try:
        write_json(paths.manifest, manifest)
        early = stage.play(paths, run_id, on_event)
    except OSError as error:
        wrong = disk_error("the run directory cannot be written", error)
        return _end(store, paths, manifest, str(wrong), wrong.hint)
    except BaseException as error:
        with suppress(StoreError):
            _end(store, paths, manifest, f"the run was interrupted: {describe_interruption(error)}", None)
        raise
    return _end(store, paths, manifest, early, None)


def describe_interruption(error: BaseException) -> str:
    """What has ended the tool in the middle of a run."""
    return str(error) or type(error).__name__


def _end(store: RunStore, paths: RunPaths, manifest: Manifest, why: str, hint: str | None) -> RunPaths:
    """Complete the directory; ``why`` is the error of a run that did not get to write its own end."""
    # what was mounted there went with the private root
    shutil.rmtree(paths.credentials, ignore_errors=True)
    with suppress(StoreError):  # of the beginning, nothing could be written
        manifest = read_manifest(paths.root)
    if manifest.outcome == "running":
        with suppress(OSError):
            said = (paths.logs / LOG).read_text(errors="replace")
            why = f"{why}: {last_line(said)}" if said.strip() else why
        manifest.outcome, manifest.error, manifest.hint = "failed", why, hint
        free_reserve(paths)
        try:
            write_json(paths.manifest, manifest)
        except OSError as error:
            raise disk_error(f"{why}; and this cannot be written down", error) from error
    try:
        gather_left(paths.captures)
        write_run_capture(paths)
    except (CaptureError, OSError) as error:  # the run is none the worse for it, and its captures are there
        manifest.warnings.append(f"no {paths.capture.name}: {error}")
        with suppress(OSError):
            write_json(paths.manifest, manifest)
    return store.complete(paths)
