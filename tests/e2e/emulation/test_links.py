"""Real links: what they do to packets, what they report, and that they leave nothing.

Bounds are wide: a shared machine is late by milliseconds at times. How exact links are is the business
of ``bench/bench_links.py``.
"""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from quicferry import process
from quicferry.emulation.links.cable.client import CableProcess
from quicferry.emulation.links.cable.config import CableLink
from quicferry.emulation.links.calibrate import (
    calibrate,
    calibrate_link,
    frame_train,
    ping_train,
)
from quicferry.emulation.links.layer import LinkLayer, choose_backend
from quicferry.emulation.links.link_end import TRAIN, LinkEnd
from quicferry.emulation.links.probes import PROBES, two_hosts
from quicferry.emulation.sandbox.namespaces import in_new_netns, network_of
from quicferry.errors import EmulationError, InvalidInput, Unsupported
from quicferry.model import Link, Shape
from tests.waiting import eventually

pytestmark = pytest.mark.needs("netns", "veth", "shaped-link")

PLAIN = Shape()


def in_private_network(test: Callable[..., None]) -> Callable[..., None]:
    """Run the test in a network namespace of its own: wire ends are made there."""

    @functools.wraps(test)
    def wrapped(*args: object, **kwargs: object) -> None:
        in_new_netns(lambda: test(*args, **kwargs))

    return wrapped


class Pair(NamedTuple):
    layer: LinkLayer
    a_pid: int
    b_pid: int


def configure(pid: int, *words: str) -> None:
    process.run(["nsenter", "-t", str(pid), "-n", "ip", *words])


def interfaces(pid: int) -> str:
    return process.run(["nsenter", "-t", str(pid), "-n", "ip", "-o", "link"]).stdout


@contextmanager
def linked(
    folder: Path,
    a_to_b: Shape,
    b_to_a: Shape | None = None,
    *,
    backend: str | None = None,
    seed: int = 1,
    mtu_bytes: int = 1500,
) -> Iterator[Pair]:
    """Two hosts, 10.9.0.1 and 10.9.0.2, and a link between them."""
    link = Link(a="a", b="b", a_to_b=a_to_b, b_to_a=b_to_a or a_to_b, mtu_bytes=mtu_bytes)
    with two_hosts() as (a_pid, b_pid):
        layer = LinkLayer(backend or choose_backend("auto"), seed, folder)
        try:
            layer.add(link, a_pid, b_pid, "a-eth0", "b-eth0")
            layer.start()
            for pid, interface, address in ((a_pid, "a-eth0", "10.9.0.1"), (b_pid, "b-eth0", "10.9.0.2")):
                configure(pid, "addr", "add", f"{address}/24", "dev", interface)
                configure(pid, "link", "set", interface, "up")
            yield Pair(layer, a_pid, b_pid)
        finally:
            layer.stop()


@in_private_network
def test_each_direction_has_its_own_delay(tmp_path: Path) -> None:
    with linked(tmp_path, Shape(delay_ms=30), Shape(delay_ms=5)) as pair:
        there, back = calibrate_link(pair.layer.made[0], pings=40)
    assert there.delay_median_ms is not None
    assert back.delay_median_ms is not None
    assert there.rtt_median_ms is not None
    assert 30 <= there.delay_median_ms < 50
    assert 5 <= back.delay_median_ms < 20
    assert 35 <= there.rtt_median_ms < 60


@in_private_network
def test_no_packet_is_earlier_than_the_delay(tmp_path: Path) -> None:
    with linked(tmp_path, Shape(delay_ms=3)) as pair:
        made = pair.layer.made[0]
        with LinkEnd(made.a_pid, made.a_interface) as a, LinkEnd(made.b_pid, made.b_interface) as b:
            there, back, rtts = ping_train(a, b, 100, 6)
    assert len(rtts) == 100
    assert min(there) >= 3
    assert min(back) >= 3


@in_private_network
def test_a_plain_link_is_one_veth_pair_that_nothing_shapes(tmp_path: Path) -> None:
    with linked(tmp_path, PLAIN, mtu_bytes=1400) as pair:
        there, _ = calibrate_link(pair.layer.made[0], pings=20)
        names = "".join(interfaces(os.getpid()))
        reading = pair.layer.readings()[0]
        assert "mtu 1400" in interfaces(pair.a_pid)
        assert "mtu 1400" in interfaces(pair.b_pid)
    assert "qfw" not in names
    assert reading.backend == "plain"
    assert pair.layer.cable_stats() is None
    assert there.delay_median_ms is not None
    assert there.delay_median_ms < 10


@in_private_network
def test_the_rate_is_kept_in_both_directions(tmp_path: Path) -> None:
    with linked(tmp_path, Shape(delay_ms=1, rate_mbps=20), Shape(rate_mbps=5)) as pair:
        there, back = calibrate_link(pair.layer.made[0], pings=5)
    assert there.rate_mbps == pytest.approx(20, rel=0.4)
    assert back.rate_mbps == pytest.approx(5, rel=0.4)
    assert msgspec.json.encode((there, back))  # numbers of Python's, which a result can hold


@in_private_network
def test_calibration_returns_the_readings_with_what_was_measured(tmp_path: Path) -> None:
    with linked(tmp_path, Shape(delay_ms=2, loss_percent=20), PLAIN) as pair:
        there, back = calibrate(pair.layer, pings=30)
    assert (there.sender, there.receiver, there.backend) == ("a", "b", pair.layer.backend)
    assert there.asked == Shape(delay_ms=2, loss_percent=20)
    assert there.measured_loss_percent == pytest.approx(20, abs=5)
    assert back.measured_loss_percent == 0
    assert back.measured_rate_mbps is None
    assert there.measured_delay_ms is not None
    assert there.measured_delay_ms >= 2
    assert isinstance(there.read_back["rtt_median_ms"], float)


@in_private_network
def test_the_cable_keeps_order_and_loses_what_it_says(tmp_path: Path) -> None:
    with linked(tmp_path, Shape(delay_ms=5, jitter_ms=2, loss_percent=10), PLAIN, backend="cable") as pair:
        made = pair.layer.made[0]
        with LinkEnd(made.a_pid, made.a_interface) as a, LinkEnd(made.b_pid, made.b_interface) as b:
            for number in range(500):
                a.send(b, TRAIN, number, 60)
                time.sleep(0.0002)
            time.sleep(0.3)
            assert eventually(lambda: pair.layer.readings()[0].read_back["waiting"] == 0, 30)
            time.sleep(0.1)
            numbers = [number for _, number, _ in b.receive()]
        words = pair.layer.readings()[0].read_back
    assert numbers == sorted(numbers)
    assert 400 <= len(numbers) <= 490
    # Hosts say a few words of their own (IPv6), which may get lost too.
    assert 500 - len(numbers) <= int(words["lost_packets"] or 0) <= 520 - len(numbers)
    assert words["overrun_frames"] == 0
    assert words["waiting"] == 0


@in_private_network
def test_bulk_tcp_crosses_unharmed_with_segmentation_offload_on(tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 24
    with linked(tmp_path, Shape(delay_ms=1, rate_mbps=1000)) as pair:
        with network_of(pair.b_pid):
            server = socket.create_server(("10.9.0.2", 5001))
        with network_of(pair.a_pid):
            client = socket.socket()
        got = hashlib.sha256()

        def receive() -> None:
            with server, server.accept()[0] as accepted:
                while block := accepted.recv(1 << 20):
                    got.update(block)

        thread = threading.Thread(target=receive)
        thread.start()
        begun = time.monotonic()
        with client:
            client.settimeout(20)
            client.connect(("10.9.0.2", 5001))
            client.sendall(data)
        thread.join(20)
        took_s = time.monotonic() - begun
        words = pair.layer.readings()[0].read_back
    assert got.digest() == hashlib.sha256(data).digest()
    assert len(data) * 8 / 1e9 < took_s  # not faster than the link's rate
    if pair.layer.backend == "cable":
        assert int(words["packets"] or 0) > 2 * int(words["frames"] or 0)  # whole trains crossed in one piece


@in_private_network
def test_a_full_queue_drops_and_says_so(tmp_path: Path) -> None:
    shape = Shape(delay_ms=1, rate_mbps=1, queue_packets=10)
    with linked(tmp_path, shape, PLAIN, backend="cable") as pair:
        made = pair.layer.made[0]
        with LinkEnd(made.a_pid, made.a_interface) as a, LinkEnd(made.b_pid, made.b_interface) as b:
            sent, stamps = frame_train(a, b, a.frame(b, TRAIN, 0, 1000), 10_000, 0.01, 0.5)
        words = pair.layer.readings()[0].read_back
    assert sent == 100
    assert 8 <= len(stamps) <= 60  # some leave the queue while others come
    assert int(words["queue_full_packets"] or 0) >= sent - len(stamps)


@in_private_network
def test_a_link_may_go_down_and_come_back(tmp_path: Path) -> None:
    with linked(tmp_path, Shape(delay_ms=1)) as pair:
        made = pair.layer.made[0]
        calibrate_link(made, pings=3)
        configure(pair.b_pid, "link", "set", "b-eth0", "down")
        time.sleep(0.05)
        configure(pair.b_pid, "link", "set", "b-eth0", "up")
        time.sleep(0.05)
        seen, _ = calibrate_link(made, pings=20)
    assert seen.loss_percent == 0


@in_private_network
def test_an_idle_cable_costs_no_cpu(tmp_path: Path) -> None:
    with linked(tmp_path, Shape(delay_ms=1), backend="cable") as pair:
        time.sleep(0.5)
        before = pair.layer.cable_stats()
        time.sleep(1.5)
        after = pair.layer.cable_stats()
    assert before is not None
    assert after is not None
    assert after.cpu_s - before.cpu_s < 0.5


@in_private_network
def test_stopping_removes_the_wire_ends_and_keeps_the_last_readings(tmp_path: Path) -> None:
    with linked(tmp_path, Shape(delay_ms=1), backend="cable") as pair:
        calibrate_link(pair.layer.made[0], pings=5)
        assert "qfw0a" in process.run(["ip", "-o", "link"]).stdout
    assert "qfw" not in process.run(["ip", "-o", "link"]).stdout
    pair.layer.stop()  # once more: harmless
    assert int(pair.layer.readings()[0].read_back["frames"] or 0) >= 5


@in_private_network
def test_the_cable_ends_with_its_parent(tmp_path: Path) -> None:
    process.run(["ip", "link", "add", "w0", "type", "veth", "peer", "name", "w1"])
    link = CableLink(
        name="l", left_interface="w0", right_interface="w1", left_to_right=PLAIN, right_to_left=PLAIN
    )
    script = (
        "import sys, time, pathlib, msgspec\n"
        "from quicferry.emulation.links.cable.client import CableProcess\n"
        "from quicferry.emulation.links.cable.config import CableLink\n"
        "link = msgspec.json.decode(sys.argv[1], type=CableLink)\n"
        "cable = CableProcess((link,), seed=1, work_dir=pathlib.Path(sys.argv[2]))\n"
        "cable.start()\n"
        "print(cable.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", script, msgspec.json.encode(link).decode(), str(tmp_path)]
    parent = process.spawn(argv, stdout=process.PIPE)
    assert parent.stdout is not None
    cable_pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 5
    while (state := running(cable_pid)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not state


def running(pid: int) -> bool:
    """Whether a process lives; a zombie, which nobody may collect here, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@in_private_network
def test_a_cable_without_its_interfaces_says_which_one_is_missing(tmp_path: Path) -> None:
    link = CableLink(
        name="l", left_interface="nope0", right_interface="nope1", left_to_right=PLAIN, right_to_left=PLAIN
    )
    with pytest.raises(EmulationError, match="nope0") as caught:
        CableProcess((link,), seed=1, work_dir=tmp_path).start()
    assert "cable.log" in (caught.value.hint or "")


@in_private_network
def test_a_cable_that_was_killed_is_reported_not_waited_for(tmp_path: Path) -> None:
    with linked(tmp_path, Shape(delay_ms=1), backend="cable") as pair:
        os.kill(cable_pid(pair.layer), signal.SIGKILL)
        time.sleep(0.1)
        with pytest.raises(EmulationError, match="ended with status -9"):
            pair.layer.cable_stats()


def cable_pid(layer: LinkLayer) -> int:
    assert layer._cable is not None
    return layer._cable.pid


@in_private_network
def test_names_that_linux_does_not_take_are_refused(tmp_path: Path) -> None:
    layer = LinkLayer("cable", 1, tmp_path)
    with pytest.raises(InvalidInput, match="interface name"):
        layer.add(Link(a="a", b="b"), os.getpid(), os.getpid(), "a-name-of-16-chr", "b-eth0")
    layer.stop()


@in_private_network
def test_a_name_that_is_taken_is_the_kernels_refusal(tmp_path: Path) -> None:
    with linked(tmp_path, PLAIN) as pair, pytest.raises(EmulationError, match="kernel refused"):
        pair.layer.add(Link(a="a", b="b"), pair.a_pid, pair.b_pid, "a-eth0", "b-eth1")


@pytest.mark.needs("netem")
@in_private_network
def test_netem_does_what_its_reading_says(tmp_path: Path) -> None:
    shape = Shape(delay_ms=10, jitter_ms=1, rate_mbps=50, loss_percent=5)
    with linked(tmp_path, shape, backend="netem") as pair:
        there, _ = calibrate(pair.layer, pings=60)
    assert there.read_back["qdisc"] == "netem"
    assert there.read_back["delay_ms"] == pytest.approx(10)
    assert there.measured_delay_ms == pytest.approx(10, abs=2)
    assert there.measured_rate_mbps == pytest.approx(50, rel=0.1)


def test_netem_that_is_wanted_and_missing_is_unsupported() -> None:
    probe = next(probe for probe in PROBES if probe.name == "netem").run()
    if probe.works:
        assert choose_backend("auto") == "netem"
    else:
        assert choose_backend("auto") == "cable"
        with pytest.raises(Unsupported, match="no netem") as caught:
            choose_backend("netem")
        assert "cable" in (caught.value.hint or "")
