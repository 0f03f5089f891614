"""Whether netem and the cable shape links alike: both calibrated by turns on one machine, as root.

    sudo .venv/bin/python -m bench.side_by_side [--rounds 3]

The kernel needs netem. Every round calibrates the same links by netem and by the cable, at rates that an
emulated processor can keep up with: the round-trip time and the rate are medians, the loss is of all rounds.
The two agree when they differ by no more than the calibration may be wrong: what fidelity.md allows a link
(0.3 ms or 1 %, a rate 2 %), how far each backend's own rounds lie apart, and how late the cable says that its
frames left, there and back. Losses agree when 99 % of binomial samples of one probability lie as near. Ends
with status 1 when they do not agree.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from bench.bench_links import chain
from bench.fidelity import Z_99
from quicferry.emulation.links import calibrate
from quicferry.emulation.links.layer import MadeLink, choose_backend
from quicferry.emulation.links.link_end import TRAIN, LinkEnd
from quicferry.emulation.sandbox.namespaces import in_new_netns
from quicferry.errors import Unsupported
from quicferry.model import Shape

BACKENDS = ("netem", "cable")
#: What the links are asked to do; in a row with hosts between, so that one cable has them all.
SHAPES = (
    Shape(delay_ms=2),
    Shape(delay_ms=9),
    Shape(delay_ms=25),
    Shape(delay_ms=1, rate_mbps=2),
    Shape(delay_ms=1, loss_percent=3),
)
#: What a calibrated link may be off by in fidelity.md.
RTT_MS, RTT_SHARE, RATE_SHARE = 0.3, 0.01, 0.02
#: Losses are counted in a train of small frames.
LOSS_FRAMES_PER_S, LOSS_S = 200, 6.0
LOSS_FRAMES = math.ceil(LOSS_FRAMES_PER_S * LOSS_S)


class Seen(NamedTuple):
    """One calibration of one link, from ``a`` to ``b``. None: not measured, or nothing arrived."""

    rtt_ms: float | None = None
    rate_mbps: float | None = None
    loss_percent: float | None = None
    late_ms: float = 0.0  # the cable's median, there and back


class Verdict(NamedTuple):
    """One quantity of one link by both backends."""

    what: str
    asked: float
    netem: float
    cable: float
    allowed: float  # how far the two may differ
    unit: str

    @property
    def agree(self) -> bool:
        """Whether they do not differ by more."""
        return abs(self.netem - self.cable) <= self.allowed


def spread(values: Sequence[float]) -> float:
    """How far from their median the farthest lies."""
    middle = statistics.median(values)
    return max(abs(value - middle) for value in values)


def verdict(shape: Shape, netem: Sequence[Seen], cable: Sequence[Seen]) -> Verdict:
    """What the rounds of one link by both say of what it is there for: loss, rate or round-trip time.

    Raises ``ValueError`` when a round measured nothing.
    """
    if shape.loss_percent:
        return _loss_verdict(shape, netem, cable)
    if shape.rate_mbps is not None:
        a, b = (_all(seen.rate_mbps for seen in rounds) for rounds in (netem, cable))
        allowed = RATE_SHARE * shape.rate_mbps + spread(a) + spread(b)
        return Verdict("rate", shape.rate_mbps, statistics.median(a), statistics.median(b), allowed, "Mbit/s")
    asked_ms = 2 * shape.delay_ms
    a, b = (_all(seen.rtt_ms for seen in rounds) for rounds in (netem, cable))
    late_ms = statistics.median(seen.late_ms for seen in cable)
    allowed = max(RTT_MS, RTT_SHARE * asked_ms) + spread(a) + spread(b) + late_ms
    return Verdict("RTT", asked_ms, statistics.median(a), statistics.median(b), allowed, "ms")


def _loss_verdict(shape: Shape, netem: Sequence[Seen], cable: Sequence[Seen]) -> Verdict:
    a, b = (statistics.fmean(_all(seen.loss_percent for seen in rounds)) for rounds in (netem, cable))
    share = (a * len(netem) + b * len(cable)) / (len(netem) + len(cable)) / 100
    sampled = 1 / (LOSS_FRAMES * len(netem)) + 1 / (LOSS_FRAMES * len(cable))
    allowed = 100 * Z_99 * math.sqrt(share * (1 - share) * sampled)
    return Verdict("loss", shape.loss_percent, a, b, allowed, "%")


def _all(values: Iterable[float | None]) -> list[float]:
    asked = list(values)
    found = [value for value in asked if value is not None]
    if len(found) < max(1, len(asked)):
        raise ValueError("a link was calibrated and nothing arrived")
    return found


def _calibrated_link(made: MadeLink, pings: int) -> Seen:
    shape = made.link.a_to_b
    if not shape.loss_percent:
        seen, _ = calibrate.calibrate_link(made, pings=pings)
        return Seen(rtt_ms=seen.rtt_median_ms, rate_mbps=seen.rate_mbps)
    with LinkEnd(made.a_pid, made.a_interface) as a, LinkEnd(made.b_pid, made.b_interface) as b:
        frame = a.frame(b, TRAIN, 0, calibrate.SMALL_FRAME_BYTES)
        sent, stamps = calibrate.frame_train(a, b, frame, LOSS_FRAMES_PER_S, LOSS_S, 1.0)
    return Seen(loss_percent=100 * (1 - len(stamps) / sent))


def calibrated(backend: str, seed: int, pings: int) -> list[Seen]:
    """Every link once, by that backend."""
    with chain(list(SHAPES), backend, seed) as (layer, _):
        seen = [_calibrated_link(made, pings) for made in layer.made]
        late_us = layer.readings()[0].read_back.get("late_p50_us")  # of all frames of the cable
    late_ms = 2 * late_us / 1e3 if isinstance(late_us, int | float) else 0.0
    return [one._replace(late_ms=late_ms) for one in seen]


def table(verdicts: Sequence[Verdict]) -> str:
    """For people."""
    lines = [
        "| what | asked | netem | cable | differ by | may differ by | agree |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.what} | {one.asked:g} {one.unit} | {one.netem:.3f} | {one.cable:.3f} "
        f"| {one.cable - one.netem:+.3f} | {one.allowed:.3f} | {'yes' if one.agree else '**no**'} |"
        for one in verdicts
    ]
    return "\n".join(lines)


def measure(rounds: int, pings: int) -> list[Verdict]:
    """Both by turns, and what they say; a round's values are printed as they come."""
    seen: dict[str, list[list[Seen]]] = {backend: [] for backend in BACKENDS}
    for number in range(rounds):
        for backend in BACKENDS if number % 2 == 0 else BACKENDS[::-1]:
            links = calibrated(backend, number + 1, pings)
            seen[backend].append(links)
            units = (("rtt_ms", "ms"), ("rate_mbps", "Mbit/s"), ("loss_percent", "% lost"))
            said = [
                f"{value:.3f} {unit}"
                for one in links
                for name, unit in units
                if (value := getattr(one, name)) is not None
            ]
            said += [f"late {links[0].late_ms:.3f} ms"] if backend == "cable" else []
            print(f"round {number + 1}, {backend}: {', '.join(said)}", flush=True)
    return [
        verdict(shape, *([links[i] for links in seen[backend]] for backend in BACKENDS))
        for i, shape in enumerate(SHAPES)
    ]


def main() -> int:
    """Measure and print; 1 when the two do not agree, 127 when this machine lacks one of them."""
    parser = argparse.ArgumentParser(prog="bench.side_by_side", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="how often each is calibrated [3]")
    parser.add_argument("--pings", type=int, default=100, help="round trips of each calibration [100]")
    arguments = parser.parse_args()
    try:
        for backend in BACKENDS:
            choose_backend(backend)
    except Unsupported as error:
        print(f"side_by_side: {error}\n  hint: {error.hint}", file=sys.stderr)
        return 127
    print(f"netem and the cable by turns, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}", flush=True)
    verdicts = in_new_netns(lambda: measure(arguments.rounds, arguments.pings))
    print(table(verdicts))
    agree = sum(one.agree for one in verdicts)
    print(f"{agree} of {len(verdicts)} agree")
    return int(agree != len(verdicts))


if __name__ == "__main__":
    sys.exit(main())
