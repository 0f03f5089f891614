"""Where a run is played: the private root with the process that plays, for one run or for many.

``FreshStage`` makes both for each run. ``KeptStage`` makes them once, and the process in there plays run
after run in the network that it keeps (``quicferry.emulation.mininet.kept``). The conversation with that
process: a line on its stdin for each run, the run's events as lines on its stdout, and ``OVER`` at the end.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import msgspec

from quicferry.emulation.sandbox import cgroups, private_root
from quicferry.emulation.sandbox.ownership import PARTIAL_SUFFIX
from quicferry.errors import disk_error
from quicferry.events import Event
from quicferry.experiment.guard import Guard
from quicferry.paths import CHECKOUT
from quicferry.process import PIPE
from quicferry.record import RunPaths

LOG = "run.log"  # of the process that plays

OnEvent = Callable[[Event], None]

#: Characters of a command line beyond that of the process which plays a run (``fork_server._show_as``).
ROOM = 120
KEEP = "--keep"  # the first argument of a process that plays run after run; the second is its folder
OVER = b'{"over":'  # how the line begins that says so


class RunOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A run to be played, as a line on the stdin of the process that plays."""

    run_id: str
    directory: str


class RunOver(msgspec.Struct, frozen=True, kw_only=True):
    """The last line about a run. ``kept``: whether its network is there for the next."""

    over: str  # the run's id
    kept: bool
    why_not: str | None = None


class Stage(Protocol):
    """A place for runs, one after another."""

    def play(self, paths: RunPaths, run_id: str, on_event: OnEvent | None) -> str:
        """Play the run of that directory, and tell of its events.

        Returns the error of a run that has not written its own end, empty while the process that plays lives.
        Whatever is raised, what played has ended by then.
        """

    def close(self) -> None:
        """End what is kept. May be called again."""


class FreshStage:
    """A private root and a process for each run. ``player`` is the module that plays."""

    def __init__(self, player: str) -> None:
        self._player = player

    def play(self, paths: RunPaths, run_id: str, on_event: OnEvent | None) -> str:
        """See ``Stage``."""
        # the last argument says nothing: forked programs show their command lines in its place
        argv = [sys.executable, "-m", self._player, str(paths.root), "-" * ROOM]
        with (paths.logs / LOG).open("wb") as stderr:
            root = private_root.start(
                argv, run_id=run_id, stdout=PIPE, stderr=stderr, env=_environment(), cwd=CHECKOUT
            )
        assert root.process.stdout is not None
        with root, Guard(root) as guard, root.process.stdout as lines:
            for line in lines:
                _tell(line, on_event)
            return guard.describe_end(root.wait(), paths.logs / LOG)

    def close(self) -> None:
        """See ``Stage``."""


class KeptStage:
    """One private root and one process for all runs; made with the first, and anew after an accident.

    ``folder`` is on a disk that the private root sees; the process mounts a file system in memory there, for
    the keys of its runs. ``kept`` counts the runs that left their network to the next, ``made_anew`` says of
    each other run why it did not.
    """

    def __init__(self, player: str, folder: Path) -> None:
        self._player = player
        self._folder = folder
        self._place: Path | None = None
        self._root: private_root.PrivateRoot | None = None
        self._log: IO[bytes] | None = None
        self.kept = 0
        self.made_anew: list[str] = []

    def play(self, paths: RunPaths, run_id: str, on_event: OnEvent | None) -> str:
        """See ``Stage``."""
        if self._root is not None and self._root.poll() is not None:
            self.close()
        try:
            root = self._root or self._begin()
            with Guard(root) as guard:
                over = self._play(root, RunOrder(run_id=run_id, directory=str(paths.root)), on_event)
                status = root.wait() if over is None else 0
        except BaseException:
            self.close()
            raise
        if over is None:
            self._keep_words(paths)
            early = guard.describe_end(status, paths.logs / LOG)
            self.made_anew.append(early)
            self.close()
            return early
        cgroups.remove_of_run(run_id)
        if over.kept:
            self.kept += 1
        else:
            self.made_anew.append(over.why_not or "")
        return ""

    def _begin(self) -> private_root.PrivateRoot:
        name = f"network-{os.getpid()}-{secrets.token_hex(3)}"
        self._place = self._folder / f"{name}{PARTIAL_SUFFIX}"
        try:
            self._place.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise disk_error("cannot make a folder for the network", error) from error
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        argv = [sys.executable, "-m", self._player, KEEP, str(self._place), "-" * ROOM]
        self._root = private_root.start(
            argv,
            run_id=name,
            stdin=PIPE,
            stdout=PIPE,
            stderr=self._log,
            env=_environment(),
            cwd=CHECKOUT,
        )
        return self._root

    def _play(
        self, root: private_root.PrivateRoot, order: RunOrder, on_event: OnEvent | None
    ) -> RunOver | None:
        """Give the order and tell of its events until it is over; None when the process ended before."""
        stdin, stdout = root.process.stdin, root.process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(msgspec.json.encode(order) + b"\n")
            stdin.flush()
        except BrokenPipeError:
            return None
        for line in iter(stdout.readline, b""):
            if line.startswith(OVER):
                return msgspec.json.decode(line, type=RunOver)
            _tell(line, on_event)
        return None

    def _keep_words(self, paths: RunPaths) -> None:
        """Add what the process has said outside of its runs to the log of the run in which it ended."""
        if self._log is None:
            return
        self._log.seek(0)
        with contextlib.suppress(OSError), (paths.logs / LOG).open("ab") as log:
            shutil.copyfileobj(self._log, log)

    def close(self) -> None:
        """See ``Stage``."""
        root, self._root = self._root, None
        log, self._log = self._log, None
        place, self._place = self._place, None
        if root is not None:
            root.kill()  # its namespaces take all with them: nothing is gained by asking
            for stream in (root.process.stdin, root.process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        if log is not None:
            log.close()
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def _environment() -> dict[str, str]:
    # a server in an OCI container finds this checkout by it only, however the tool itself was started
    python_path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": python_path}


def _tell(line: bytes, on_event: OnEvent | None) -> None:
    if on_event is None:
        return
    with contextlib.suppress(msgspec.DecodeError):  # not an event: a library's print
        on_event(msgspec.json.decode(line, type=Event))
