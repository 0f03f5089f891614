"""The capturing process in a network namespace of its own: nothing lost at either end."""

from __future__ import annotations

import re
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

from quicferry import process
from quicferry.capture.capture import (
    Capture,
    CaptureSession,
    Interface,
    read_counts,
    running_packet_sockets,
)
from quicferry.capture.clock import realtime_minus_monotonic_ns
from quicferry.capture.pcap import read_datagrams
from quicferry.capture.probes import PROBES
from quicferry.errors import CaptureError
from quicferry.model import Link, Node, NodeKind, Topology
from quicferry.process import Popen

pytestmark = pytest.mark.needs("root", "netns", "veth", "tshark")

SENDER = """
import socket, struct, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
count, pause_every = int(sys.argv[1]), int(sys.argv[2])
for number in range(count):
    s.sendto(struct.pack("!Iq", number, time.monotonic_ns()) + bytes(188), ("10.9.0.2", 9999))
    if pause_every and number % pause_every == 0:
        time.sleep(0.001)
"""


class Namespace:
    """A network namespace with a veth pair v0-v1; what is sent from v0 to 10.9.0.2 is seen on both."""

    def __init__(self) -> None:
        self._holder = process.spawn(["unshare", "--net", "--kill-child", "--fork", "sleep", "600"])
        deadline = time.monotonic() + 5
        while (child := self._child()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.pid = child
        for words in (
            "ip link add v0 type veth peer name v1",
            "ip addr add 10.9.0.1/24 dev v0",
            "ip link set v0 up",
            "ip link set v1 up",
            "ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev v0 nud permanent",
        ):
            self.run(words.split())

    def _child(self) -> int | None:
        pids = Path(f"/proc/{self._holder.pid}/task/{self._holder.pid}/children").read_text().split()
        return int(pids[0]) if pids else None

    def run(self, argv: Sequence[str]) -> process.Result:
        return process.run(["nsenter", "-t", str(self.pid), "-n", *argv])

    def spawn(
        self, host: str, argv: Sequence[str | Path], *, stderr: int | IO[bytes] | None = None
    ) -> Popen[bytes]:
        return process.spawn(["nsenter", "-t", str(self.pid), "-n", *argv], stderr=stderr)

    def send(self, count: int, pause_every: int = 0) -> None:
        self.run(["python3", "-c", SENDER, str(count), str(pause_every)])

    def close(self) -> None:
        self._holder.kill()  # with it its only child
        self._holder.wait()


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = Namespace()
    yield made
    made.close()


def numbers(path: Path) -> list[int]:
    return [
        struct.unpack_from("!I", datagram.payload)[0]
        for datagram in read_datagrams(path)
        if datagram.destination == "10.9.0.2:9999"
    ]


def test_the_first_and_the_last_packet_are_there(namespace: Namespace, tmp_path: Path) -> None:
    class Emulation:
        topology = Topology(
            name="pair",
            summary="",
            nodes=(Node(name="a", kind=NodeKind.EDGE), Node(name="b")),
            links=(Link(a="a", b="b"),),
        )
        spawn = staticmethod(namespace.spawn)

        def interface(self, host: str, link_name: str) -> str:
            assert (host, link_name) == ("a", "a--b")
            return "v0"

    session = CaptureSession(Emulation(), tmp_path)
    assert session.start(["a"]) == {"a": "v0"}
    namespace.send(4000, pause_every=40)
    session.stop()
    assert session.warnings == []
    assert numbers(tmp_path / "a.pcapng") == list(range(4000))
    assert {datagram.interface for datagram in read_datagrams(tmp_path / "a.pcapng")} == {"v0"}
    session.stop()  # again: nothing happens


def test_a_burst_without_pause_is_all_there(namespace: Namespace, tmp_path: Path) -> None:
    capture = Capture(namespace.spawn, "a", [Interface("v0")], tmp_path / "a.pcapng")
    capture.start()
    capture.wait_ready()
    namespace.send(20_000)
    time.sleep(0.6)
    assert capture.stop() == []
    assert numbers(tmp_path / "a.pcapng") == list(range(20_000))


def test_what_was_sent_just_before_the_end_is_there(namespace: Namespace, tmp_path: Path) -> None:
    for number, count in enumerate((1, 7, 600, 5000)):
        path = tmp_path / f"{number}.pcapng"
        capture = Capture(namespace.spawn, "a", [Interface("v0"), Interface("v1")], path)
        capture.start()
        capture.wait_ready()
        namespace.send(count)
        assert capture.stop() == []
        assert sorted(numbers(path)) == sorted([*range(count), *range(count)]), "once at each end"
        assert sorted(tmp_path.iterdir()) == sorted([*tmp_path.glob("*.pcapng"), *tmp_path.glob("*.log")])


def test_an_interface_that_was_down_for_a_while_is_captured_again(
    namespace: Namespace, tmp_path: Path
) -> None:
    capture = Capture(namespace.spawn, "a", [Interface("v0")], tmp_path / "a.pcapng")
    capture.start()
    capture.wait_ready()
    namespace.send(20)
    namespace.run(["ip", "link", "set", "v0", "down"])
    time.sleep(0.1)
    assert capture.ended() is None
    namespace.run(["ip", "link", "set", "v0", "up"])
    again = "ip neigh replace 10.9.0.2 lladdr 02:00:00:00:00:02 dev v0 nud permanent"
    namespace.run(again.split())
    namespace.send(30)
    assert capture.stop() == []
    assert numbers(tmp_path / "a.pcapng") == [*range(20), *range(30)]


def test_stamps_are_those_of_the_moment_of_sending(namespace: Namespace, tmp_path: Path) -> None:
    capture = Capture(namespace.spawn, "a", [Interface("v0")], tmp_path / "a.pcapng")
    capture.start()
    capture.wait_ready()
    offset = realtime_minus_monotonic_ns()
    namespace.send(50, pause_every=1)
    time.sleep(0.6)
    capture.stop()
    late = [
        datagram.t_ns - offset - struct.unpack_from("!Iq", datagram.payload)[1]
        for datagram in read_datagrams(tmp_path / "a.pcapng")
        if datagram.destination == "10.9.0.2:9999"
    ]
    assert len(late) == 50
    assert sorted(late)[25] < 20_000_000  # the median: of the sender's own clock, not of the time of reading
    assert min(late) > -1_000_000
    assert any(each % 1000 for each in late)  # nanoseconds, not microseconds


def test_headers_only_on_one_of_two_interfaces(namespace: Namespace, tmp_path: Path) -> None:
    interfaces = [Interface("v0"), Interface("v1", snapshot_bytes=128)]
    capture = Capture(namespace.spawn, "a", interfaces, tmp_path / "a.pcapng")
    capture.start()
    capture.wait_ready()
    namespace.send(20)
    time.sleep(0.6)
    assert capture.stop() == []
    kept = {"v0": set(), "v1": set()}  # type: ignore[var-annotated] # sets of int
    for datagram in read_datagrams(tmp_path / "a.pcapng"):
        if datagram.destination == "10.9.0.2:9999":
            kept[datagram.interface].add((len(datagram.payload), datagram.wire_bytes))
    assert kept == {"v0": {(200, 242)}, "v1": {(86, 242)}}


def test_an_interface_that_is_not_there_is_an_error_with_its_name(
    namespace: Namespace, tmp_path: Path
) -> None:
    capture = Capture(namespace.spawn, "a", [Interface("v7")], tmp_path / "a.pcapng")
    capture.start()
    with pytest.raises(CaptureError, match="on v7 of a did not begin"):
        capture.wait_ready()


def test_a_capture_that_died_is_a_warning(namespace: Namespace, tmp_path: Path) -> None:
    capture = Capture(namespace.spawn, "a", [Interface("v0")], tmp_path / "a.pcapng")
    capture.start()
    capture.wait_ready()
    assert capture._process is not None
    capture._process.kill()
    capture._process.wait()
    assert re.search("the capture of a ended early", capture.stop()[0])


def test_of_a_capture_that_died_the_packets_until_then_are_kept(namespace: Namespace, tmp_path: Path) -> None:
    capture = Capture(namespace.spawn, "a", [Interface("v0")], tmp_path / "a.pcapng")
    capture.start()
    capture.wait_ready()
    namespace.send(100)
    time.sleep(0.5)  # the kernel hands over what is there within 0.05 s
    assert capture._process is not None
    capture._process.kill()
    capture._process.wait()
    warnings = capture.stop()
    assert len(warnings) == 2
    assert numbers(tmp_path / "a.pcapng") == list(range(100))


def test_a_process_without_packet_sockets_has_none_running() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0):  # protocol 0: it is fed nothing
        assert running_packet_sockets(process.spawn(["sleep", "0"]).wait() + 2**22 + 1) == 0


def test_counts_of_several_interfaces_are_added() -> None:
    words = (
        "Packets captured: 7\n"
        "Packets received/dropped on interface 'a': 5/1 (pcap:0/dumpcap:1/flushed:0/ps_ifdrop:0) (83.3%)\n"
        "Packets received/dropped on interface 'b': 2/3 (pcap:3/dumpcap:0/flushed:0/ps_ifdrop:0) (40.0%)\n"
    )
    assert read_counts(words) == (7, 4)
    assert read_counts("") is None


@pytest.mark.needs("tcpdump")
def test_the_probes_say_what_they_saw() -> None:
    for probe in PROBES:
        answer = probe.run()
        assert answer.works, answer.detail
        assert "3 of 3 packets" in answer.detail
