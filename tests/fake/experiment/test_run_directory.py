"""What becomes of a run whose directory does not stay as it was made."""

from __future__ import annotations

import shutil
from pathlib import Path

import topologies
from quicferry.experiment import run
from quicferry.experiment.store import RunStore
from quicferry.record import Manifest
from quicferry.spec import RunSpec

TOPOLOGY = topologies.get("two_edges").build_from_axes({}, {})


def judged(tmp_path: Path, *, remove: bool) -> Manifest:
    _, paths = RunStore(tmp_path).begin(RunSpec())
    manifest = Manifest(id="one", created="", spec=RunSpec(), topology=TOPOLOGY, outcome="succeeded")
    if remove:
        shutil.rmtree(paths.root)
    run._tell_of_directory(manifest, paths)
    run._write_down(manifest, paths, [])
    assert paths.manifest.is_file(), "how it ended is written down in any case"
    return manifest


def test_a_directory_that_was_removed_is_why_the_run_failed(tmp_path: Path) -> None:
    manifest = judged(tmp_path, remove=True)
    assert manifest.outcome == "failed"
    assert manifest.error == "the run directory was removed during the run"
    assert "quicferry clean" in str(manifest.hint)


def test_a_directory_that_is_there_says_nothing(tmp_path: Path) -> None:
    assert judged(tmp_path, remove=False).outcome == "succeeded"
