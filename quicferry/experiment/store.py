"""Keeps runs: one directory each, written under ``<id>.partial`` and renamed when complete."""

from __future__ import annotations

import datetime
import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from quicferry.emulation.sandbox.ownership import PARTIAL_SUFFIX
from quicferry.errors import StoreError, disk_error
from quicferry.paths import RUNS
from quicferry.record import RunPaths
from quicferry.spec import RunSpec

#: Room that a run keeps for itself until its end: how it ended can be written down on a full disk, too.
RESERVE_BYTES = 256 << 10
RESERVE = ".reserve"
HIDDEN = Path("/run")  # what is there cannot be seen from within a private root

#: The ``runs`` folder of the checkout, unless the environment names another.
ROOT_VARIABLE = "QUICFERRY_RUNS"


def free_reserve(paths: RunPaths) -> None:
    """Give back the room that the run kept, for the files that say how it ended."""
    with suppress(OSError):
        (paths.root / RESERVE).unlink(missing_ok=True)


class RunStore:
    """A folder of runs. ``root`` is made when the first run begins."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = (root or Path(os.environ.get(ROOT_VARIABLE) or RUNS)).resolve()

    def begin(self, spec: RunSpec) -> tuple[str, RunPaths]:
        """Make a new, partial run directory; returns its id and paths. Raises ``StoreError``."""
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        if self.root.is_relative_to(HIDDEN):
            raise StoreError(
                f"runs cannot be kept in {self.root}: a run has a {HIDDEN} of its own",
                hint="give another folder with --runs",
            )
        name = f"{stamp}-{spec.baseline or spec.strategy}-{spec.engine}-{secrets.token_hex(3)}"
        paths = RunPaths(self.root / f"{name}{PARTIAL_SUFFIX}")
        try:
            paths.root.mkdir(parents=True)
            for folder in (paths.captures, paths.logs, paths.derived):
                folder.mkdir()
            paths.secrets.mkdir(mode=0o700)
            (paths.root / RESERVE).write_bytes(bytes(RESERVE_BYTES))
        except OSError as error:
            shutil.rmtree(paths.root, ignore_errors=True)
            raise disk_error("cannot make a run directory", error) from error
        return name, paths

    def complete(self, paths: RunPaths) -> RunPaths:
        """Give a partial run its final name; whatever its outcome, it is kept. Raises ``StoreError``."""
        free_reserve(paths)
        final = paths.root.with_name(paths.root.name.removesuffix(PARTIAL_SUFFIX))
        try:
            paths.root.rename(final)
        except OSError as error:
            raise disk_error("cannot complete the run directory", error) from error
        return RunPaths(final)

    def all(self) -> list[Path]:
        """The complete runs, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted(
            path
            for path in self.root.iterdir()
            if not path.name.endswith(PARTIAL_SUFFIX) and (path / "manifest.json").is_file()
        )

    def find(self, name: str) -> Path:
        """The run of that id, or the only one whose id contains ``name``. Raises ``StoreError``."""
        runs = self.all()
        exact = [path for path in runs if path.name == name]
        some = exact or [path for path in runs if name in path.name]
        if len(some) == 1:
            return some[0]
        if not some:
            raise StoreError(
                f"no run {name!r} in {self.root}", hint="`quicferry runs list` shows what there is"
            )
        raise StoreError(
            f"{name!r} may be any of {len(some)} runs", hint=f"give more of the id, e.g. {some[-1].name}"
        )
