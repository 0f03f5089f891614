"""A run's own capture holds everything that its hosts saw, in order, and opens by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from quicferry.capture import run_capture
from quicferry.capture.pcap import DatagramReader, read_datagrams
from quicferry.capture.run_capture import write_run_capture
from quicferry.errors import CaptureError
from quicferry.inspection.inspector import tell_all
from quicferry.inspection.sources import Source
from quicferry.process import run
from quicferry.record import RunPaths
from tests.capture_support import moving_scene, write_run


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    recorded = RunPaths(write_run(tmp_path_factory.mktemp("runs") / "one", moving_scene(key_update=False)))
    assert write_run_capture(recorded) == recorded.capture
    return recorded


def test_it_has_all_packets_in_order_with_named_interfaces_and_secrets(paths: RunPaths) -> None:
    assert paths.capture.stat().st_mode & 0o777 == 0o600
    secrets: list[bytes] = []
    with DatagramReader(paths.capture, secrets.append) as reader:
        found = list(reader)
        assert reader.gaps() == []
    assert secrets == [paths.keys.read_bytes()]
    assert len(found) == sum(len(read_datagrams(path)) for path in paths.captures.glob("*.pcapng"))
    assert [each.t_ns for each in found] == sorted(each.t_ns for each in found)
    assert {each.interface for each in found} == {"client-eth0", "edge-1-eth0", "edge-2-eth0"}


def test_it_tells_the_same_as_the_captures_of_the_hosts_wherever_it_is(
    paths: RunPaths, tmp_path: Path
) -> None:
    alone = tmp_path / "alone.pcapng"
    alone.write_bytes(paths.capture.read_bytes())
    together = [(told.vantage, told.path, told.packets) for _, told in tell_all(Source(alone))]
    apart = [(told.vantage, told.path, told.packets) for _, told in tell_all(Source(paths.root))]
    assert together == apart
    assert all(packet.frames is not None for _, _, packets in together for packet in packets)


@pytest.mark.needs("tshark")
def test_tshark_opens_every_packet_of_it_without_being_told_anything(paths: RunPaths) -> None:
    words = ["-Y", "quic.frame", "-T", "fields", "-e", "frame.interface_name"]
    lines = run(["tshark", "-n", "-r", paths.capture, *words]).stdout.splitlines()
    assert len(lines) == len(read_datagrams(paths.capture))
    assert set(lines) == {"client-eth0", "edge-1-eth0", "edge-2-eth0"}


def test_a_run_without_captures_has_none_and_a_gigabyte_is_not_copied(
    paths: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert write_run_capture(RunPaths(tmp_path)) is None
    monkeypatch.setattr(run_capture, "MOST_BYTES", 1000)
    with pytest.raises(CaptureError, match="stay in files of their own"):
        write_run_capture(paths)
