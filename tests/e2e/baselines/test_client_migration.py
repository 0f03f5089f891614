"""A client that moves, RFC 9000 §9: judged from its capture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.baselines.runs import perform

RTT_MS = 18.0


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_the_client_goes_on_from_its_second_address(tmp_path: Path) -> None:
    run = perform(tmp_path, "client-migration", "--download-mib", "2", "--rate-mbps", "20")
    result = run.result
    # nobody was away: the time without service is that between two packets
    assert result["container_downtime_ms"] is None
    assert result["service_migration_time_ms"] < 10 * RTT_MS
    assert result["log_service_migration_time_ms"] == pytest.approx(
        result["service_migration_time_ms"], abs=RTT_MS
    )
    assert result["rtt_ms"] == pytest.approx(RTT_MS, abs=RTT_MS / 2)
    changed = next(event for event in run.events if event.name == "client.address.changed")
    old, new = (str(changed.detail[each]).rpartition(":")[0] for each in ("old", "new"))
    assert old != new
    assert "server.frozen" not in [event.name for event in run.events]
    # a new connection ID from the new address (§9.5), and no packet from the old one after the change
    sent = run.tshark("client", f"udp.dstport == 4433 && ip.src == {new}", "frame.time_epoch", "quic.dcid")
    before = run.tshark("client", f"udp.dstport == 4433 && ip.src == {old}", "frame.time_epoch", "quic.dcid")
    assert float(before[-1][0]) <= float(sent[0][0])
    assert len(sent) > 20
