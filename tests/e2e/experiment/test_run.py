"""``quicferry run`` as its user: real processes, real moves, judged from what it prints and keeps."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from quicferry import process
from quicferry.events import read_events
from quicferry.paths import CHECKOUT
from quicferry.record import RunPaths, read_manifest
from quicferry.strategies import Strategy

ENGINES = [
    pytest.param("handoff", marks=pytest.mark.needs("mininet", "tcpdump", "tshark")),
    pytest.param("criu-cold", marks=pytest.mark.needs("mininet", "tcpdump", "tshark", "criu")),
]
REQUIRED = {
    *("outcome", "strategy", "engine", "seed", "link_backend", "rtt_ms", "service_migration_time_ms"),
    *("container_downtime_ms", "connection_overhead_ms", "log_service_migration_time_ms"),
    *("transferred_bytes", "requests_sent", "requests_lost", "requests_duplicated", "bytes_verified"),
    *("state_ok", "run_dir"),
}


def quicferry(*arguments: str, timeout_s: float = 120.0) -> process.Result:
    return process.run(
        [CHECKOUT / "bin" / "quicferry", *arguments], check=False, timeout_s=timeout_s, cwd=Path("/")
    )


def run(tmp_path: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    done = quicferry("run", "--json", "--runs", str(tmp_path), *arguments)
    assert done.status == status, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done.stdout
    result: dict[str, Any] = json.loads(lines[0])
    return result


def assert_sound(result: dict[str, Any]) -> None:
    """What every successful run must have."""
    assert result["outcome"] == "succeeded", result
    assert set(result) >= REQUIRED
    assert result["requests_lost"] == 0
    assert result["requests_duplicated"] == 0
    assert result["state_ok"] is True
    assert result["bytes_verified"] > 0
    assert result["requests_sent"] > 50
    assert result["transferred_bytes"] > 0
    # what was sent directly before the freeze is still on its way, for half a round trip or more
    assert result["service_migration_time_ms"] > result["container_downtime_ms"] - result["rtt_asked_ms"]
    assert result["service_migration_time_ms"] > 0
    assert result["container_downtime_ms"] > 0
    assert result["connection_overhead_ms"] > 0
    assert not [w for w in result["warnings"] if "nonce" in w], result["warnings"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("strategy", list(Strategy))
def test_the_server_moves(tmp_path: Path, strategy: Strategy, engine: str) -> None:
    result = run(tmp_path, "--strategy", strategy, "--engine", engine, "--seed", "5")
    assert_sound(result)
    assert (result["strategy"], result["engine"], result["seed"]) == (strategy, engine, 5)
    directory = Path(result["run_dir"])
    assert directory.parent == tmp_path
    paths, manifest = RunPaths(directory), read_manifest(directory)
    names = [event.name for event in read_events(paths.events)]
    for name in ("server.frozen", "server.resumed", "client.switched", "server.committed"):
        assert name in names
    assert manifest.link_backend == result["link_backend"] in ("cable", "netem")
    assert {path.name for path in paths.captures.iterdir()} >= {"client.pcapng", "edge-1.pcapng"}
    assert paths.keys.stat().st_mode & 0o077 == 0
    assert (paths.derived / "timeline.png").stat().st_size > 10_000
    assert not list(directory.rglob("*.key.pem"))


@pytest.mark.needs("mininet", "tcpdump", "tshark", "criu")
@pytest.mark.parametrize("engine", ["handoff", "criu-cold"])
def test_transfers_cross_the_move_intact_under_loss(tmp_path: Path, engine: str) -> None:
    result = run(
        tmp_path,
        *("--engine", engine, "--strategy", "symmetric", "--server-first", "--loss-percent", "1"),
        *("--download-mib", "4", "--upload-mib", "2", "--before-s", "0.3", "--memory-mib", "10"),
        *("--interval-ms", "20"),
    )
    assert result["outcome"] == "succeeded", result
    assert (result["requests_lost"], result["requests_duplicated"]) == (0, 0)
    assert result["state_ok"] is True
    assert result["bytes_verified"] > 6 << 20


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_a_large_pool_with_server_first(tmp_path: Path) -> None:
    result = run(tmp_path, "--strategy", "pool", "--pool", "7", "--server-first")
    assert_sound(result)
    assert result["pool"] == 7


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_back_to_back_requests(tmp_path: Path) -> None:
    result = run(tmp_path, "--interval-ms", "0", "--strategy", "proactive-explicit")
    assert result["outcome"] == "succeeded", result
    assert (result["requests_lost"], result["state_ok"]) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--rtt-ms", "-3"), "rtt"),
        (("--loss-percent", "150"), "loss"),
        (("--topology", "atlantis"), "two_edges"),
        (("--rate-mbps", "0"), "rate"),
        (("--inter-edge-mbps", "0"), "inter_edge"),
        (("--pool", "8"), "pool"),
        (("--interval-ms", "nan"), "interval"),
        (("--memory-mib", "-1"), "memory"),
    ],
)
def test_bad_values_are_refused_before_anything_is_built(
    tmp_path: Path, arguments: tuple[str, ...], word: str
) -> None:
    done = quicferry("run", "--json", "--runs", str(tmp_path), *arguments)
    assert done.status == 2
    result = json.loads(done.stdout)
    assert result["outcome"] == "invalid"
    assert word in done.stderr.replace("-", "_") or word in done.stderr
    assert "hint" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_compare_prints_one_object_per_line_and_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = quicferry(
        *("compare", "--json", "--runs", str(tmp_path / "runs"), "--report", str(page)),
        *("--figures", str(tmp_path / "figures")),
        *("--strategy", "symmetric", "--strategy", "pool", "--engine", "handoff", "--after-s", "0.5"),
    )
    assert done.status == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["strategy"] for result in results] == ["symmetric", "pool"]
    text = page.read_text()
    assert not re.search(r"(src|href)=[\"']?(https?:)?//|url\(http|@import|<script", text)
    assert text.count("data:image/") + text.count("<svg") >= 2
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {"service-migration-time.svg", "delivery-gaps.png"} <= drawn
    listed = quicferry("runs", "list", "--json", "--runs", str(tmp_path / "runs"))
    assert {json.loads(line)["run_dir"] for line in listed.stdout.splitlines()} == {
        result["run_dir"] for result in results
    }


def test_it_runs_on_this_python() -> None:
    assert quicferry("--version").stdout.startswith("quicferry ")
    assert sys.version_info >= (3, 11)


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_a_download_is_resumed_with_care(tmp_path: Path) -> None:
    """What the source knew of the path crosses with the connection; the rate before comes back."""
    arguments = ("--strategy", "symmetric", "--congestion", "careful-resume", "--download-mib", "6")
    result = run(tmp_path, *arguments, "--rtt-ms", "40", "--rate-mbps", "20", "--after-s", "2", "--seed", "6")
    assert_sound(result)
    assert result["spec"]["congestion"] == "careful-resume"
    assert result["goodput_before_mbps"] > 1.0
    assert 0 <= result["goodput_recovered_ms"] < 5_000  # 0: it never fell below 90 %
