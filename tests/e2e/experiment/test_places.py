"""Whole runs on roads and rings, in IPv6, with clients that move, bad links, and what clients really do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quicferry import process
from quicferry.paths import CHECKOUT
from quicferry.record import read_manifest

pytestmark = pytest.mark.needs("mininet", "tcpdump", "tshark", "shaped-link")


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    done = process.run(
        [
            *(CHECKOUT / "bin" / "quicferry", "run", "--json", "--runs", tmp_path),
            *("--before-s", "0.6", "--after-s", "0.6", *arguments),
        ],
        check=False,
        timeout_s=180.0,
        cwd=Path("/"),
    )
    assert done.status == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert result["outcome"] == "succeeded"
    assert (result["requests_lost"], result["requests_duplicated"], result["state_ok"]) == (0, 0, True)
    return result


def test_a_server_goes_round_three_edges_along_a_road_with_both_ip_versions(tmp_path: Path) -> None:
    result = run(
        tmp_path, *("--topology", "chain,edges=3", "--ip", "dual", "--moves", "3", "--route", "round")
    )
    ends = [(move["source"], move["destination"]) for move in result["moves"]]
    a, b, c = (f"[fd00:a:0:{number}::2]:4433" for number in (1, 2, 3))
    assert ends == [(a, b), (b, c), (c, a)]
    assert result["served_by"] == "source"
    assert all(move["service_migration_time_ms"] > 0 for move in result["moves"])


def test_a_client_and_its_server_move_at_the_same_moment(tmp_path: Path) -> None:
    result = run(tmp_path, "--topology", "ring", "--mobility", "together", "--strategy", "symmetric")
    manifest = read_manifest(Path(result["run_dir"]))
    assert manifest.client_stops == ["10.1.1.2", "10.1.2.2"]
    assert result["served_by"] == "destination"
    assert result["service_migration_time_ms"] >= result["container_downtime_ms"]


def test_a_client_that_moves_alone_keeps_its_connection(tmp_path: Path) -> None:
    result = run(tmp_path, "--topology", "chain", "--mobility", "alone", "--ip", "6")
    assert result["container_downtime_ms"] is None
    assert 0 < result["service_migration_time_ms"] < 5000


def test_many_clients_do_different_things_over_bad_links_of_their_own(tmp_path: Path) -> None:
    trace = CHECKOUT / "docs" / "examples" / "cell.trace"
    result = run(
        tmp_path,
        *("--clients", "3", "--access", "own", "--load", "own", "--workload", "push+video+game"),
        *("--rate-trace", str(trace), "--loss-percent", "2", "--loss-burst-packets", "3"),
        *("--duplicate-percent", "2", "--corrupt-percent", "1", "--reorder-percent", "1"),
        *("--flap", "up@0.2+0.05", "--ip", "6", "--bit-rate-mbps", "1"),
    )
    assert result["clients"] == 3
    assert result["datagrams_sent"] >= result["datagrams_received"] > 0
    assert result["clients_service_migration_ms"]["clients"] >= 2
    links = {
        (reading.sender, reading.receiver): reading.read_back
        for reading in read_manifest(Path(result["run_dir"])).links
    }
    for name in ("client", "client-2", "client-3"):
        assert links[name, "access"]["outage_packets"] > 0, name
        assert links["access", name]["outage_packets"] == 0, name
    of_accesses = [
        read_back for (sender, receiver), read_back in links.items() if "access" in (sender, receiver)
    ]
    for what in ("duplicated_packets", "corrupted_packets", "lost_packets"):
        assert sum(read_back.get(what, 0) for read_back in of_accesses) > 0, what


@pytest.mark.needs("dns")
def test_tcp_finds_its_server_twice_by_names_in_ipv6(tmp_path: Path) -> None:
    result = run(tmp_path, *("--baseline", "tcp-dns", "--ip", "6", "--moves", "2", "--clients", "2"))
    assert [move["number"] for move in result["moves"]] == [1, 2]
    assert result["clients"] == 2
