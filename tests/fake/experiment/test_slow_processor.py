"""A run on a slow processor waits longer, and says so."""

from __future__ import annotations

from pathlib import Path

import pytest

import topologies
from quicferry import slowness
from quicferry.emulation.fake import FakeEmulator
from quicferry.experiment import run
from quicferry.experiment.context import RunContext
from quicferry.experiment.store import RunStore
from quicferry.record import Manifest, read_manifest
from quicferry.spec import RunSpec

TOPOLOGY = topologies.get("two_edges").build_from_axes({}, {})


@pytest.mark.parametrize(("slower", "patience_s"), [(1.0, 40.0), (16.5, 660.0)])
def test_what_a_run_waits_for_is_waited_for_as_much_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slower: float, patience_s: float
) -> None:
    seen: list[float] = []

    def play(manifest: Manifest, context: RunContext, make_deployment: object, asks_every_ms: float) -> None:
        seen.append(context.patience_s(40.0))

    monkeypatch.setenv(slowness.VARIABLE, "1")  # what the run announces is taken back at the end
    monkeypatch.setattr(run, "measure", lambda: slower)
    monkeypatch.setattr(run, "_play", play)
    _, paths = RunStore(tmp_path).begin(RunSpec())
    manifest = Manifest(id="one", created="", spec=RunSpec(), topology=TOPOLOGY, outcome="succeeded")
    run.perform(manifest, paths, FakeEmulator(), lambda context: pytest.fail("nothing is deployed"))
    assert seen == [patience_s]
    said = [warning for warning in read_manifest(paths.root).warnings if "times slower than usual" in warning]
    assert [warning.split(" times")[0] for warning in said] == ["this processor is 16.5"] * (slower > 1)
