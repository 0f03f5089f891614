"""``--network keep`` as its user: each run has its own files; an accident costs a network, not the sweep."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from quicferry.errors import StoreError
from quicferry.paths import CHECKOUT
from quicferry.process import PIPE, Popen, run, spawn
from quicferry.record import Manifest, RunPaths, read_manifest
from tests.e2e.experiment.test_sweep import SCENARIO

pytestmark = pytest.mark.needs("netns", "veth", "shaped-link", "mininet", "tshark")


def words(tmp_path: Path, repetitions: int) -> list[str]:
    (tmp_path / "two.toml").write_text(f"repetitions = {repetitions}\n{SCENARIO}")
    argv = [sys.executable, "-m", "cli.main", "sweep", str(tmp_path / "two.toml"), "--json"]
    return [*argv, "-o", str(tmp_path / "sweep"), "--network", "keep"]


def manifests(store: Path) -> list[Manifest]:
    return [read_manifest(path.parent) for path in sorted(store.glob("2*/manifest.json"))]


def test_runs_share_a_network_and_nothing_else(tmp_path: Path) -> None:
    done = run(words(tmp_path, 1), cwd=CHECKOUT, timeout_s=120)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["outcome"] for result in results] == ["succeeded", "succeeded"]
    store = tmp_path / "sweep"
    first, second = manifests(store)
    assert (first.network_run, second.network_run) == (1, 2)
    assert first.topology == second.topology
    digests = set()
    for manifest in (first, second):
        paths = RunPaths(store / manifest.id)
        # captures, secrets, journals and counters are those of this run
        assert {path.stem for path in paths.captures.glob("*.pcapng")} == {"client", "edge-1", "edge-2"}
        digests.add(paths.keys.read_text())
        assert not paths.credentials.exists()
        for journal in (paths.root / "journals").glob("*.journal"):
            assert journal.read_text().count('"epoch":1') > 0
            assert '"epoch":2' not in journal.read_text()
        assert json.loads((paths.root / "links" / "cable-stats.json").read_text())["final"]
    assert len(digests) == 2
    # the same number of packets of a handshake: nothing of the first run is in the second's capture
    assert results[1]["requests_sent"] < 1.5 * results[0]["requests_sent"]
    assert not list(store.glob("*.partial"))


@contextmanager
def sweeping(tmp_path: Path, repetitions: int) -> Iterator[Popen[bytes]]:
    """A sweep that goes on; ended with the block, whatever happens."""
    process = spawn(words(tmp_path, repetitions), stdout=PIPE, cwd=CHECKOUT)
    assert process.stdout is not None
    try:
        with process.stdout:
            yield process
    finally:
        process.kill()
        process.wait(10)


def test_a_killed_player_costs_one_run_and_its_network(tmp_path: Path) -> None:
    store = tmp_path / "sweep"
    with sweeping(tmp_path, 2) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["outcome"] == "succeeded"
        wait_for_a_run(store)
        os.kill(the_player(process.pid), signal.SIGKILL)
        rest = [json.loads(line) for line in process.stdout]
    assert [result["outcome"] for result in rest] == ["failed", "succeeded", "succeeded"]
    assert "was killed by SIGKILL" in rest[0]["error"]
    assert [manifest.network_run for manifest in manifests(store)][-2:] == [1, 2]
    assert not list(store.glob("*.partial"))


def test_nothing_stays_after_sigkill_of_the_tool(tmp_path: Path) -> None:
    with sweeping(tmp_path, 1) as process:
        wait_for_a_run(tmp_path / "sweep")
        inside = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait(10)
    assert inside
    _, alive = psutil.wait_procs(inside, timeout=5)
    assert alive == []


def the_player(tool: int) -> int:
    """The process that plays: the one whose command line says to keep, and that is no wrapper of it."""
    found = [
        process.pid
        for process in psutil.Process(tool).children(recursive=True)
        if process.cmdline()[1:4] == ["-m", "session.play", "--keep"]
    ]
    assert found
    return int(found[0])


def wait_for_a_run(store: Path) -> None:
    """Wait until the next run's server, agents and captures are there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for path in store.glob("2*.partial"):
            try:
                if read_manifest(path).outcome == "running" and list(path.glob("captures/*.pcapng")):
                    return
            except StoreError:
                continue  # not written yet
        time.sleep(0.02)
    raise AssertionError("no second run began")
