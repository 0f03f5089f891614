"""Several moves of one connection in one run, to and fro: each is measured, and nothing grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.soak import MOST_CONNECTION_IDS
from quicferry import process
from quicferry.paths import CHECKOUT
from quicferry.record import read_manifest


def moves(tmp_path: Path, count: int, *arguments: str) -> dict[str, Any]:
    done = process.run(
        [
            *(CHECKOUT / "bin" / "quicferry", "run", "--json", "--runs", tmp_path),
            *("--moves", str(count), "--before-s", "0.4", "--after-s", "0.4", *arguments),
        ],
        check=False,
        timeout_s=300.0,
        cwd=Path("/"),
    )
    assert done.status == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def assert_sound(result: dict[str, Any], count: int) -> None:
    assert result["outcome"] == "succeeded"
    assert (result["requests_lost"], result["requests_duplicated"], result["state_ok"]) == (0, 0, True)
    assert [move["number"] for move in result["moves"]] == list(range(1, count + 1))
    ends = [(move["source"], move["destination"]) for move in result["moves"]]
    assert ends == [ends[0], ends[0][::-1]] * (count // 2)
    for move in result["moves"]:
        assert move["service_migration_time_ms"] > move["container_downtime_ms"] - result["rtt_asked_ms"]
        assert move["service_migration_time_ms"] > 0
        assert move["container_downtime_ms"] > 0
    assert result["served_by"] == "source"  # an even number of moves
    assert not [warning for warning in result["warnings"] if "grew" in warning or "nonce" in warning]
    assert {usage["process"] for usage in result["usage"]} >= {"client", "server", "agent-edge-1"}
    assert result["connection_ids"] <= MOST_CONNECTION_IDS


@pytest.mark.needs("mininet", "tcpdump", "tshark")
@pytest.mark.parametrize("strategy", ["proactive-explicit", "symmetric"])
def test_a_connection_is_handed_to_and_fro(tmp_path: Path, strategy: str) -> None:
    count = 12 if strategy == "proactive-explicit" else 4
    assert_sound(moves(tmp_path, count, "--strategy", strategy), count)


@pytest.mark.needs("mininet", "tcpdump", "tshark", "criu")
def test_a_process_is_carried_to_and_fro(tmp_path: Path) -> None:
    assert_sound(moves(tmp_path, 4, "--engine", "criu-cold"), 4)


@pytest.mark.needs("mininet", "tcpdump", "tshark", "oci")
def test_an_oci_container_is_carried_to_and_fro(tmp_path: Path) -> None:
    result = moves(tmp_path, 2, "--engine", "runc-cold", "--no-base-image")
    assert_sound(result, 2)
    assert result["memory_path"] == "dumped by runc with CRIU"
    assert {"runc", "criu"} <= read_manifest(Path(result["run_dir"])).versions.keys()
