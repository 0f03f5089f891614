"""TCP with DNS in the emulated network: a real BIND, real engines, judged from the captures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quicferry import process
from quicferry.analysis.breakdown import TOLERANCE_MS
from quicferry.events import Event, read_events
from quicferry.paths import CHECKOUT
from quicferry.record import RunPaths, read_manifest
from tests.e2e.support import in_private_root

RTT_MS = 18.0
ENGINES = [
    pytest.param("handoff", marks=pytest.mark.needs("mininet", "tcpdump", "tshark", "dns")),
    pytest.param("criu-cold", marks=pytest.mark.needs("mininet", "tcpdump", "tshark", "dns", "criu")),
]


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    done = process.run(
        [CHECKOUT / "bin" / "quicferry", "run", "--json", "--runs", tmp_path, *arguments],
        check=False,
        timeout_s=120.0,
    )
    assert done.status == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def names(events: list[Event]) -> list[str]:
    return [event.name for event in events]


def responses(run_dir: Path) -> list[tuple[float, str]]:
    """Every HTTP response in the client's capture as tshark decrypts it: stamp in seconds, sender."""
    paths = RunPaths(run_dir)
    done = process.run(
        [
            *("tshark", "-r", paths.captures / "client.pcapng", "-o", f"tls.keylog_file:{paths.keys}"),
            *("-Y", "http.response.code == 200", "-T", "fields", "-e", "frame.time_epoch", "-e", "ip.src"),
        ]
    )
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return [(float(stamp), source) for stamp, source in rows]


@pytest.mark.parametrize("engine", ENGINES)
def test_every_millisecond_is_explained_and_every_request_answered(tmp_path: Path, engine: str) -> None:
    result = run(tmp_path, "--baseline", "tcp-dns", "--engine", engine, "--dns-ttl-s", "1", "--seed", "5")
    assert (result["outcome"], result["kind"], result["strategy"]) == ("succeeded", "baseline", "tcp-dns")
    assert (result["requests_lost"], result["requests_duplicated"]) == (0, 0)
    assert result["requests_repeated"] >= 1
    assert result["requests_sent"] > 100
    assert result["state_ok"] is True
    assert result["packets_undecrypted"] == 0
    assert result["dns_ttl_s"] == 1
    assert result["rtt_ms"] == pytest.approx(RTT_MS, abs=RTT_MS / 2)
    assert result["transferred_bytes"] > 0

    parts, whole = result["parts_ms"], result["service_migration_time_ms"]
    assert list(parts) == ["in-flight", "downtime", "detection", "dns", "tcp", "tls", "request"]
    assert abs(whole - sum(parts.values())) < TOLERANCE_MS, parts
    assert parts["downtime"] == pytest.approx(result["container_downtime_ms"], abs=1e-3)
    for name in ("tcp", "tls", "request"):  # one round trip each
        assert RTT_MS - 1 < parts[name] < 30 * RTT_MS, parts
    assert parts["dns"] < 1000 + 2000  # the TTL, and the attempt that was under way

    run_dir = Path(result["run_dir"])
    events = read_events(RunPaths(run_dir).events)
    update = [event for event in events if event.name == "dns.update.done"]
    assert [event.detail["rcode"] for event in update] == ["NOERROR"]
    resumed = next(event for event in events if event.name == "server.resumed")
    assert update[0].t_ns > resumed.t_ns
    lost = [event for event in events if event.name == "client.connection.lost"]
    assert {event.detail["reason"] for event in lost} <= {"reset", "eof"}
    if result["container_downtime_ms"] < 100:
        assert "client.connect.failed" in names(events)  # the cache held the old address for a while
    assert read_manifest(run_dir).versions
    assert not list(run_dir.rglob("*.key"))  # the TSIG secret goes with the run

    # tshark sees the same gap in the same capture
    seen = responses(run_dir)
    assert len(seen) == result["requests_sent"]
    first_new = min(stamp for stamp, source in seen if source == "10.0.2.2")
    last_old = max(stamp for stamp, source in seen if source == "10.0.1.2")
    assert (first_new - last_old) * 1e3 == pytest.approx(whole, abs=0.01)


@pytest.mark.needs("mininet", "tcpdump", "tshark", "dns")
def test_transfers_and_losses_and_a_name_that_is_not_cached(tmp_path: Path) -> None:
    result = run(
        tmp_path,
        *("--baseline", "tcp-dns", "--engine", "handoff", "--dns-ttl-s", "0", "--tls-resumption"),
        *("--download-mib", "3", "--upload-mib", "1", "--loss-percent", "1", "--seed", "3"),
    )
    assert result["outcome"] == "succeeded"
    assert (result["requests_lost"], result["requests_duplicated"]) == (0, 0)
    assert result["state_ok"] is True
    assert result["bytes_verified"] > 4 << 20
    assert not [warning for warning in result["warnings"] if "not verified" in warning]
    events = read_events(RunPaths(Path(result["run_dir"])).events)
    assert not any(event.detail["cached"] for event in events if event.name == "client.resolved")
    assert sum(result["parts_ms"].values()) == pytest.approx(
        result["service_migration_time_ms"], abs=TOLERANCE_MS
    )


#: One client, one server and a path that swallows whatever the server should get: nobody is told.
CUT = """
import asyncio, time
from pathlib import Path
from baselines.tcp_dns.config import TcpClientConfig
from quicferry.process import run
from tests.baseline_support import EDGES, loopback_run

async def play():
    async with loopback_run(Path(ARGUMENTS), ttl_s=0) as it:
        for edge in (1, 2):
            await it.server(edge, "baselines.tcp_dns.server")
        await it.client("baselines.tcp_dns.client", TcpClientConfig, tcp_user_timeout_ms=400.0,
                        request_timeout_ms=20_000.0)
        await it.until("client.response.received", 5)
        run(["nft", "add table ip cut; add chain ip cut input { type filter hook input priority 0; };"
             f" add rule ip cut input ip daddr {EDGES[0]} tcp dport {it.addresses[0].port} drop"])
        cut_ns = time.monotonic_ns()
        lost = await it.until("client.connection.lost")
        run(["nft", "delete table ip cut"])
        await it.until("client.response.received", 5)
        summary = await it.finish()
        return {"reason": lost.detail["reason"], "after_ms": (lost.t_ns - cut_ns) / 1e6,
                "lost": summary.requests_lost, "twice": summary.requests_duplicated}

report(asyncio.run(play()))
"""


@pytest.mark.needs("netns")
def test_tcps_own_time_out_ends_a_connection_on_a_path_that_is_cut(tmp_path: Path) -> None:
    seen = in_private_root(CUT, tmp_path, arguments=str(tmp_path))
    assert seen["reason"] == "timeout"
    assert 399 <= seen["after_ms"] < 15_000, "not the request's time-out of 20 s"
    assert (seen["lost"], seen["twice"]) == (0, 0)
