"""``make fuzz``: every decoder, so many seconds each.

    python -m proof.fuzz [--seconds 60] [--target pagemap …] [--keep FOLDER] [--unguided]

Guided by coverage where atheris is installed (``.venv/bin/pip install atheris``), else blindly. Exit
status 1 when a crash is found that tests/fuzz/open.toml does not have.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
import tempfile
from pathlib import Path

from proof.fuzz.attempt import Crash, Target, attempt
from proof.fuzz.findings import Collector, inputs, open_crashes
from proof.fuzz.targets import TARGETS
from proof.fuzz.unguided import fuzz
from quicferry.errors import CommandFailed
from quicferry.paths import CHECKOUT
from quicferry.process import run

SHOWN_BYTES = 48
GRACE_S = 120.0  # for the imports, and for an input on which libFuzzer's own time is over


def main() -> int:
    """Fuzz the targets one after another and say what was found."""
    parser = argparse.ArgumentParser(description="Give every decoder bytes that nobody thought of.")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--target", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--keep", type=Path, default=None, help="keep inputs here")
    parser.add_argument("--unguided", action="store_true", help="even where atheris is installed")
    arguments = parser.parse_args()
    guided = importlib.util.find_spec("atheris") is not None and not arguments.unguided
    print(f"fuzz: {'atheris, guided by coverage' if guided else 'hypothesis, not guided by coverage'}")
    known = {(each.target, each.crash) for each in open_crashes()}
    new = 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.target:
            folder = (arguments.keep or Path(scratch)) / name
            search = _guided if guided else _unguided
            executed, found = search(TARGETS[name], arguments.seconds, folder)
            print(f"{name}: {executed} inputs, {len(found)} kinds of crashes", flush=True)
            for crash, data in sorted(found.items()):
                is_known = (name, crash) in known
                new += not is_known
                shown = data[:SHOWN_BYTES].hex() + ("…" if len(data) > SHOWN_BYTES else "")
                print(f"    {'known' if is_known else 'NEW'}: {crash}: {len(data)} bytes {shown}", flush=True)
    return 1 if new else 0


def _unguided(target: Target, seconds: int, folder: Path) -> tuple[int, dict[Crash, bytes]]:
    collector = Collector(folder)
    fuzz(target, seconds, [path.read_bytes() for path in inputs(target.name)], collector)
    return collector.executed, collector.smallest


def _guided(target: Target, seconds: int, folder: Path) -> tuple[int, dict[Crash, bytes]]:
    argv = [sys.executable, "-m", "proof.fuzz.guided", target.name, str(seconds), str(folder)]
    try:
        done = run(argv, check=False, timeout_s=seconds + GRACE_S, cwd=CHECKOUT)
        said, end = done.stderr, f"ended with status {done.status}"
    except CommandFailed as error:  # a machine that is busy; what was found until then is kept
        said, end = "", f"was ended: {error}"
    executed = re.search(r"number_of_executed_units: (\d+)", said)
    if executed is None:
        print(f"    the fuzzer {end} {said[-400:]}", flush=True)
    found: dict[Crash, bytes] = {}
    for path in sorted(folder.glob("crash-*")):
        if path.suffix != ".txt":
            crash = attempt(target, path.read_bytes())
            if crash is not None:  # one that does not come again was the machine's
                found[crash] = path.read_bytes()
    return int(executed[1]) if executed else 0, found


if __name__ == "__main__":
    sys.exit(main())
