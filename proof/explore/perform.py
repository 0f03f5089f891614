"""Runs one command line as a user would and looks at everything it leaves.

The command is the checkout's ``bin/quicferry``, with a folder of runs and a folder for temporary files of
its own: what is still in the latter afterwards was left behind.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from proof.explore.command import Values, accepted, words
from proof.explore.judge import Observation
from quicferry.emulation.sandbox.ownership import PARTIAL_SUFFIX, tagged_processes
from quicferry.errors import CommandFailed
from quicferry.paths import CHECKOUT
from quicferry.process import run
from quicferry.record import RunPaths, RunResult

PROGRAM = CHECKOUT / "bin" / "quicferry"
SYSTEM = tuple(Path(name) for name in ("/dev", "/mnt", "/proc", "/run", "/sys", "/var"))
TIMEOUT_S = 240.0
GONE_S = 2.0  # after the command, its processes have so long to end


def perform(
    values: Values, runs: Path, *, program: Path = PROGRAM, timeout_s: float = TIMEOUT_S
) -> Observation:
    """Perform the line; its run directory stays in ``runs``. Raises ``Unsupported`` without the program."""
    runs.mkdir(parents=True, exist_ok=True)
    before = {path.name for path in runs.iterdir()}
    scratch = Path(tempfile.mkdtemp(prefix="explore-"))
    mounts, interfaces = _mounts(runs, scratch), _interfaces()
    argv: list[str | Path] = [program, "run", *words(values), "--json", "--runs", runs]
    begun, cpu = time.monotonic(), _children_s()
    try:
        done = run(argv, check=False, timeout_s=timeout_s, env={**os.environ, "TMPDIR": str(scratch)})
        status, stdout, stderr = done.status, done.stdout, done.stderr
    except CommandFailed:
        status, stdout, stderr = None, "", ""
    elapsed_s, cpu_s = time.monotonic() - begun, _children_s() - cpu
    made = [runs / name for name in sorted({path.name for path in runs.iterdir()} - before)]
    left = [
        *_processes(made),
        *(f"the mount {each}" for each in sorted(_mounts(runs, scratch) - mounts)),
        *(f"the interface {each}" for each in sorted(_interfaces() - interfaces)),
        *(f"the file {path.name} among the temporary files" for path in sorted(scratch.iterdir())),
        *(f"the directory {path.name}" for path in made if path.name.endswith(PARTIAL_SUFFIX)),
    ]
    shutil.rmtree(scratch, ignore_errors=True)
    result = _result(stdout)
    return Observation(
        spec=accepted(values),
        status=status,
        elapsed_s=elapsed_s,
        cpu_s=cpu_s,
        stderr=stderr,
        result=result,
        built=bool(made),
        incomplete=tuple(_lacking(result, made)) if status in (0, 1, 3) else (),
        left=tuple(left),
        traces={name: last for path in made for name, last in _traces(path)},
    )


def _result(stdout: str) -> RunResult | None:
    try:
        return msgspec.json.decode(stdout, type=RunResult)
    except msgspec.DecodeError:
        return None


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _processes(made: Iterable[Path]) -> list[str]:
    """Processes of these runs that live on."""
    ids = {path.name.removesuffix(PARTIAL_SUFFIX) for path in made}
    deadline = time.monotonic() + GONE_S
    while True:
        found = [process for process in tagged_processes() if process.run_id in ids]
        if not found or time.monotonic() > deadline:
            return [f"the process {process.command[:100]}" for process in found]
        time.sleep(0.05)


def _mounts(*places: Path) -> set[str]:
    """Mounts below folders that a run is given, or where the system keeps its own.

    Others that use the machine mount in their temporary folders and checkouts, which says nothing of the run.
    """
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    below = (*(place.resolve() for place in places), CHECKOUT, *SYSTEM)
    found = {line.split()[4] for line in lines}
    return {mount for mount in found if any(Path(mount).is_relative_to(place) for place in below)}


def _interfaces() -> set[str]:
    return {path.name for path in Path("/sys/class/net").iterdir()}


def _lacking(result: RunResult | None, made: list[Path]) -> list[str]:
    """What a complete run directory has and this one has not."""
    if len(made) != 1:
        # a baseline that borrows a downtime may be preceded by the run that measures it
        if result is None or result.run_dir is None:
            return ["itself"] if not made else []
        made = [Path(result.run_dir)]
    paths = RunPaths(made[0])
    wanted = [paths.manifest, paths.events, paths.result, paths.logs, paths.captures]
    if result is not None and result.outcome == "succeeded":
        wanted += [paths.client, paths.keys, paths.captures / "client.pcapng", paths.derived / "timeline.svg"]
    lacking = [str(path.relative_to(paths.root)) for path in wanted if not path.exists()]
    return lacking + [str(path.relative_to(paths.root)) for path in paths.root.rglob(f"*{PARTIAL_SUFFIX}")]


def _traces(run_dir: Path) -> list[tuple[str, str]]:
    """Logs of the run with a traceback in them, and its last line."""
    found = []
    for log in sorted((run_dir / "logs").glob("*.log")):
        text = log.read_text(errors="replace")
        at = text.rfind("Traceback (most recent call last)")
        if at >= 0:
            lines = text[at:].splitlines()[1:]
            last = next((line for line in lines if line and not line[0].isspace()), "")
            found.append((log.name, last[:200]))
    return found
