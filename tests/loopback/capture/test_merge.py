"""Wireshark's tools read our captures, and agree with our own decryption to the nanosecond."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from quicferry.capture.merge import merge_captures, tshark_streams
from quicferry.capture.pcap import read_datagrams
from quicferry.capture.quic import Decryptor, read_keylog, read_traffic
from quicferry.errors import CaptureError
from quicferry.process import run
from quicferry.record import RunPaths
from tests.capture_support import moving_scene, write_run

pytestmark = pytest.mark.needs("tshark")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", moving_scene())


def test_tshark_sees_the_same_stream_data_at_the_same_times(recorded: Path) -> None:
    paths = RunPaths(recorded)
    capture = paths.captures / "client.pcapng"
    ours = read_traffic(capture, Decryptor(read_keylog(paths.keys))).frame
    wanted = ["t_ns", "stream_id", "offset"]
    mine = ours.filter(pl.col("frame") == "STREAM").select(wanted).sort(wanted)
    theirs = tshark_streams(capture, paths.keys, 4433).select(wanted).sort(wanted)
    assert mine.height > 150
    assert mine.equals(theirs)


def decrypted_streams(capture: Path) -> int:
    words = ["-Y", "quic.stream.stream_id", "-T", "fields", "-e", "frame.number"]
    return len(run(["tshark", "-n", "-r", capture, *words]).stdout.split())


def test_the_merged_file_holds_all_packets_and_opens_without_a_key_log(tmp_path: Path) -> None:
    recorded = write_run(tmp_path / "plain", moving_scene(key_update=False))
    before = {path: path.read_bytes() for path in RunPaths(recorded).captures.iterdir()}
    merged = merge_captures(recorded)
    assert merged.stat().st_mode & 0o777 == 0o600
    datagrams = read_datagrams(merged)
    assert len(datagrams) == sum(len(read_datagrams(path)) for path in before)
    assert {datagram.interface for datagram in datagrams} == {"client-eth0", "edge-1-eth0", "edge-2-eth0"}
    assert decrypted_streams(merged) > 300
    assert before == {path: path.read_bytes() for path in RunPaths(recorded).captures.iterdir()}


def test_one_host_opens_over_key_updates(recorded: Path) -> None:
    alone = merge_captures(recorded, "client")
    assert alone.name == "client.pcapng"
    ours = read_traffic(alone, Decryptor(read_keylog(RunPaths(recorded).keys))).frame
    with_streams = (
        ours.filter(pl.col("frame") == "STREAM").select("t_ns", "direction", "packet_number").unique()
    )
    assert decrypted_streams(alone) == with_streams.height > 150
    with pytest.raises(CaptureError, match="no capture of dns"):
        merge_captures(recorded, "dns")


def test_a_run_without_captures_cannot_be_merged(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="no captures"):
        merge_captures(tmp_path)
