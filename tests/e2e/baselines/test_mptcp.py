"""MPTCP in the emulated network: the kernel's own, judged from the captures and by tshark."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.baselines.runs import perform

pytestmark = pytest.mark.needs("mininet", "tcpdump", "tshark", "mptcp")
RTT_MS = 18.0
#: events and packets are stamped by different processes, each a little off the moment itself
EARLY_MS = 1.0
JOIN, ADD_ADDR, REMOVE_ADDR = "1", "3", "4"  # subtypes of the MPTCP option (RFC 8684 §8)


def test_the_namespace_moves_and_the_subflows_follow(tmp_path: Path) -> None:
    run = perform(tmp_path, "mptcp", "--downtime-ms", "120", "--download-mib", "1", "--after-s", "1.5")
    result = run.result
    assert result["container_downtime_ms"] > 120 - EARLY_MS
    assert result["service_migration_time_ms"] > 120 - EARLY_MS
    assert result["bytes_verified"] > 1 << 20
    # unplugged first, then plugged in, announced, joined, and only then the old address withdrawn
    order = ["address.detached", "address.attached", "server.resumed", "address.announced"]
    order += ["address.joined", "address.withdrawn"]
    assert [event.name for event in run.events if event.name in order] == order
    # from the announcement to the last subflow: ADD_ADDR, SYN, SYN-ACK, ACK
    assert run.at_ms("address.joined") - run.at_ms("address.announced") > 2 * RTT_MS - EARLY_MS
    moments = result["moments_ms"]
    assert moments["resumed"] < moments["add_addr"] <= moments["mp_join"] < moments["remove_addr"]
    # tshark, which knows nothing of us, sees the same
    old, new = (
        str(each).rpartition(":")[0]
        for each in (run.manifest.source_endpoint, run.manifest.destination_endpoint)
    )
    joins = run.tshark(
        "client", f"tcp.options.mptcp.subtype == {JOIN} && tcp.flags.syn == 1 && tcp.flags.ack == 0", "ip.dst"
    )
    joined = next(event.detail["subflows"] for event in run.events if event.name == "address.joined")
    assert joins == [[new]] * joined
    announced = run.tshark(
        "client", f"tcp.options.mptcp.subtype == {ADD_ADDR} && ip.src == {old}", "tcp.options.mptcp.ipv4"
    )
    assert {address for (address,) in announced} == {new}
    assert (
        len(run.tshark("client", f"tcp.options.mptcp.subtype == {REMOVE_ADDR} && ip.src == {new}", "ip.dst"))
        >= joined
    )
    # after that nothing comes from the old address
    late = run.tshark("client", f"ip.src == {old} && tcp.len > 0", "frame.time_epoch")
    first = run.tshark(
        "client", f"tcp.options.mptcp.subtype == {REMOVE_ADDR} && ip.src == {new}", "frame.time_epoch"
    )
    assert float(late[-1][0]) < float(first[0][0]) + 10 * RTT_MS / 1e3


def test_make_before_break_joins_before_the_server_stands_still(tmp_path: Path) -> None:
    run = perform(
        tmp_path, "mptcp", "--downtime-ms", "60", "--mptcp-make-before-break", "--loss-percent", "0.5"
    )
    order = [
        "address.attached",
        "address.announced",
        "address.joined",
        "address.withdrawn",
        "address.detached",
    ]
    order += ["server.frozen", "server.resumed"]
    assert [event.name for event in run.events if event.name in order] == order
    assert run.result["container_downtime_ms"] > 60 - EARLY_MS
    assert run.manifest.spec.mptcp_make_before_break is True


@pytest.mark.needs("criu")
def test_it_stands_still_as_long_as_the_engine_took_in_the_same_session(tmp_path: Path) -> None:
    run = perform(tmp_path, "mptcp", "--engine", "criu-cold", "--before-s", "0.5", "--after-s", "0.5")
    (words,) = [warning for warning in run.result["warnings"] if "stood still" in warning]
    model = tmp_path / words.rpartition(" ")[2]
    assert model.is_dir()
    spec = run.manifest.spec.downtime_ms
    assert spec is not None and spec > 20
    assert run.result["container_downtime_ms"] > spec - EARLY_MS
