"""The example package, installed as a user would: all that it brings is listed, runs and is measured."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from quicferry.paths import CHECKOUT
from quicferry.process import run

EXAMPLE = CHECKOUT / "docs" / "examples" / "plugin"
PAUSE_MS = 150.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package."""
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(EXAMPLE, folder / "source")  # a build leaves files beside its sources
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    run([*pip, "--target", str(folder / "site"), str(source)], timeout_s=120.0)
    return folder / "site"


def quicferry(site: Path, *arguments: str, status: int = 0) -> str:
    """What the command prints with the package installed."""
    done = run(
        [str(CHECKOUT / "bin" / "quicferry"), *arguments],
        env={**os.environ, "PYTHONPATH": str(site), "QUICFERRY_EXAMPLE_PAUSE_MS": str(PAUSE_MS)},
        check=False,
        timeout_s=120.0,
    )
    assert done.status == status, done.stderr
    return done.stdout


def performed(site: Path, runs: Path, *arguments: str) -> dict[str, Any]:
    """The result of a run."""
    printed = quicferry(site, "run", "--json", "--runs", str(runs), *arguments)
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    assert (result["outcome"], result["requests_lost"], result["state_ok"]) == ("succeeded", 0, True)
    return result


def test_all_that_it_brings_is_named(site: Path) -> None:
    words = quicferry(site, "run", "--help").split()
    for name in ("handoff-paused", "announced-symmetric", "tcp-dns-hasty"):
        assert any(name in word for word in words), name
    assert "far_edge" in quicferry(site, "topo", "list")


@pytest.mark.needs("mininet", "tshark")
def test_engine_strategy_topology_and_workload_make_a_run_together(site: Path, tmp_path: Path) -> None:
    result = performed(
        site,
        tmp_path,
        *("--engine", "handoff-paused", "--strategy", "announced-symmetric"),
        *("--topology", "far_edge", "--workload", "poisson"),
    )
    assert (result["strategy"], result["engine"]) == ("announced-symmetric", "handoff-paused")
    assert (result["topology"], result["spec"]["workload"]) == ("far_edge", "poisson")
    assert result["container_downtime_ms"] >= PAUSE_MS
    # the server speaks first: what is left is half a round trip and the machine's noise, not a probe timeout
    assert result["connection_overhead_ms"] is not None


@pytest.mark.needs("mininet", "tshark", "dns")
def test_its_baseline_is_measured_like_ours(site: Path, tmp_path: Path) -> None:
    result = performed(site, tmp_path, "--baseline", "tcp-dns-hasty", "--workload", "bursts")
    assert (result["kind"], result["strategy"]) == ("baseline", "tcp-dns-hasty")
    assert result["service_migration_time_ms"] > 0
    refused = quicferry(
        site, "run", "--json", "--baseline", "tcp-dns-hasty", "--request-timeout-ms", "500", status=2
    )
    assert "does not read request_timeout_ms" in json.loads(refused)["error"]
