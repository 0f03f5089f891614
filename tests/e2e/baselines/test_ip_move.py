"""The service's address moves with its server: judged from the captures of client and edges."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from baselines.ip_move.deployment import SERVICE_ADDRESS
from tests.e2e.baselines.runs import Performed, command, perform

RTT_MS = 18.0


def assert_the_route_followed(run: Performed) -> None:
    """The address left the source, and packets for it reach the other edge after the route has changed."""
    at = run.at_ms
    # after the freeze: what its kernel has acknowledged moves with the process
    assert 0 < at("address.detached") < at("server.resumed") < at("route.updated")
    updated = next(event for event in run.events if event.name == "route.updated")
    assert (updated.vantage, updated.detail["gateway"]) == ("core", "10.0.2.2")
    # half a round trip from the destination to the core, from shortly before the event's own stamp
    assert RTT_MS / 2 - 1 < at("route.updated") - at("route.update.sent") < 10 * RTT_MS
    arrivals = {
        host: [float(row[0]) for row in run.tshark(host, f"ip.dst == {SERVICE_ADDRESS}", "frame.time_epoch")]
        for host in ("edge-1", "edge-2")
    }
    # what was underway when the route changed still comes to the source
    assert max(arrivals["edge-1"]) < min(arrivals["edge-2"]) + 10 * RTT_MS / 1e3
    assert min(len(each) for each in arrivals.values()) > 20


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_stock_quic_goes_on_at_the_same_address(tmp_path: Path) -> None:
    run = perform(tmp_path, "ip-move-quic", "--engine", "handoff", "--seed", "2")
    assert_the_route_followed(run)
    assert run.manifest.source_endpoint == run.manifest.destination_endpoint == f"{SERVICE_ADDRESS}:4433"
    senders = run.tshark("client", "udp.srcport == 4433 && !icmp", "ip.src")
    assert {row[0] for row in senders} == {SERVICE_ADDRESS}
    result = run.result
    assert result["service_migration_time_ms"] > RTT_MS / 2
    assert result["connection_overhead_ms"] > 0
    assert result["rtt_ms"] == pytest.approx(RTT_MS, abs=RTT_MS / 2)


@pytest.mark.needs("mininet", "tcpdump", "tshark", "criu")
def test_tcp_connections_live_on_with_their_tls_in_the_middle_of_transfers(tmp_path: Path) -> None:
    arguments = ("--engine", "criu-cold", "--download-mib", "3", "--upload-mib", "1", "--before-s", "0.4")
    run = perform(tmp_path, "ip-move-tcp", *arguments, "--rate-mbps", "50", "--after-s", "2")
    assert_the_route_followed(run)
    assert run.result["bytes_verified"] > 4 << 20
    assert run.result["requests_repeated"] == 0
    # not one new connection after the freeze, not one reset, no FIN before the client says goodbye
    moved = run.at_ms("server.resumed")
    opened = [event for event in run.events if event.name == "client.tcp.connecting"]
    frozen = next(event.t_ns for event in run.events if event.name == "server.frozen")
    assert opened and max(event.t_ns for event in opened) < frozen
    assert moved > 20
    assert (
        run.tshark("client", "tcp.port == 4433 && tcp.flags.reset == 1 && ip.dst == 10.0.0.2", "ip.src") == []
    )


def test_an_engine_that_cannot_take_tcp_along_is_unsupported_with_the_reason(tmp_path: Path) -> None:
    done = command(tmp_path, "--baseline", "ip-move-tcp", "--engine", "handoff")
    assert done.status == 127
    result = json.loads(done.stdout)
    assert (result["outcome"], result["strategy"]) == ("unsupported", "ip-move-tcp")
    assert "--tcp-established" in done.stderr
    assert "criu-cold" in done.stderr
    assert list(tmp_path.iterdir()) == []
