"""Whether shaped links do what they are asked to: a table of asked, measured, error, and the bound on it.

    sudo .venv/bin/python -m bench.fidelity [--backend cable] [--write docs/fidelity.md]

Bounds: a round-trip time within 0.3 ms or 1 % in the mean, a rate within 2 %, a loss within the 99 % interval
of its binomial distribution, the mean length of bursts of losses within that of so many geometric lengths,
jitter within 15 % of its standard deviation. Ends with status 1 when one is missed. What is measured is the
links and this machine: the load is in the heading, and a busy machine misses bounds.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from bench.bench_links import chain, of_a, of_b
from quicferry.emulation.links import calibrate
from quicferry.emulation.links.layer import LinkLayer, choose_backend
from quicferry.emulation.links.link_end import TRAIN
from quicferry.emulation.sandbox.namespaces import in_new_netns
from quicferry.experiment.machine import machine
from quicferry.model import Shape

RTTS_MS = (1, 4, 20, 100, 400)
RATES_MBPS = (1, 10, 100, 1000)
LOSSES_PERCENT = (0.1, 0.5, 1, 3, 10)
BURSTS_PACKETS = (2.0, 5.0, 20.0)  # Gilbert-Elliott, of BURST_LOSS_PERCENT in all
BURST_LOSS_PERCENT, BURST_S = 5.0, 6.0
Z_99 = 2.576  # of the normal distribution: 99 % lie within
JITTERS_MS = ((10.0, 1.0), (50.0, 5.0))  # delay, deviation
PINGS = 300
LOSS_FRAMES_PER_S, LOSS_S = 8_000, 3.0


class Row(NamedTuple):
    """One line of the table."""

    what: str
    asked: str
    measured: str
    error: str
    bound: str
    within: bool
    late_p99_us: float | None


def _late(layer: LinkLayer) -> float | None:
    value = layer.readings()[0].read_back.get("late_p99_us")
    return float(value) if isinstance(value, int | float) else None


def rtt(rtt_ms: float, backend: str) -> Row:
    """The mean round-trip time of single frames."""
    with chain([Shape(delay_ms=rtt_ms / 2)], backend) as (layer, _), contextlib.ExitStack() as ends:
        a, b = ends.enter_context(of_a(layer)), ends.enter_context(of_b(layer))
        count = PINGS if rtt_ms < 100 else 60
        _, _, seen = calibrate.ping_train(a, b, count, rtt_ms)
        mean = statistics.fmean(seen)
        allowed = max(0.3, rtt_ms / 100)
        error = mean - rtt_ms
        return Row(
            "RTT", f"{rtt_ms:g} ms", f"{mean:.3f} ms", f"{error:+.3f} ms", f"± {allowed:g} ms",
            abs(error) <= allowed, _late(layer),
        )  # fmt: skip


def rate(rate_mbps: float, backend: str) -> Row:
    """The rate of full frames that follow each other."""
    with chain([Shape(delay_ms=1, rate_mbps=rate_mbps)], backend) as (layer, _):
        seen, _ = calibrate.calibrate_link(layer.made[0], pings=1)
        measured = seen.rate_mbps or 0.0
        error = 100 * (measured / rate_mbps - 1)
        return Row(
            "rate", f"{rate_mbps:g} Mbit/s", f"{measured:.3f} Mbit/s", f"{error:+.2f} %", "± 2 %",
            abs(error) <= 2, _late(layer),
        )  # fmt: skip


def _train(shape: Shape, backend: str) -> tuple[int, int, float | None]:
    """How many frames were sent, and how many came."""
    with chain([shape], backend, time.time_ns()) as (layer, _), contextlib.ExitStack() as ends:
        a, b = ends.enter_context(of_a(layer)), ends.enter_context(of_b(layer))
        frame = a.frame(b, TRAIN, 0, 60)
        sent, stamps = calibrate.frame_train(a, b, frame, LOSS_FRAMES_PER_S, LOSS_S, 0.5)
        return sent, len(stamps), _late(layer)


def loss(loss_percent: float, backend: str) -> Row:
    """The share of frames that are lost."""
    # takes long to load: only who measures waits for it
    from scipy.stats import binom

    sent, came, late = _train(Shape(delay_ms=1, loss_percent=loss_percent), backend)
    lost = sent - came
    low, high = binom.interval(0.99, sent, loss_percent / 100)
    return Row(
        "loss", f"{loss_percent:g} %", f"{100 * lost / sent:.3f} %",
        f"{100 * lost / sent - loss_percent:+.3f} %", f"{100 * low / sent:.3f} to {100 * high / sent:.3f} %",
        low <= lost <= high, late,
    )  # fmt: skip


def run_lengths(came: Iterable[int], sent: int) -> list[int]:
    """The lengths of the runs of frames that did not come, of those numbered 0 to ``sent`` - 1."""
    lengths, expected = [], 0
    for number in [*sorted(set(came)), sent]:
        if number > expected:
            lengths.append(number - expected)
        expected = number + 1
    return lengths


def burst(length_packets: float, backend: str) -> Row:
    """The mean length of bursts of losses, among numbered frames."""
    shape = Shape(delay_ms=1, loss_percent=BURST_LOSS_PERCENT, loss_burst_packets=length_packets)
    count = round(LOSS_FRAMES_PER_S * BURST_S)
    with chain([shape], backend, time.time_ns()) as (layer, _), contextlib.ExitStack() as ends:
        a, b = ends.enter_context(of_a(layer)), ends.enter_context(of_b(layer))
        came: list[int] = []
        begun_s = time.monotonic()
        for number in range(count):
            if (early_s := begun_s + number / LOSS_FRAMES_PER_S - time.monotonic()) > 0:
                time.sleep(early_s)
            a.socket.send(a.frame(b, TRAIN, number, 60))
            if number % 100 == 0:  # the receiver's buffer is finite
                came += [n for kind, n, _ in b.receive() if kind == TRAIN]
        time.sleep(0.5)
        came += [n for kind, n, _ in b.receive() if kind == TRAIN]
        late = _late(layer)
    lengths = run_lengths(came, count)
    mean = statistics.fmean(lengths) if lengths else 0.0
    # lengths are geometric: their deviation is known from their mean
    allowed = Z_99 * math.sqrt(length_packets * (length_packets - 1) / max(1, len(lengths)))
    return Row(
        f"burst of losses, {BURST_LOSS_PERCENT:g} % in all", f"{length_packets:g} packets",
        f"{mean:.2f} packets", f"{mean - length_packets:+.2f} packets", f"± {allowed:.2f} packets",
        abs(mean - length_packets) <= allowed, late,
    )  # fmt: skip


def jitter(delay_ms: float, jitter_ms: float, backend: str) -> Row:
    """The standard deviation of the delay, of frames so far apart that keeping their order costs nothing."""
    with chain([Shape(delay_ms=delay_ms, jitter_ms=jitter_ms)], backend) as (layer, _):
        with contextlib.ExitStack() as ends:
            a, b = ends.enter_context(of_a(layer)), ends.enter_context(of_b(layer))
            one_way, _, _ = calibrate.ping_train(a, b, PINGS, 2 * delay_ms)
        seen = statistics.stdev(one_way)
        error = 100 * (seen / jitter_ms - 1)
        return Row(
            f"jitter around {delay_ms:g} ms", f"{jitter_ms:g} ms", f"{seen:.3f} ms", f"{error:+.1f} %",
            "± 15 %", abs(error) <= 15, _late(layer),
        )  # fmt: skip


def measured(backend: str) -> list[Row]:
    """All rows."""
    rows = [rtt(value, backend) for value in RTTS_MS]
    rows += [rate(value, backend) for value in RATES_MBPS]
    rows += [loss(value, backend) for value in LOSSES_PERCENT]
    rows += [burst(value, backend) for value in BURSTS_PACKETS]
    return rows + [jitter(delay, deviation, backend) for delay, deviation in JITTERS_MS]


def page(rows: list[Row], backend: str) -> str:
    """The table with its heading, in Markdown."""
    about = machine()
    lines = [
        "# How faithful the links are",
        "",
        "<!-- Made by `make fidelity`; measure again instead of editing. -->",
        "",
        f"The backend {backend} on {about['cpu']}, {about['cores']} cores; load average "
        f"{os.getloadavg()[0]:.1f} while it was measured. [links.md](links.md) says what each setting means.",
        "",
        "| what | asked | measured | error | bound | within | late, p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        late = "" if row.late_p99_us is None else f"{row.late_p99_us:.0f} µs"
        within = "yes" if row.within else "**no**"
        lines.append(
            f"| {row.what} | {row.asked} | {row.measured} | {row.error} | {row.bound} | {within} | {late} |"
        )
    missed = sum(not row.within for row in rows)
    lines += ["", f"{len(rows) - missed} of {len(rows)} within their bounds.", ""]
    return "\n".join(lines)


def main() -> int:
    """Measure, print, and write the page if asked to; 1 when a bound was missed."""
    parser = argparse.ArgumentParser(prog="bench.fidelity", description=__doc__.split("\n")[0])
    parser.add_argument("--backend", default="auto", help="auto, netem or cable")
    parser.add_argument("--write", type=Path, help="a Markdown file that the table goes to")
    arguments = parser.parse_args()
    backend = choose_backend(arguments.backend)
    rows = in_new_netns(lambda: measured(backend))
    text = page(rows, backend)
    print(text)
    if arguments.write is not None:
        arguments.write.write_text(text)
    return int(not all(row.within for row in rows))


if __name__ == "__main__":
    sys.exit(main())
