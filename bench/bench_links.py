"""How exact and how fast shaped links are. Run as root: ``python bench/bench_links.py``.

Prints a table: errors of round trips, of single delays at a pace, of rate and loss, TCP throughput, crossings
per second and their cost, with the cable's own lateness beside each. Everything happens in network namespaces
of its own. Numbers from a busy machine say more about the machine: run it twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from quicferry import process
from quicferry.emulation.links import calibrate
from quicferry.emulation.links.batch import RepeatedFrame
from quicferry.emulation.links.layer import LinkLayer, choose_backend
from quicferry.emulation.links.link_end import BATCH, TRAIN, LinkEnd
from quicferry.emulation.sandbox.namespaces import in_new_netns
from quicferry.model import Link, Shape


def host() -> process.Popen[bytes]:
    """A process in a network namespace of its own."""
    made = process.spawn(["unshare", "--net", "sh", "-c", "echo; exec sleep 600"], stdout=process.PIPE)
    assert made.stdout is not None
    made.stdout.readline()
    return made


def inside(pid: int, *argv: str) -> process.Result:
    """Run a program in the network namespace of a process."""
    return process.run(["nsenter", "-t", str(pid), "-n", *argv])


@contextlib.contextmanager
def chain(shapes: list[Shape], backend: str, seed: int = 1) -> Iterator[tuple[LinkLayer, list[int]]]:
    """Hosts in a row with a link of the given shape (both ways) between neighbours."""
    hosts = [host() for _ in range(len(shapes) + 1)]
    pids = [made.pid for made in hosts]
    with tempfile.TemporaryDirectory() as folder:
        layer = LinkLayer(backend, seed, Path(folder))
        try:
            for i, shape in enumerate(shapes):
                link = Link(a=f"h{i}", b=f"h{i + 1}", a_to_b=shape, b_to_a=shape)
                layer.add(link, pids[i], pids[i + 1], f"h{i}-r", f"h{i + 1}-l")
            layer.start()
            for i, pid in enumerate(pids):
                for interface, address in ((f"h{i}-r", f"10.0.{i}.1/24"), (f"h{i}-l", f"10.0.{i - 1}.2/24")):
                    if inside(pid, "ip", "-br", "link").stdout.find(f"{interface}@") >= 0:
                        inside(pid, "ip", "addr", "add", address, "dev", interface)
                        inside(pid, "ip", "link", "set", interface, "up")
            yield layer, pids
        finally:
            layer.stop()
            for made in hosts:
                process.stop(made)
                assert made.stdout is not None
                made.stdout.close()


def of_a(layer: LinkLayer) -> LinkEnd:
    """The end ``a`` of the first link."""
    return LinkEnd(layer.made[0].a_pid, layer.made[0].a_interface)


def of_b(layer: LinkLayer) -> LinkEnd:
    """The end ``b`` of the first link."""
    return LinkEnd(layer.made[0].b_pid, layer.made[0].b_interface)


def late(layer: LinkLayer) -> str:
    """The cable's lateness in the first direction."""
    words = layer.readings()[0].read_back
    if "late_p50_us" not in words:
        return "-"
    return f"{words['late_p50_us']:.0f} / {words['late_p99_us']:.0f} / {words['late_max_us']:.0f}"


def row(what: str, spec: str, seen: str, error: str, layer: LinkLayer) -> None:
    """One line of the table, with the cable's lateness."""
    show(what, spec, seen, error, late(layer))


def show(what: str, spec: str, seen: str, error: str, lateness: str) -> None:
    """One line of the table."""
    print(f"| {what:<22} | {spec:>14} | {seen:>22} | {error:>17} | {lateness:>18} |", flush=True)


def rtt(delay_ms: float, backend: str, pings: int) -> None:
    """Error of the round-trip time: mean and 99th percentile."""
    shape = Shape(delay_ms=delay_ms)
    with chain([shape], backend) as (layer, _), contextlib.ExitStack() as ends:
        a, b = ends.enter_context(of_a(layer)), ends.enter_context(of_b(layer))
        _, _, rtts = calibrate.ping_train(a, b, pings, 2 * delay_ms)
        errors = [value - 2 * delay_ms for value in rtts]
        mean, p99 = statistics.fmean(errors), calibrate.nearest_rank(errors, 99) or 0.0
        seen = f"{statistics.fmean(rtts):.3f} ms"
        row("RTT (mean / p99 error)", f"{2 * delay_ms:g} ms", seen, f"{mean:.3f} / {p99:.3f} ms", layer)


def rate(rate_mbps: float, backend: str) -> None:
    """Error of the rate, with full frames."""
    with chain([Shape(delay_ms=1, rate_mbps=rate_mbps)], backend) as (layer, _):
        seen, _ = calibrate.calibrate_link(layer.made[0], pings=1)
        measured = seen.rate_mbps or 0.0
        error = f"{100 * (measured / rate_mbps - 1):+.2f} %"
        row("rate", f"{rate_mbps:g} Mbit/s", f"{measured:.2f} Mbit/s", error, layer)


def loss(loss_percent: float, backend: str) -> None:
    """Error of the loss; the deviation is in standard deviations of a binomial distribution."""
    with (
        chain([Shape(delay_ms=1, loss_percent=loss_percent)], backend, time.time_ns()) as (layer, _),
        contextlib.ExitStack() as ends,
    ):
        a, b = ends.enter_context(of_a(layer)), ends.enter_context(of_b(layer))
        sent, stamps = calibrate.frame_train(a, b, a.frame(b, TRAIN, 0, 60), 8_000, 3.0, 0.5)
        share = loss_percent / 100
        measured = 1 - len(stamps) / sent
        sigmas = (measured - share) / (share * (1 - share) / sent) ** 0.5
        row("loss", f"{loss_percent:g} %", f"{100 * measured:.3f} %", f"{sigmas:+.1f} sigma", layer)


def tcp(shape: Shape, backend: str, seconds: int) -> None:
    """TCP throughput with iperf3."""
    with chain([shape], backend) as (layer, pids):
        inside(pids[1], "ip", "link", "set", "lo", "up")
        server = process.spawn(["nsenter", "-t", str(pids[1]), "-n", "iperf3", "-s", "-1"])
        time.sleep(0.5)
        argv = ["iperf3", "-c", "10.0.0.2", "-J", "-t", str(seconds), "-O", "1"]
        report = json.loads(inside(pids[0], *argv).stdout)
        process.stop(server)
        mbps = report["end"]["sum_received"]["bits_per_second"] / 1e6
        spec = f"{shape.rate_mbps:g} Mbit/s" if shape.rate_mbps else "no limit"
        row(f"TCP, {shape.delay_ms:g} ms one way", spec, f"{mbps:.0f} Mbit/s", "", layer)


class Paced(NamedTuple):
    """Single frames that were sent at a pace, and how much longer than asked they took."""

    errors_ms: list[float]
    missing_percent: float
    late: str


def paced(
    backend: str, frames_per_s: float, delay_ms: float, seconds: float = 2.0, frame_bytes: int = 1200
) -> Paced:
    """Send frames at a pace.

    The errors are from just before the sender's system call to the kernel's stamp at the receiver: the
    sender's own 5 to 10 us are part of them.
    """
    with chain([Shape(delay_ms=delay_ms)], backend) as (layer, _), contextlib.ExitStack() as ends:
        a, b = ends.enter_context(of_a(layer)), ends.enter_context(of_b(layer))
        sent: list[int] = []
        arrived: dict[int, int] = {}
        count, begun_s = int(frames_per_s * seconds), time.monotonic()
        while len(sent) < count:
            if time.monotonic() >= begun_s + len(sent) / frames_per_s:
                sent.append(a.send(b, TRAIN, len(sent), frame_bytes) or 0)
            elif len(sent) % 16 == 0:
                arrived.update((number, stamp_ns) for _, number, stamp_ns in b.receive())
        time.sleep(0.2 + delay_ms / 1e3)
        arrived.update((number, stamp_ns) for _, number, stamp_ns in b.receive())
        errors = [(stamp_ns - sent[number]) / 1e6 - delay_ms for number, stamp_ns in arrived.items()]
        return Paced(errors, 100 * (1 - len(arrived) / count), late(layer))


def show_paced(backend: str, frames_per_s: float, delay_ms: float) -> None:
    """Error of the delay of single frames: mean and 99th percentile."""
    seen = paced(backend, frames_per_s, delay_ms)
    mean, p99 = statistics.fmean(seen.errors_ms), calibrate.nearest_rank(seen.errors_ms, 99) or 0.0
    missing = f"{seen.missing_percent:.2f} % missing"
    what = f"delay at {frames_per_s:,.0f}/s"
    show(what, f"{delay_ms:g} ms", missing, f"{mean:.3f} / {p99:.3f} ms", seen.late)


class Crossed(NamedTuple):
    """Frames that were offered to a link and crossed it."""

    offered_per_s: float
    arrived_per_s: float  # while they were offered
    missing_percent: float
    cpu_us: float | None  # of the cable, for each
    late: str


def crossed(backend: str, frame_bytes: int, offered_per_s: float, seconds: float = 2.0) -> Crossed:
    """Offer frames.

    They are counted by the receiving interface; nobody reads them there, as that would take the sender's
    processor.
    """
    with chain([Shape(delay_ms=1)], backend) as (layer, pids), contextlib.ExitStack() as ends:
        a = ends.enter_context(of_a(layer))
        with of_b(layer) as b:
            repeated = RepeatedFrame(a.frame(b, TRAIN, 0, frame_bytes), BATCH)

        def received() -> int:
            told = inside(pids[1], "ip", "-s", "-j", "link", "show", layer.made[0].b_interface).stdout
            return int(json.loads(told)[0]["stats64"]["rx"]["packets"])

        before, stats_before = received(), layer.cable_stats()
        begun_s, sent = time.monotonic(), 0
        while (passed_s := time.monotonic() - begun_s) < seconds:
            owed = int(passed_s * offered_per_s) + 1 - sent
            if owed > 0:
                sent += repeated.send(a.socket.fileno(), owed)
        arrived_at_once = received() - before
        time.sleep(0.5)
        arrived = received() - before
        stats, cpu_us = layer.cable_stats(), None
        if stats is not None and stats_before is not None:
            cpu_us = 1e6 * (stats.cpu_s - stats_before.cpu_s) / arrived
        missing_percent = max(0.0, 100 * (1 - arrived / sent))
        return Crossed(sent / passed_s, arrived_at_once / passed_s, missing_percent, cpu_us, late(layer))


def show_crossed(backend: str, frame_bytes: int, offered_per_s: float) -> None:
    """Frames per second that cross, and what one costs the cable."""
    seen = crossed(backend, frame_bytes, offered_per_s)
    cost = f", {seen.cpu_us:.1f} us each" if seen.cpu_us is not None else ""
    asked, arrived = f"{seen.offered_per_s:,.0f}/s", f"{seen.arrived_per_s:,.0f}/s{cost}"
    show(f"frames of {frame_bytes} bytes", asked, arrived, f"{seen.missing_percent:.2f} % missing", seen.late)


def hops(count: int, backend: str) -> None:
    """RTT over a chain of links in one cable: ICMP echo through forwarding hosts."""
    with chain([Shape(delay_ms=2)] * count, backend) as (layer, pids):
        for i, pid in enumerate(pids):
            inside(pid, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
            if i < count:
                inside(pid, "ip", "route", "add", "10.0.0.0/16", "via", f"10.0.{i}.2")
            for j in range(i - 1):
                inside(pid, "ip", "route", "add", f"10.0.{j}.0/24", "via", f"10.0.{i - 1}.1")
        argv = ("ping", "-i", "0.01", "-c", "200", "-q", f"10.0.{count - 1}.2")
        inside(pids[0], "ping", "-c", "2", f"10.0.{count - 1}.2")
        summary = inside(pids[0], *argv).stdout.splitlines()[-1]
        mean = float(summary.split("=")[1].split("/")[1])
        error = f"{mean - 4 * count:+.3f} ms"
        row(f"RTT over {count} links", f"{4 * count} ms", f"{mean:.3f} ms", error, layer)


def idle(backend: str) -> None:
    """CPU time of a cable that carries nothing."""
    with chain([Shape(delay_ms=2)] * 8, backend) as (layer, _):
        before = layer.cable_stats()
        time.sleep(3)
        after = layer.cable_stats()
        if before is not None and after is not None:
            used = (after.cpu_s - before.cpu_s) / 3 * 100
            row("idle, 8 links", "", f"{used:.2f} % of a CPU", "", layer)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto", help="auto, netem or cable")
    parser.add_argument("--quick", action="store_true", help="fewer pings, shorter transfers")
    arguments = parser.parse_args()
    backend = choose_backend(arguments.backend)
    pings, seconds = (100, 2) if arguments.quick else (400, 5)

    def measure() -> None:
        print(f"backend {backend}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
        row_head = ("what", "asked", "seen", "error", "late p50/p99/max us")
        print("| {:<22} | {:>14} | {:>22} | {:>17} | {:>18} |".format(*row_head))
        print("|" + "|".join("-" * n for n in (24, 16, 24, 19, 20)) + "|")
        for delay_ms in (0.5, 2, 10, 50, 100):
            rtt(delay_ms, backend, pings)
        hops(6, backend)
        for rate_mbps in (10, 100, 1000):
            rate(rate_mbps, backend)
        for loss_percent in (1.5, 3):
            loss(loss_percent, backend)
        tcp(Shape(delay_ms=0.5, rate_mbps=1000), backend, seconds)
        tcp(Shape(delay_ms=5, rate_mbps=1000), backend, seconds)
        tcp(Shape(delay_ms=0.1), backend, seconds)
        for frames_per_s in (1_000, 10_000, 20_000):
            show_paced(backend, frames_per_s, delay_ms=5)
        for offered_per_s in (10_000, 50_000, 100_000, 200_000, 400_000):
            show_crossed(backend, 1200, offered_per_s)
        idle(backend)

    in_new_netns(measure)


if __name__ == "__main__":
    main()
