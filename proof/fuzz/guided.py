"""Coverage chooses the bytes: one target under atheris, that is libFuzzer for Python.

    python -m proof.fuzz.guided TARGET SECONDS FOLDER

A process of its own for each target: libFuzzer ends the process it runs in. Crashes do not end it: each
kind is kept once, in FOLDER, and the search goes on behind it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["quicferry", "apps", "session", "scapy.utils"]):
    from proof.fuzz.targets import TARGETS

from proof.fuzz.attempt import attempt
from proof.fuzz.findings import CORPUS, Collector

MAX_BYTES = 8192


def main() -> None:
    """Fuzz until the time is over."""
    name, seconds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    target, collector = TARGETS[name], Collector(folder)
    grown = folder / "grown"  # what coverage has found worth keeping
    grown.mkdir(parents=True, exist_ok=True)

    def once(data: bytes) -> int:
        crash = attempt(target, data, time_s=collector.time_s)
        collector.take(crash, data)
        return 0 if crash is None else -1  # -1: not into the corpus, or all that follows crashes like it

    flags = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", "-timeout=120", "-rss_limit_mb=0"]
    corpus = [str(CORPUS / name)] if (CORPUS / name).is_dir() else []
    atheris.Setup([sys.argv[0], *flags, "-print_final_stats=1", str(grown), *corpus], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
