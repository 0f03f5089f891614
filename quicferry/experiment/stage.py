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
from typing import Protocol, Self

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
ROOM = 512  # the path of a run's directory is among them
ONCE = "--once"  # the first argument of a process that waits for one order
KEEP = "--keep"  # of a process that plays run after run; the second is its folder
OVER = b'{"over":'  # how the line begins that says so


class RunOrder(msgspec.Struct, frozen=True, kw_only=True):
    """A run to be played, as a line on the stdin of the process that plays."""

    run_id: str
    directory: str


class RunOver(msgspec.Struct, frozen=True, kw_only=True):
    """The last line about a run: nothing is written into its directory any more."""

    over: str  # the run's id


class Stage(Protocol):
    """A place for runs, one after another."""

    def prepare(self) -> None:
        """Start ahead what the next run needs and does not depend on it. ``close`` ends what nobody used."""

    def play(self, paths: RunPaths, run_id: str, on_event: OnEvent | None) -> str:
        """Play the run of that directory, and tell of its events.

        Returns how the process that plays has ended, for a run that did not get to write its own end; empty
        while it lives. Whatever is raised, what played has ended by then.
        """

    def close(self) -> None:
        """End what is there. May be called again."""


class FreshStage:
    """A private root and a process for each run. ``player`` is the module that plays."""

    def __init__(self, player: str) -> None:
        self._player = player
        self._ahead: _Player | None = None

    def prepare(self) -> None:
        """See ``Stage``: the process loads what it is made of. Its private root has no network as yet."""
        if self._ahead is None:
            self._ahead = _Player(self._player, [ONCE])

    def play(self, paths: RunPaths, run_id: str, on_event: OnEvent | None) -> str:
        """See ``Stage``."""
        self.prepare()
        player, self._ahead = self._ahead, None
        assert player is not None
        player.root.run_id = run_id  # whose control groups are removed with the root
        with player:
            player.play(RunOrder(run_id=run_id, directory=str(paths.root)), on_event)
            return player.ended(paths)

    def close(self) -> None:
        """See ``Stage``."""
        if self._ahead is not None:
            self._ahead.end()
            self._ahead = None


class KeptStage:
    """One private root and one process for all runs; made with the first, and anew after an accident.

    ``folder`` is on a disk that the private root sees; the process mounts a file system in memory there, for
    the keys of its runs.
    """

    def __init__(self, player: str, folder: Path) -> None:
        self._module = player
        self._folder = folder
        self._place: Path | None = None
        self._player: _Player | None = None

    def prepare(self) -> None:
        """See ``Stage``."""
        if self._player is not None and self._player.root.poll() is not None:
            self.close()
        if self._player is not None:
            return
        self._place = self._folder / f"network-{os.getpid()}-{secrets.token_hex(3)}{PARTIAL_SUFFIX}"
        try:
            self._place.mkdir(mode=0o700, parents=True)
        except OSError as error:
            raise disk_error("cannot make a folder for the network", error) from error
        name = self._place.name.removesuffix(PARTIAL_SUFFIX)  # by which `clean` sees that it is alive
        self._player = _Player(self._module, [KEEP, str(self._place)], name)

    def play(self, paths: RunPaths, run_id: str, on_event: OnEvent | None) -> str:
        """See ``Stage``."""
        try:
            self.prepare()
            player = self._player
            assert player is not None
            is_over = player.play(RunOrder(run_id=run_id, directory=str(paths.root)), on_event)
        except BaseException:
            self.close()
            raise
        cgroups.remove_of_run(run_id)
        if is_over:
            return ""
        how = player.ended(paths)
        self.close()
        return how

    def close(self) -> None:
        """See ``Stage``."""
        player, self._player = self._player, None
        place, self._place = self._place, None
        if player is not None:
            player.end()
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


class _Player:
    """A process that plays, waiting for orders in its private root. A context manager that ends it."""

    def __init__(self, module: str, arguments: list[str], name: str | None = None) -> None:
        # what it says outside of its runs; within one it writes into the run's own log
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by end()
        try:
            self.root = private_root.start(
                # the last argument says nothing: forked programs show their command lines in its place
                [sys.executable, "-m", module, *arguments, "-" * ROOM],
                run_id=name,
                stdin=PIPE,
                stdout=PIPE,
                stderr=self._log,
                env=_environment(),
                cwd=CHECKOUT,
            )
        except BaseException:
            self._log.close()
            raise
        self._guard = Guard(self.root)
        assert self.root.process.stdin is not None
        assert self.root.process.stdout is not None
        self._stdin, self._stdout = self.root.process.stdin, self.root.process.stdout

    def play(self, order: RunOrder, on_event: OnEvent | None) -> bool:
        """Give the order and tell of its events; whether the run came to its end."""
        try:
            self._stdin.write(msgspec.json.encode(order) + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            return False
        with self._guard:
            for line in iter(self._stdout.readline, b""):
                if line.startswith(OVER):
                    return True
                _tell(line, on_event)
        return False

    def ended(self, paths: RunPaths) -> str:
        """Wait for its end; returns how it came. What it said outside of a run goes into its log."""
        status = self.root.wait()
        self._log.seek(0)
        with contextlib.suppress(OSError), (paths.logs / LOG).open("ab") as log:
            shutil.copyfileobj(self._log, log)
        return self._guard.describe_end(status, paths.logs / LOG)

    def end(self) -> None:
        """End it at once: its namespaces take all with them."""
        self.root.kill()
        for stream in (self._stdin, self._stdout):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def _environment() -> dict[str, str]:
    # a server in an OCI container finds this checkout by it only, however the tool itself was started
    python_path = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": python_path}


def _tell(line: bytes, on_event: OnEvent | None) -> None:
    if on_event is None:
        return
    with contextlib.suppress(msgspec.DecodeError):  # not an event: a library's print
        on_event(msgspec.json.decode(line, type=Event))
