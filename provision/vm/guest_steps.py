"""In the virtual machine: do the steps that the host asked for, and write down how each of them ended.

Started by ``run.sh`` of the job (``guest.sh``); the standard library only. The host leaves
``/job/steps.json`` (``Job``); for each step ``results/NAME.txt`` (what it printed) and ``results/NAME.json``
(``Ending``) are left. Budgets are those of a real processor: this machine measures how many times slower
it is than the host's processor, and takes as many times longer before it ends a step.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

JOB = Path("/job")


def wall_s() -> float:
    """The clock on the wall."""
    return time.monotonic()


def cpu_s() -> float:
    """The processor time of this process and its children: what else the machine does is not in it."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def speed_s(clock: Callable[[], float]) -> float:
    """How long some Python and some starts of a program take here, in seconds: the best of three."""
    return min(_trial_s(clock) for _ in range(3))


def _trial_s(clock: Callable[[], float]) -> float:
    begun = clock()
    table: dict[int, int] = {}
    for number in range(200_000):
        table[number % 1000] = table.get(number % 1000, 0) + number
    for _ in range(10):
        subprocess.run(["/bin/true"], check=False)
    return clock() - begun


def write(path: Path, value: dict[str, Any]) -> None:
    """Write JSON so that a reader finds all of it or nothing."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value))
    partial.rename(path)


def do(command: str, output: Path, budget_s: float) -> tuple[int, float, bool]:
    """Do one step in bash. Returns its exit status, its seconds, and whether its time was over.

    When it is, the processes of its group are ended; those of a run end with the tool that made them.
    """
    begun = time.monotonic()
    output.unlink(missing_ok=True)
    with output.open("ab") as log:  # a command that opens /dev/stderr itself would else be written over
        process = subprocess.Popen(
            ["bash", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        in_time = True
        try:
            process.wait(budget_s)
        except subprocess.TimeoutExpired:
            in_time = False
            for number, grace_s in ((signal.SIGTERM, 20.0), (signal.SIGKILL, None)):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(grace_s)
    return process.returncode, time.monotonic() - begun, not in_time


def main(job: Path = JOB) -> int:
    """Do all steps; a step that fails does not keep the next from being done."""
    asked = json.loads((job / "steps.json").read_text())
    results = job / "results"
    uptime_s = float(Path("/proc/uptime").read_text().split()[0])
    slower = max(1.0, speed_s(wall_s) / asked["host_cpu_s"])
    write(
        results / "machine.json",
        {
            "slower": slower,
            "boot_s": uptime_s,
            "kernel": platform.release(),
            "python": platform.python_version(),
            "clock_s": time.monotonic(),
        },
    )
    os.environ["QUICFERRY_VM_SLOWER"] = f"{slower:.0f}"
    for step in asked["steps"]:
        budget_s = step["budget_s"] * slower
        status, seconds, over = do(step["command"], results / f"{step['name']}.txt", budget_s)
        write(
            results / f"{step['name']}.json",
            {"status": status, "seconds": seconds, "budget_s": budget_s, "timed_out": over},
        )
    # by the times of the two files, which are the host's, it can judge this machine's clock
    write(results / "end.json", {"clock_s": time.monotonic()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
