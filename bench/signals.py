"""``make signals``: ends the tool by each signal at each moment, and looks for what it left behind.

    python -m bench.signals [--signal KILL …] [--moment dumping …]

A moment is told by what the tool has started: the program that is looked for runs, so a run need not be
timed. The tests perform each signal and each moment once, by the same functions.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import psutil

from quicferry.emulation.sandbox import ownership
from quicferry.emulation.sandbox.ownership import PARTIAL_SUFFIX, TaggedProcess
from quicferry.errors import StoreError
from quicferry.experiment.known_answers import ALWAYS, VARIABLE
from quicferry.paths import CHECKOUT
from quicferry.process import DEVNULL, Popen, TimeoutExpired, spawn
from quicferry.record import read_manifest

AT_ONCE = 2
REACHED_S = 180.0  # a machine that is very busy
ENDS_S = 15.0  # what is open is ended in good order
GONE_S = 5.0  # after the tool's end, for the kernel to end what was in its private root
POLL_S = 0.005
SIGNALS = ("KILL", "TERM", "HUP", "INT")
KINDS = ("net", "mnt", "pid")


class Moment(NamedTuple):
    """A command line, and a word of the command of a process that tells that the moment has come."""

    words: tuple[str, ...]
    program: str
    no_more_memory: bool = False  # from then on, no process of it gets any more address space (RLIMIT_AS)


_RUN = ("run", "--strategy", "symmetric", "--before-s", "5", "--json")
_CRIU = (
    "run",
    "--strategy",
    "symmetric",
    "--engine",
    "criu-cold",
    "--memory-mib",
    "100",
    "--before-s",
    "0.1",
)
MOMENTS: dict[str, Moment] = {
    "doctor asks": Moment(("doctor", "--only", "shaped-link"), "quicferry.experiment.preflight"),
    "doctor captures": Moment(("doctor", "--only", "tshark"), "quicferry.capture.recorder"),
    "doctor dumps": Moment(("doctor", "--only", "criu"), "criu_check.py"),
    "preflight": Moment(_RUN, "quicferry.experiment.preflight"),
    "the run begins": Moment(_RUN, "session.play"),
    "captures run": Moment(_RUN, "quicferry.capture.recorder"),
    "the server starts": Moment(_RUN, "apps.server.server"),
    "the client loads": Moment(_RUN, "apps.client"),
    "no memory is left": Moment(_RUN, "apps.client", no_more_memory=True),
    "dumping": Moment(_CRIU, "criu dump"),
    "restoring": Moment(_CRIU, "criu restore"),
}


def of_tool(tag: str) -> list[TaggedProcess]:
    """The living processes that a tool has started."""
    return [process for process in ownership.tagged_processes() if process.tool == tag]


def namespaces(pids: Sequence[int]) -> set[str]:
    """The namespaces of these processes, those of this process left out."""
    found = set()
    for pid in [*pids, os.getpid()]:
        for kind in KINDS:
            try:
                name = str(Path(f"/proc/{pid}/ns/{kind}").readlink())
            except OSError:
                continue
            found.add(name) if pid != os.getpid() else found.discard(name)
    return found


def all_pids() -> list[int]:
    """Every process of this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def end_at(name: str, number: signal.Signals, folder: Path) -> list[str]:
    """Start the tool, send it the signal at that moment, and say what is left; nothing is as it should be."""
    moment = MOMENTS[name]
    runs, scratch, log = folder / "runs", folder / "tmp", folder / "log"
    scratch.mkdir(parents=True)
    env = {**os.environ, "QUICFERRY_RUNS": str(runs), "TMPDIR": str(scratch), VARIABLE: ALWAYS}
    with log.open("wb") as output:
        tool = spawn(
            # under nohup, or in the background of a shell, some would be ignored from the start
            ["env", "--default-signal", CHECKOUT / "bin" / "quicferry", *moment.words],
            stdin=DEVNULL,
            stdout=output,
            stderr=output,
            env=env,
        )
    tag = ownership.tool_tag(tool.pid)
    try:
        living = _await_moment(tool, tag, moment.program)
        if living is None:
            return [f"the moment did not come: {log.read_text(errors='replace').strip()[-200:]}"]
        made, there = namespaces([process.pid for process in living]), all_pids()
        if moment.no_more_memory:
            for pid in (tool.pid, *(process.pid for process in living)):
                _deny_memory(pid)
        tool.send_signal(number)
        try:
            status = tool.wait(ENDS_S)
        except TimeoutExpired:
            return [f"the tool did not end within {ENDS_S:g} s"]
        return [*left_by(tag, made, there), *_told(number, status, runs, log), *left_files(runs, scratch)]
    finally:
        tool.kill()
        tool.wait()


def _deny_memory(pid: int) -> None:
    """Let a process have no more address space than it has, as under ``ulimit -v``."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        size = process.memory_info().vms
        process.rlimit(psutil.RLIMIT_AS, (size, size))


def _await_moment(tool: Popen[bytes], tag: str, program: str) -> list[TaggedProcess] | None:
    deadline = time.monotonic() + REACHED_S
    while tool.poll() is None and time.monotonic() < deadline:
        living = of_tool(tag)
        # of the probe's private root, the outer processes have the words of the command, too
        if any(program in _plain(process.command) for process in living):
            return living
        time.sleep(POLL_S)
    return None


def _plain(command: str) -> str:
    """A command in which programs have no folders: ``criu dump``."""
    return " ".join(word.rpartition("/")[2] for word in command.split())


def _eventually(is_so: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + GONE_S
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def left_by(tag: str, made: set[str], there: Sequence[int]) -> list[str]:
    """Processes and namespaces. Of a namespace none is left when no process of then is in it any more."""
    found = []
    if not _eventually(lambda: not of_tool(tag)):
        found += [f"process {process.pid} is left: {process.command[:100]}" for process in of_tool(tag)]
    if not _eventually(lambda: not namespaces(there) & made):
        found.append("namespaces are left: " + ", ".join(sorted(namespaces(there) & made)))
    mounted = Path("/proc/self/mountinfo").read_text()
    numbers = {name.partition("[")[2].rstrip("]") for name in made}
    return found + [f"namespace {number} is mounted" for number in numbers if f"[{number}]" in mounted]


def _told(number: signal.Signals, status: int, runs: Path, log: Path) -> list[str]:
    """Exit status, message, and how the run says that it ended."""
    text = log.read_text(errors="replace")
    found = ["a traceback: " + text.strip()[-200:]] if "Traceback" in text else []
    if number is signal.SIGKILL:
        return found
    if status != 128 + number:
        found.append(f"exit status {status} after {number.name}")
    for directory in sorted(runs.iterdir()) if runs.is_dir() else []:
        try:
            manifest = read_manifest(directory)
        except StoreError as error:
            found.append(str(error))
            continue
        if directory.suffix == PARTIAL_SUFFIX or manifest.outcome != "failed":
            found.append(f"the run is {manifest.outcome} in {directory.name}")
        elif number.name not in (manifest.error or ""):
            found.append(f"the run does not say by what it was ended: {manifest.error}")
    return found


def left_files(runs: Path, scratch: Path) -> list[str]:
    """Temporary files and private keys."""
    found = [f"the file {path.name} is left" for path in scratch.iterdir()]
    files = [path for path in runs.rglob("*") if path.is_file()] if runs.is_dir() else []
    keys = [path for path in files if b"PRIVATE KEY" in path.read_bytes()]
    return found + [f"the key {path.relative_to(runs)} is left" for path in keys]


def main() -> int:
    """End the tool in all ways, print what is left, and say whether anything is."""
    parser = argparse.ArgumentParser(description="Each signal at each moment.")
    parser.add_argument("--signal", nargs="+", choices=SIGNALS, default=SIGNALS)
    parser.add_argument("--moment", nargs="+", choices=list(MOMENTS), default=list(MOMENTS))
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    arguments = parser.parse_args()
    cases = [(name, each) for name in arguments.moment for each in arguments.signal]
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.at_once) as pool:

        def ended(case: tuple[str, str]) -> list[str]:
            name, each = case
            return end_at(name, signal.Signals[f"SIG{each}"], Path(scratch) / f"{name}-{each}")

        for (name, each), found in zip(cases, pool.map(ended, cases), strict=True):
            wrong += bool(found)
            print(f"{name}, SIG{each}: {'; '.join(found) or 'nothing is left'}", flush=True)
    print(f"{len(cases)} ends, {wrong} left something")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
