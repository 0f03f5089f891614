"""Starts a run from outside its private root: preflight, private root, complete run directory.

The run itself happens in another process, in namespaces of its own; this side watches its events,
and whatever becomes of it, a complete run directory with an outcome is left.
"""

from __future__ import annotations

import datetime
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from quicferry.capture.run_capture import write_run_capture
from quicferry.emulation.sandbox import private_root
from quicferry.errors import CaptureError, StoreError, disk_error, last_line
from quicferry.events import Event
from quicferry.experiment import faults
from quicferry.experiment.store import RunStore, free_reserve
from quicferry.model import Topology
from quicferry.paths import CHECKOUT
from quicferry.process import PIPE
from quicferry.record import Manifest, RunPaths, read_manifest, write_json
from quicferry.spec import RunSpec

LOG = "run.log"  # of the process that plays

#: What ``unshare`` of util-linux 2.38 says when its child was killed by a signal, and at no other time. Later
#: ones end by the same signal.
INIT_KILLED = "unshare: sigprocmask unblock failed"
LOOK_S = 0.2
SIGNAL_BASE = 128  # an exit code beyond it: ended by that signal

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
        early = _play(paths, run_id, player, on_event)
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


#: Characters of a command line beyond that of the process which plays a run (``fork_server._show_as``).
ROOM = 120


def _play(paths: RunPaths, run_id: str, player: str, on_event: OnEvent | None) -> str:
    """Play the run in a private root, and tell of its events. Returns the error of one that ended early."""
    # the last argument says nothing: forked programs show their command lines in its place
    argv = [sys.executable, "-m", player, str(paths.root), "-" * ROOM]
    # a server in an OCI container finds this checkout by it only, however the tool itself was started
    python_path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": python_path}
    with (paths.logs / LOG).open("wb") as stderr:
        root = private_root.start(argv, run_id=run_id, stdout=PIPE, stderr=stderr, env=env, cwd=CHECKOUT)
    assert root.process.stdout is not None
    with root, _Guard(root) as guard, root.process.stdout as lines:
        for line in lines:
            if on_event is not None:
                try:
                    on_event(msgspec.json.decode(line, type=Event))
                except msgspec.DecodeError:
                    continue  # not an event: a library's print
        return guard.describe_end(root.wait(), paths.logs / LOG)


class _Guard:
    """Ends a private root, from a thread, when a process that conducts the run was stopped for good.

    All others of a run are looked after from within (``watch``).
    """

    def __init__(self, root: private_root.PrivateRoot) -> None:
        self._root = root
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="guard", daemon=True)
        self._has_ended_it = False

    def __enter__(self) -> _Guard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            if self._root.stands_still():
                self._has_ended_it = True
                # the outermost process takes all of them with it, those that stand still, too
                self._root.process.kill()
                return

    def describe_end(self, status: int, log: Path) -> str:
        """Why a run has not written its own end, by the exit code of what played it and what it said."""
        if self._has_ended_it:
            return "the process that conducts the run stands still (SIGSTOP), and was ended with the run"
        number = -status if status < 0 else status - SIGNAL_BASE
        if number in signal.valid_signals():
            return f"the process that conducts the run was killed by {signal.Signals(number).name}"
        with suppress(OSError):
            if INIT_KILLED in log.read_text(errors="replace"):
                return "the process that conducts the run was killed with its private root (SIGKILL)"
        return f"the run ended early with status {status}"


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
        write_run_capture(paths)
    except CaptureError as error:  # the run is none the worse for it, and its captures are there
        manifest.warnings.append(f"no {paths.capture.name}: {error}")
        with suppress(OSError):
            write_json(paths.manifest, manifest)
    return store.complete(paths)
