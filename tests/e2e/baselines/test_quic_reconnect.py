"""Stock QUIC that reconnects, and the server that stays, in the emulated network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quicferry import process
from quicferry.analysis.breakdown import TOLERANCE_MS
from quicferry.events import read_events
from quicferry.paths import CHECKOUT
from quicferry.record import RunPaths

RTT_MS = 18.0
pytestmark = pytest.mark.needs("mininet", "tcpdump", "tshark", "dns")


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    done = process.run(
        [CHECKOUT / "bin" / "quicferry", "run", "--json", "--runs", tmp_path, *arguments],
        check=False,
        timeout_s=120.0,
    )
    assert done.status == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def assert_sound(result: dict[str, Any]) -> None:
    assert (result["outcome"], result["kind"]) == ("succeeded", "baseline")
    assert (result["requests_lost"], result["requests_duplicated"]) == (0, 0)
    assert result["state_ok"] is True
    assert result["packets_undecrypted"] == 0


@pytest.mark.parametrize(
    ("engine", "early"),
    [("handoff", True), pytest.param("criu-cold", False, marks=pytest.mark.needs("criu"))],
)
def test_the_client_comes_back_on_a_new_connection(tmp_path: Path, engine: str, early: bool) -> None:
    words = ["--tls-resumption"] if early else []
    result = run(tmp_path, "--baseline", "quic-reconnect", "--engine", engine, "--seed", "6", *words)
    assert_sound(result)
    assert result["requests_repeated"] >= 1
    parts, whole = result["parts_ms"], result["service_migration_time_ms"]
    assert list(parts) == ["in-flight", "downtime", "detection", "dns", "quic", "request"]
    assert abs(whole - sum(parts.values())) < TOLERANCE_MS, parts
    assert RTT_MS - 1 < parts["request"] < 30 * RTT_MS
    # without a ticket the handshake takes its round trip; early data leaves in the first flight
    assert early or parts["quic"] > RTT_MS - 1
    events = read_events(RunPaths(Path(result["run_dir"])).events)
    established = [event for event in events if event.name == "client.quic.established"]
    assert [event.detail["early_data"] for event in established][-1] is early
    assert not any(event.name.startswith("client.migration") for event in events)
    assert all(not e.detail["negotiated"] for e in events if e.name == "client.connected")


def test_without_a_move_nothing_is_measured_that_did_not_happen(tmp_path: Path) -> None:
    result = run(tmp_path, "--baseline", "no-migration")
    assert_sound(result)
    for name in ("service_migration_time_ms", "container_downtime_ms", "connection_overhead_ms"):
        assert result[name] is None
    assert result["parts_ms"] == {}
    assert RTT_MS - 1 < result["service_time_ms"] < 30 * RTT_MS
    assert result["largest_gap_ms"] > 0
    events = [event.name for event in read_events(RunPaths(Path(result["run_dir"])).events)]
    assert "server.frozen" not in events
