"""A real sweep that is killed in the middle of a run, and goes on."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from quicferry.paths import CHECKOUT
from quicferry.process import PIPE, run, spawn

SCENARIO = """
warm_up = 0
[run]
engine = "handoff"
before_s = 0.2
after_s = 0.2
[sweep]
strategy = ["symmetric", "proactive-explicit"]
"""


@pytest.mark.needs("netns", "veth", "shaped-link", "mininet", "tshark")
def test_a_sweep_goes_on_after_sigkill(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text(SCENARIO)
    store = tmp_path / "sweep"
    words = [
        sys.executable,
        "-m",
        "cli.main",
        "sweep",
        str(tmp_path / "two.toml"),
        "-o",
        str(store),
        "--json",
    ]
    process = spawn(words, stdout=PIPE, stderr=PIPE, cwd=CHECKOUT)
    assert process.stdout is not None
    assert process.stderr is not None
    with process.stdout, process.stderr:
        assert json.loads(process.stdout.readline())["outcome"] == "succeeded"
        deadline = time.monotonic() + 60
        while not list(store.glob("*.partial")) and time.monotonic() < deadline:
            time.sleep(0.02)  # until the second run has begun
        process.kill()
        process.wait(10)
    assert len(list(store.glob("*/manifest.json"))) >= 1
    again = run([*words, "--resume"], cwd=CHECKOUT, timeout_s=120)
    (line,) = again.stdout.splitlines()
    assert json.loads(line)["outcome"] == "succeeded"
    table = pl.read_parquet(store / "table.parquet")
    assert sorted(table["strategy"]) == ["proactive-explicit", "symmetric"]
    assert (table["service_migration_time_ms"] > 0).all()
    assert (table["state_ok"]).all()
