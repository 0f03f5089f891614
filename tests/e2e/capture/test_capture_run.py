"""The captures of a real move: complete, on one clock, and read alike by tshark and by us."""

from __future__ import annotations

import json
import re
from pathlib import Path

import polars as pl
import pytest

from quicferry import process
from quicferry.analysis.analyse import analyse
from quicferry.capture.capture import read_counts
from quicferry.capture.clock import ClockConversion
from quicferry.capture.merge import tshark_streams
from quicferry.capture.pcap import UDP, read_datagrams
from quicferry.capture.quic import Decryptor, TrafficTable, read_keylog, read_traffic
from quicferry.paths import CHECKOUT
from quicferry.record import RunPaths, read_manifest

pytestmark = pytest.mark.needs("mininet", "tshark")
ONE_WAY_MS = 9.0


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("store")
    words = ["run", "--json", "--runs", store, "--strategy", "symmetric", "--engine", "handoff"]
    done = process.run([CHECKOUT / "bin" / "quicferry", *words, "--rtt-ms", "18"], timeout_s=120.0)
    return Path(json.loads(done.stdout)["run_dir"])


def traffic(run_dir: Path, host: str, decryptor: Decryptor) -> TrafficTable:
    manifest = read_manifest(run_dir)
    convert = ClockConversion(manifest.clock, 0, 1)
    capture = RunPaths(run_dir).captures / f"{host}.pcapng"
    return read_traffic(capture, decryptor, port=4433, to_monotonic_ns=convert.to_monotonic_ns)


def client_traffic(run_dir: Path) -> TrafficTable:
    return traffic(run_dir, "client", Decryptor(read_keylog(RunPaths(run_dir).keys)))


def test_nothing_is_lost_and_everything_opens(recorded: Path) -> None:
    for log in RunPaths(recorded).captures.glob("*.log"):
        counts = read_counts(log.read_text())
        assert counts is not None
        assert counts.captured > 0
        assert counts.dropped == 0, log.name
    client = client_traffic(recorded)
    assert client.undecrypted == 0
    assert client.decryptor.connections == 1
    for host in ("edge-1", "edge-2"):
        edge = traffic(recorded, host, client.decryptor.other_vantage())
        assert edge.undecrypted == 0
        assert not edge.frame["nonce_reused"].any()


def test_the_handshake_is_in_the_capture_from_its_first_packet(recorded: Path) -> None:
    first = client_traffic(recorded).frame.row(0, named=True)
    assert (first["space"], first["packet_number"], first["frame"]) == ("initial", 0, "CRYPTO")


def test_each_packet_takes_half_a_round_trip_and_none_goes_back_in_time(recorded: Path) -> None:
    client = client_traffic(recorded)
    key = ["direction", "space", "generation", "packet_number"]
    seen = client.frame.group_by(key).agg(pl.col("t_ns").min().alias("client_ns"))
    for host in ("edge-1", "edge-2"):
        edge = traffic(recorded, host, client.decryptor.other_vantage()).frame
        both = edge.group_by(key).agg(pl.col("t_ns").min().alias("edge_ns")).join(seen, on=key)
        late = both.with_columns(
            pl.when(pl.col("direction") == "to-client")
            .then(pl.col("client_ns") - pl.col("edge_ns"))
            .otherwise(pl.col("edge_ns") - pl.col("client_ns"))
            .alias("late_ns")
        )
        assert late.height > 50
        middle, least = late["late_ns"].median(), late["late_ns"].min()
        assert isinstance(middle, float)
        assert isinstance(least, int)
        assert ONE_WAY_MS - 1 < middle / 1e6 < 3 * ONE_WAY_MS
        assert least / 1e6 > ONE_WAY_MS - 1


def test_tshark_agrees_on_the_clients_capture(recorded: Path) -> None:
    paths = RunPaths(recorded)
    capture = paths.captures / "client.pcapng"
    ours = read_traffic(capture, Decryptor(read_keylog(paths.keys)), port=4433).frame
    wanted = ["t_ns", "stream_id", "offset"]
    mine = ours.filter(pl.col("frame") == "STREAM").select(wanted).sort(wanted)
    theirs = tshark_streams(capture, paths.keys, 4433).select(wanted).sort(wanted)
    assert mine.height > 100
    # tshark cannot parse a packet behind a frame that it does not know; all it sees, we see as well
    assert theirs.join(mine, on=wanted, how="anti").is_empty()
    assert theirs.height >= 0.95 * mine.height


def test_the_numbers_belong_to_the_packets(recorded: Path) -> None:
    analysis = analyse(recorded)
    result, metrics = analysis.result, analysis.metrics
    assert metrics is not None
    assert metrics.gap is not None
    datagrams = {
        datagram.t_ns: datagram
        for datagram in read_datagrams(RunPaths(recorded).captures / "client.pcapng")
        if datagram.protocol == UDP
    }
    clock = analysis.manifest.clock
    assert clock is not None
    convert = ClockConversion(clock, analysis.events[0].t_ns, analysis.events[-1].t_ns)
    stamps = {convert.to_monotonic_ns(t_ns): datagram for t_ns, datagram in datagrams.items()}
    assert stamps[metrics.gap.last_old_ns].source == analysis.manifest.source_endpoint
    assert stamps[metrics.gap.first_new_ns].source == analysis.manifest.destination_endpoint
    assert result.inter_edge_bytes is not None
    assert result.transferred_bytes is not None
    assert result.inter_edge_bytes > result.transferred_bytes
    assert result.rtt_ms == pytest.approx(2 * ONE_WAY_MS, rel=0.5)
    assert not [warning for warning in result.warnings if re.search("decrypted|crossed|lost", warning)]
