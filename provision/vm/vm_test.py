#!/usr/bin/env python3
"""Runs in a virtual machine what this host's kernel may not be able to.

    provision/vm/vm_test.py                  every step; results in .cache/vm-results, a table at the end
    provision/vm/vm_test.py --only doctor    some of the steps
    provision/vm/vm_test.py --list           the steps and how long each may take

Its kernel has netem, Open vSwitch and soft-dirty tracking. A step that did not leave its status is a
failure, as is one that took longer than its budget; budgets are those of a real processor, multiplied by
how many times slower than this host the machine is. Where the processor is emulated, steps that need exact
time are done in a second start of the machine, in emulated time. Exit status 0 when all steps succeeded, 1
when one did not, 2 when a step is unknown, 127 when this host cannot start a machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import guest_steps
import machine

#: Seconds that may pass from the start of QEMU to the first step, on a real processor.
BOOT_S = 40.0

#: Seconds beyond all budgets, in which results are written and the machine is switched off.
SPARE_S = 120.0

#: What the virtual machine's kernel can do and some hosts' kernels cannot: its tests must not skip.
ITS_KERNEL = "netem,criu,criu-lazy-pages,criu-page-server,criu-tracking"

#: How far off the machine's clock may be, and the shortest time by which that is judged, in seconds.
CLOCK_OFF, CLOCK_SPAN_S = 0.03, 20.0

RUN = "bin/quicferry run --strategy symmetric --json"

#: One sweep in one network: on an emulated processor making a network takes as long as a run in it.
SWEEP = "bin/quicferry sweep provision/vm/{0}.toml --network keep -o runs/{0} --json"

#: What else a test needs, this host may lack as well.
TESTS = f".venv/bin/python -m pytest -q --require={ITS_KERNEL} --timeout=$((300 * QUICFERRY_VM_SLOWER))"

#: From this many times slower than the host's on, a processor is taken for an emulated one.
EMULATED = 8
DEMO = (
    f"if [ $QUICFERRY_VM_SLOWER -lt {EMULATED} ]; then bin/quicferry demo; else"
    " echo 'emulated processor: two of the strategies';"
    " bin/quicferry demo --strategy proactive-explicit --strategy symmetric; fi"
)

#: What stock Mininet does must not be done to the machine's own network.
PRIVATE_ROOT = ".venv/bin/python -m quicferry.emulation.sandbox.private_root"

#: Mininet's own exit status says nothing of packets that were lost. Without -a, tee would empty the step's
#: output, which is a file, before each topology.
ALL_ARRIVED = "2>&1 | tee -a /dev/stderr | grep -q 'Results: 0% dropped'"


class Step(NamedTuple):
    """One thing that is done in the machine."""

    name: str
    command: str  # bash, in the checkout, as root
    budget_s: float  # on a real processor
    text: str
    #: Whether it needs time that a noisy host does not distort: emulated, where the processor is.
    exact: bool = False


def _each(values: str, command: str) -> str:
    """Bash that does the command with ``$it`` for each value, all of them, and fails when one did."""
    return f'status=0; for it in {values}; do echo "== $it"; {command} || status=1; done; exit $status'


def _mn(topology: str, switch: str) -> str:
    """The command of stock Mininet: every host of the topology pings every other."""
    return (
        f".venv/bin/mn --custom topologies/{topology}.py --topo {topology}"
        f" --controller none --switch {switch} --test pingall"
    )


#: In their order: what says most of the kernel comes first, what takes longest last.
STEPS = (
    Step(
        "kernel",
        "bin/quicferry doctor --only netem --only criu --only criu-tracking --json",
        20,
        "its kernel has netem and soft-dirty, and CRIU works: the smallest proof",
    ),
    Step("doctor", "bin/quicferry doctor --json", 60, "every probe ends, and what the demo needs works"),
    Step(
        "mininet",
        _each(
            "two_edges one_lan chain ring cloud_edge map",
            f"{PRIVATE_ROOT} {_mn('$it', 'lxbr')} {ALL_ARRIVED}",
        ),
        120,
        "stock Mininet with each topology, shaped by its TCLink",
    ),
    Step(
        "openvswitch",
        f"{PRIVATE_ROOT} bash -c '/usr/share/openvswitch/scripts/ovs-ctl start --system-id=random &&"
        f" exec {_mn('one_lan', 'ovsbr')}' {ALL_ARRIVED}",
        40,
        "stock Mininet with Open vSwitch of the kernel as its switch",
    ),
    Step("handoff", f"{RUN} --link-backend netem", 30, "a move over links that netem shapes"),
    Step(
        "hybrid",
        f"{RUN} --engine criu-hybrid --memory-by criu --link-backend netem"
        " --interval-ms 200 --before-s 2 --after-s 4",
        30,
        "CRIU hybrid by its own write tracking; its server must serve within a lease of 3 s",
        exact=True,
    ),
    Step(
        "containers",
        SWEEP.format("containers"),
        120,
        "runc cold and pre-copy, and the published procedure: its pre-copy and hybrid need soft-dirty",
        exact=True,
    ),
    Step(
        "published",
        SWEEP.format("published"),
        360,
        "pre-copy and hybrid as published beside ours, by two sizes and two rates",
        exact=True,
    ),
    Step(
        "post-copy",
        SWEEP.format("post_copy"),
        60,
        "a process and a container by post-copy, served by userfaultfd",
        exact=True,
    ),
    Step(
        "engines",
        SWEEP.format("engines"),
        120,
        "handoff over netem and over the cable; CRIU cold, pre-copy and hybrid by its own write tracking",
        exact=True,
    ),
    Step(
        "calibration",
        ".venv/bin/python -m bench.side_by_side",
        120,
        "netem and the cable by turns on the same links: they agree within the calibration's error",
        exact=True,
    ),
    Step(
        "links",
        f"{TESTS} --needing=netem tests/e2e/emulation/test_links.py",
        60,
        "the end-to-end test of netem, which looks at a millisecond",
        exact=True,
    ),
    Step(
        "tests",
        f"{TESTS} --needing=criu-tracking tests/e2e/migration/test_native_copy.py"
        " tests/e2e/experiment/test_run_memory.py",
        300,
        "the end-to-end tests that need soft-dirty",
        exact=True,
    ),
    Step("cable", f"{RUN} --link-backend cable", 30, "a move over the cable"),
    Step("setup", "provision/setup.sh", 60, "the set-up finds everything there"),
    Step("demo", DEMO, 120, "what a newcomer sees; on an emulated processor with two of the strategies"),
)


def choose(names: list[str] | None) -> list[Step]:
    """The steps of those names, in their own order; all for none. Raises ``ValueError`` for an unknown."""
    if not names:
        return list(STEPS)
    known = {step.name for step in STEPS}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"there is no step {unknown[0]!r}; there are: {', '.join(step.name for step in STEPS)}"
        )
    return [step for step in STEPS if step.name in names]


class Start(NamedTuple):
    """One start of the machine, and what is done in it."""

    accelerator: str
    steps: list[Step]
    results: Path


def starts(chosen: list[Step], accelerator: str, results: Path, *, by_name: bool) -> list[Start]:
    """How the steps are shared out among starts of the machine.

    Where the processor is emulated, steps that need exact time are done in a start of their own, in emulated
    time; in the same as all others if the accelerator was asked for by its name.
    """
    if by_name or accelerator != machine.TCG.name:
        return [Start(accelerator, chosen, results)]
    usual = Start(accelerator, [step for step in chosen if not step.exact], results)
    exact = Start(machine.ICOUNT.name, [step for step in chosen if step.exact], results / "emulated-time")
    return [start for start in (usual, exact) if start.steps]


class Outcome(NamedTuple):
    """How a step ended."""

    step: str
    ok: bool
    seconds: float | None  # in the machine's own time; None: it left no result
    said: str  # the last line that it printed, or why it failed


def outcomes(steps: list[Step], results: Path) -> list[Outcome]:
    """What the steps left; one that left nothing, or nothing that can be read, has failed."""
    found = []
    for step in steps:
        output = results / f"{step.name}.txt"
        lines = output.read_text(errors="replace").strip().splitlines() if output.exists() else []
        last = lines[-1][:120] if lines else "nothing"
        try:
            ending = json.loads((results / f"{step.name}.json").read_text())
            status, seconds, over = ending["status"], float(ending["seconds"]), ending["timed_out"]
            budget_s = float(ending["budget_s"])
        except (OSError, ValueError, KeyError, TypeError):
            found.append(Outcome(step.name, False, None, f"left no result; it said last: {last}"))
            continue
        if over:
            last = f"took longer than its {budget_s:.0f} s; it said last: {last}"
        found.append(Outcome(step.name, status == 0 and not over, seconds, last))
    return found


def patience_s(steps: list[Step], slower: float, results: Path, dilation: float = 1.0) -> float:
    """How many seconds from its start the machine may take: by its own measurement, once that is there.

    ``dilation``: how many seconds may pass here in one of the machine's.
    """
    try:
        measured = json.loads((results / "machine.json").read_text())
        boot_s, slower = float(measured["boot_s"]), float(measured["slower"])
    except (OSError, ValueError, KeyError):
        return BOOT_S * slower * dilation
    return (boot_s + SPARE_S + slower * sum(step.budget_s for step in steps)) * dilation


def clock_rate(results: Path) -> float | None:
    """How fast the machine's clock ran, 1 being right; None when it left too little to judge by.

    The files' contents are of its clock, their times of the host's.
    """
    begin, end = results / "machine.json", results / "end.json"
    try:
        inside_s = json.loads(end.read_text())["clock_s"] - json.loads(begin.read_text())["clock_s"]
        outside_s = end.stat().st_mtime - begin.stat().st_mtime
    except (OSError, ValueError, KeyError):
        return None
    return inside_s / outside_s if outside_s >= CLOCK_SPAN_S else None


def report(found: list[Outcome]) -> str:
    """The table."""
    lines = []
    for each in found:
        took = "" if each.seconds is None else f"{each.seconds:.0f} s"
        lines.append(f"{each.step:16} {'ok' if each.ok else 'FAILED':7} {took:>7}  {each.said}")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", action="append", metavar="STEP", help="do only this step; may be repeated")
    parser.add_argument(
        "--accelerator",
        default="auto",
        choices=["auto", *machine.ACCELERATORS],
        help="how the processor is had; icount: emulated, and its time as well",
    )
    parser.add_argument("--results", type=Path, default=machine.ROOT / ".cache" / "vm-results")
    parser.add_argument("--memory-mib", type=int, default=4096, help="of the machine [4096 MiB]")
    parser.add_argument(
        "--processors",
        type=int,
        choices=range(1, 9),
        help="of the machine [2; icount: 1]; 1 is quicker where the host has no two to spare",
    )
    parser.add_argument("--list", action="store_true", help="list the steps; do nothing")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    asked = parse(arguments)
    try:
        chosen = choose(asked.only)
    except ValueError as error:
        print(f"vm-test: {error}", file=sys.stderr)
        return 2
    if asked.list:
        for step in STEPS:
            print(f"{step.name:16} {step.budget_s:5.0f} s  {step.text}")
        return 0
    if shutil.which(machine.QEMU) is None:
        print(f"vm-test: there is no {machine.QEMU}", file=sys.stderr)
        print("  hint: make vm-test installs qemu-system-x86, qemu-utils and debootstrap", file=sys.stderr)
        return 127
    shutil.rmtree(asked.results, ignore_errors=True)
    asked.results.mkdir(parents=True)
    begun = time.monotonic()
    trouble = None
    try:
        image = machine.image()
        name = machine.accelerator(asked.accelerator, image).name
    except (machine.MachineError, subprocess.CalledProcessError) as error:
        image, name, trouble = asked.results, asked.accelerator, str(error)
    succeeded, said = True, []
    for start in starts(chosen, name, asked.results, by_name=asked.accelerator != "auto"):
        trouble = trouble or _do(start, asked, image)
        found = outcomes(start.steps, start.results)
        print(report(found), flush=True)
        if trouble:
            print(f"vm-test: {trouble}", file=sys.stderr)
        said += [outcome._asdict() | {"accelerator": start.accelerator} for outcome in found]
        (asked.results / "outcomes.json").write_text(json.dumps(said, indent=1))
        succeeded = succeeded and trouble is None and all(outcome.ok for outcome in found)
        trouble = None
    print(f"vm-test: {time.monotonic() - begun:.0f} s; results in {asked.results}", file=sys.stderr)
    return 0 if succeeded else 1


def _do(start: Start, asked: argparse.Namespace, image: Path) -> str | None:
    """Let a machine do the steps. Returns what went wrong with the machine itself, if anything did."""
    try:
        by = machine.accelerator(start.accelerator, image, asked.processors)
        print(f"vm-test: {by.name}: {by.why}", file=sys.stderr)
        steps = [
            {"name": step.name, "command": step.command, "budget_s": step.budget_s} for step in start.steps
        ]
        status = machine.run(
            "exec python3 provision/vm/guest_steps.py\n",
            start.results,
            given={
                "steps.json": json.dumps(
                    {"host_cpu_s": guest_steps.speed_s(guest_steps.cpu_s), "steps": steps}
                )
            },
            image=image,
            by=by,
            patience_s=lambda left: patience_s(start.steps, by.slower, left, by.dilation),
            memory_mib=asked.memory_mib,
        )
    except (machine.MachineError, subprocess.CalledProcessError) as error:
        return str(error)
    if status != 0:
        return f"the job ended with status {status}; see output.txt"
    rate = clock_rate(start.results)
    if rate is None:
        return None
    print(f"vm-test: the machine's clock ran {rate:.3f} times as fast as the host's", file=sys.stderr)
    if by.name != machine.ICOUNT.name and abs(rate - 1) > CLOCK_OFF:
        return "what was measured by the machine's clock is wrong"
    return None


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the machine, too
    sys.exit(main())
