#!/usr/bin/env python3
"""Runs in a virtual machine what this host's kernel may not be able to: netem, Open vSwitch, soft-dirty tracking.

    provision/vm/vm_test.py                  every step; results in .cache/vm-results, a table at the end
    provision/vm/vm_test.py --only smoke     some of the steps
    provision/vm/vm_test.py --list           the steps and how long each may take

A step that did not leave its status is a failure, as is one that took longer than its budget; the budgets
are those of a real processor, multiplied where it is emulated. Exit status 0 when all succeeded, 1 when
one did not, 127 when this host cannot start a machine.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import machine

#: From the start of QEMU to the first step, in seconds on a real processor.
BOOT_S = 20.0

#: What the virtual machine's kernel can do and some hosts' kernels cannot.
ITS_KERNEL = "netem,criu-tracking"


class Step(NamedTuple):
    """One thing that is done in the machine."""

    name: str
    command: str  # bash, in the checkout, as root
    budget_s: float  # on a real processor
    text: str


STEPS = (
    Step("setup", "provision/setup.sh", 60, "the set-up, which finds everything there"),
    Step("doctor", "bin/quicferry doctor --json >/job/results/doctor.json", 40, "all probes end"),
    Step(
        "smoke",
        "bin/quicferry run --strategy symmetric --link-backend netem --json",
        20,
        "one move over links that netem shapes",
    ),
    Step(
        "calibration",
        "for backend in netem cable; do .venv/bin/python -m bench.bench_links --quick --backend $backend"
        " || exit 1; done",
        200,
        "what netem and the cable really do, side by side",
    ),
    Step(
        "tests",
        f".venv/bin/python -m pytest -q --require={ITS_KERNEL} --timeout=$((300 * SLOWER))"
        " -m e2e tests/e2e/emulation tests/e2e/migration/test_native_copy.py"
        " tests/e2e/experiment/test_run_memory.py",
        400,
        "the end-to-end tests that need its kernel",
    ),
    Step(
        "engines",
        "for engine in $(.venv/bin/python -c 'from quicferry.migration.engines.registry import engines;"
        " print(*engines())'); do bin/quicferry run --strategy symmetric"
        ' --engine "$engine" --json || exit 1; done',
        120,
        "every engine once",
    ),
    Step(
        "memory-by-criu",
        "for engine in criu-pre-copy criu-hybrid; do bin/quicferry run --strategy symmetric"
        ' --engine "$engine" --memory-by criu --memory-mib 16 --json || exit 1; done',
        40,
        "pre-copy and hybrid by CRIU's own write tracking",
    ),
    Step(
        "mininet",
        "for topology in $(bin/quicferry topo list --json | .venv/bin/python -c"
        " 'import json, sys; [print(json.loads(line)[\"name\"]) for line in sys.stdin]'); do"
        " .venv/bin/python -m quicferry.emulation.sandbox.private_root .venv/bin/mn"
        ' --custom "topologies/$topology.py" --topo "$topology" --controller none --switch lxbr'
        " --test pingall || exit 1; done",
        60,
        "stock Mininet with each topology",
    ),
    Step("demo", "bin/quicferry demo", 240, "what a newcomer sees"),
)


def script(steps: list[Step], by: machine.Accelerator) -> str:
    """What the machine does: each step with its budget, its output and its status in a file of its own."""
    lines = [f"export SLOWER={by.slower:.0f}"]
    for step in steps:
        lines += [
            f"begun=$SECONDS; timeout -k 10 {step.budget_s * by.slower:.0f} bash -c {shlex.quote(step.command)}"
            f" >/job/results/{step.name}.txt 2>&1 </dev/null",
            f"echo \"$? $((SECONDS - begun))\" >/job/results/{step.name}.status",
        ]
    return "\n".join([*lines, "exit 0", ""])


class Outcome(NamedTuple):
    """How a step ended."""

    step: str
    ok: bool
    seconds: float | None  # in the machine's own time; None: it left no status
    said: str


def outcomes(steps: list[Step], results: Path) -> list[Outcome]:
    """What the steps left; one that left nothing has failed."""
    found = []
    for step in steps:
        status, output = results / f"{step.name}.status", results / f"{step.name}.txt"
        lines = output.read_text(errors="replace").strip().splitlines() if output.exists() else []
        said = lines[-1][:120] if lines else ""
        if not status.exists():
            found.append(Outcome(step.name, False, None, said or "left no status: it was never done"))
            continue
        code, seconds = map(int, status.read_text().split())
        if code in (124, 137):
            said = f"took longer than its budget; it said last: {said}"
        found.append(Outcome(step.name, code == 0, seconds, said))
    return found


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [step.name for step in STEPS]
    parser.add_argument("--only", action="append", choices=names, help="do only this step; may be repeated")
    parser.add_argument("--accelerator", default="auto", choices=["auto", *machine.ACCELERATORS])
    parser.add_argument("--results", type=Path, default=machine.ROOT / ".cache" / "vm-results")
    parser.add_argument("--memory-mib", type=int, default=4096)
    parser.add_argument("--list", action="store_true", help="list the steps; do nothing")
    asked = parser.parse_args()
    if asked.list:
        for step in STEPS:
            print(f"{step.name:16} {step.budget_s:5.0f} s  {step.text}")
        return 0
    if shutil.which(machine.QEMU) is None:
        print(f"vm-test: there is no {machine.QEMU}", file=sys.stderr)
        print("  hint: apt-get install qemu-system-x86 qemu-utils debootstrap", file=sys.stderr)
        return 127
    chosen = [step for step in STEPS if asked.only is None or step.name in (*asked.only, "setup")]
    shutil.rmtree(asked.results, ignore_errors=True)
    begun = time.monotonic()
    trouble = None
    try:
        image = machine.image()
        by = machine.accelerator(asked.accelerator, image)
        budget = (BOOT_S + sum(step.budget_s for step in chosen)) * by.slower
        print(f"vm-test: {by.name} ({by.why}); at most {budget / 60:.0f} min", file=sys.stderr)
        status = machine.run(
            script(chosen, by),
            asked.results,
            image=image,
            by=by,
            budget_s=budget,
            memory_mib=asked.memory_mib,
        )
        if status != 0:
            trouble = f"the job ended with status {status}"
    except (machine.MachineError, subprocess.CalledProcessError) as error:
        trouble = str(error)
    found = outcomes(chosen, asked.results)
    for each in found:
        took = "" if each.seconds is None else f"{each.seconds:.0f} s"
        print(f"{each.step:16} {'ok' if each.ok else 'FAILED':7} {took:>7}  {each.said}")
    if trouble:
        print(f"vm-test: {trouble}", file=sys.stderr)
    asked.results.mkdir(parents=True, exist_ok=True)
    (asked.results / "outcomes.json").write_text(json.dumps([each._asdict() for each in found], indent=1))
    print(f"vm-test: {time.monotonic() - begun:.0f} s; results in {asked.results}", file=sys.stderr)
    return 0 if trouble is None and all(each.ok for each in found) else 1


if __name__ == "__main__":
    sys.exit(main())
