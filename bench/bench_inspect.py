"""Measures ``quicferry inspect --json`` against tshark, for the same fields of the same decrypted captures.

    python -m bench.bench_inspect [--packets 100000] [--repetitions 3]

Two captures are made by stock aioquic in virtual time: *requests*, a stream per request as the load of this
testbed has it, and *bulk*, large answers on few streams. Printed are CPU seconds, the median of the
repetitions, as the wall clock of a shared machine measures the neighbours.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from quicferry import process
from quicferry.paths import CHECKOUT
from tests.capture_support import Scene, write_pcapng

FIELDS = (
    "frame.number", "frame.time_epoch", "ip.src", "udp.srcport", "ip.dst", "udp.dstport",
    "quic.long.packet_type", "quic.version", "quic.dcid", "quic.packet_number", "quic.frame_type",
    "quic.stream.stream_id", "quic.stream.offset", "quic.stream.length",
)  # fmt: skip


def _requests(packets: int) -> Scene:
    """A request each 0.2 ms: about 1.1 packets each, acknowledgements among them."""
    scene = Scene(interval_ms=0.2, response_bytes=1000, one_way_ms=2)
    end_ms = 100 + packets * 0.2 / 2.25
    scene.load(100, end_ms)
    scene.run(end_ms + 300)
    return scene


def _bulk(packets: int) -> Scene:
    """Answers of 400 kB: about 350 packets each."""
    scene = Scene(interval_ms=50, response_bytes=400_000, one_way_ms=2)
    end_ms = 100 + packets / 350 * 50
    scene.load(100, end_ms)
    scene.run(end_ms + 3000)
    return scene


def _cpu_s(argv: list[str | Path], timeout_s: float) -> float:
    """The CPU time of a program that runs to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process.run(argv, timeout_s=timeout_s, cwd=CHECKOUT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@contextmanager
def _written(scene: Scene) -> Iterator[tuple[Path, Path, list[str | Path]]]:
    """The scene's capture, its keys, and the command by which we read them."""
    with tempfile.TemporaryDirectory() as folder:
        capture, keys = Path(folder) / "a.pcapng", Path(folder) / "keys.log"
        write_pcapng(capture, scene.client_side)
        keys.write_text(scene.keys.getvalue())
        yield capture, keys, ["bin/quicferry", "inspect", capture, "--keys", keys, "--json"]


def inspect_cpu_s(packets: int, repetitions: int) -> list[float]:
    """CPU seconds of ``quicferry inspect --json`` over about so many packets of requests."""
    with _written(_requests(packets)) as (_, _, ours):
        return [_cpu_s(ours, 600) for _ in range(repetitions)]


def measure(name: str, scene: Scene, repetitions: int) -> None:
    """Write a capture, read it with both, print a line."""
    with _written(scene) as (capture, keys, ours):
        theirs: list[str | Path] = [
            "tshark",
            "-n",
            "-r",
            capture,
            "-o",
            f"tls.keylog_file:{keys}",
            "-Y",
            "quic",
        ]
        theirs += ["-T", "fields", *(word for field in FIELDS for word in ("-e", field))]
        inspect_s = median(_cpu_s(ours, 600) for _ in range(repetitions))
        tshark_s = median(_cpu_s(theirs, 3600) for _ in range(repetitions))
    count = len(scene.client_side)
    print(
        f"{name:<9} {count:>7} packets  inspect {inspect_s:6.2f} s  tshark {tshark_s:6.2f} s  "
        f"tshark / inspect {tshark_s / inspect_s:5.2f}"
    )


def main() -> None:
    """Measure both captures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--packets", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    kinds: dict[str, Callable[[int], Scene]] = {"requests": _requests, "bulk": _bulk}
    for name, make in kinds.items():
        measure(name, make(arguments.packets), arguments.repetitions)


if __name__ == "__main__":
    main()
