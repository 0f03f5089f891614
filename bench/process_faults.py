"""``make process-faults``: kills or stops each process of a run, one after another, and judges the run's end.

    python -m bench.process_faults [--process orchestrator …] [--signal STOP …] [--moment during …]

A run that has lost something it stands on has noticed it within 2 s and is over within 15 s; it says who was
killed or stands still, and leaves nothing behind. A moment is told by the journal of the agent at the source,
so a run need not be timed. The tests perform some of the cases by the same functions.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import psutil

from bench.signals import all_pids, left_by, left_files, namespaces, of_tool
from quicferry.emulation.sandbox import ownership
from quicferry.emulation.sandbox.ownership import TaggedProcess
from quicferry.errors import UNDECODABLE
from quicferry.events import read_events
from quicferry.migration.journal import unsealed
from quicferry.paths import CHECKOUT
from quicferry.process import DEVNULL, Popen, TimeoutExpired, children_of, spawn
from quicferry.record import RunPaths

AT_ONCE = 2
REACHED_S = 180.0  # a machine that is very busy
SETTLED_S = 1.0  # after the moment has come
NOTICED_S = 2.0
ENDS_S = 15.0
POLL_S = 0.005
HOW = ("KILL", "STOP")


class Moment(NamedTuple):
    """When it happens: what the run is asked for, and the step of the source's agent that tells of it."""

    words: tuple[str, ...]
    step: str | None  # None: the client is there, and no move is on its way
    wait_s: float


_SLOW = ("--memory-mib", "40", "--inter-edge-mbps", "100")
MOMENTS: dict[str, Moment] = {
    "before": Moment(("--before-s", "120"), None, SETTLED_S),
    # the server runs still, its memory is on the way
    "copying": Moment(("--before-s", "0.5", "--engine", "criu-pre-copy", *_SLOW), "ready", 0.3),
    "during": Moment(("--before-s", "0.5", "--engine", "criu-cold", *_SLOW), "transfer", 0.2),
    "after": Moment(("--before-s", "0.5", "--after-s", "120"), "moved", SETTLED_S),
}

Find = Callable[[Sequence[TaggedProcess]], list[int]]


def _with(*words: str) -> Find:
    """Processes with one of these words in their command, the newest last."""

    def find(living: Sequence[TaggedProcess]) -> list[int]:
        return [
            process.pid
            for process in living
            if any(word in process.command for word in words) and " sh -c " not in process.command
        ]

    return find


def _parent(pid: int) -> int:
    try:
        return int(psutil.Process(pid).ppid())
    except psutil.Error:
        return 0


def _below(*path: str) -> Find:
    """Processes with the last word in their command whose ancestors, one by one, have those before it."""

    def find(living: Sequence[TaggedProcess]) -> list[int]:
        commands = {process.pid: process.command for process in living}

        def fits(pid: int) -> bool:
            for word in reversed(path):
                if word not in commands.get(pid, ""):
                    return False
                pid = _parent(pid)
            return True

        return [pid for pid in commands if fits(pid)]

    return find


def _server_at(edge: str) -> Find:
    """The newest server in an edge's container; servers that are all alike have no tags."""
    container = _below(f"agent-{edge}.json", "unshare", _INIT)

    def find(living: Sequence[TaggedProcess]) -> list[int]:
        return [child for pid in container(living) for child in children_of(pid)]

    return find


_INIT = "container/init.py"


class Victim(NamedTuple):
    """A process of a run, how to find it, and what the run has to say of it. No word: the run goes on."""

    find: Find
    said: str | None
    goes_on: tuple[str, ...] = ()  # signals that do no harm: the run does not need it any more
    moments: tuple[str, ...] = ("before", "during", "after")
    baseline: str | None = None


_CONDUCTS = "the process that conducts the run"
VICTIMS: dict[str, Victim] = {
    "source's agent": Victim(_with("agent-edge-1.json"), "agent-edge-1"),
    "destination's agent": Victim(_with("agent-edge-2.json"), "agent-edge-2"),
    "orchestrator": Victim(_with("orchestrator.json"), "orchestrator"),
    "client": Victim(_with("client.json"), "client"),
    "cable": Victim(_with("quicferry.emulation.links.cable"), "the cable"),
    "client's capture": Victim(_with("captures/client.pcapng"), "the capture of client"),
    "edge's capture": Victim(_with("captures/edge-1.pcapng"), "the capture of edge-1"),
    "source's server": Victim(_server_at("edge-1"), "server at edge-1", moments=("before", "copying")),
    "destination's server": Victim(_server_at("edge-2"), "server at edge-2", moments=("after",)),
    "source's container": Victim(_below("agent-edge-1.json", "unshare", _INIT), "container of edge-1"),
    "destination's container": Victim(_below("agent-edge-2.json", "unshare", _INIT), "container of edge-2"),
    "container's parent": Victim(
        _below("agent-edge-1.json", "unshare"), "container of edge-1", goes_on=("STOP",)
    ),
    "node": Victim(_with("sleep infinity"), "the process that holds the node", goes_on=("STOP",)),
    "fork server": Victim(_below("session.play", "session.play"), None, goes_on=HOW),
    "conductor": Victim(_below("private_init.py", "-m session.play"), _CONDUCTS),
    "first of the private root": Victim(_below("unshare", "private_init.py"), _CONDUCTS),
    "outermost of the private root": Victim(_with("unshare --net"), _CONDUCTS),
    "name server": Victim(_with("baselines.dns.nameserver"), "nameserver", baseline="tcp-dns"),
    "named": Victim(_with("named -g"), "named", baseline="tcp-dns"),
}


class Case(NamedTuple):
    """One process, one signal, one moment."""

    victim: str
    how: str
    moment: str

    def __str__(self) -> str:
        return f"{self.victim}, SIG{self.how}, {self.moment}"


def cases(
    victims: Sequence[str] = tuple(VICTIMS),
    how: Sequence[str] = HOW,
    moments: Sequence[str] = tuple(MOMENTS),
) -> list[Case]:
    """All cases of these."""
    return [
        Case(victim, each, moment)
        for victim in victims
        for each in how
        for moment in moments
        if moment in VICTIMS[victim].moments
    ]


class Seen(NamedTuple):
    """What came of a case; ``wrong`` is empty when all is as it should be."""

    wrong: list[str]
    took_s: float = 0.0
    noticed_s: float | None = None  # from the signal to the end of all waiting; None: nobody could say
    error: str = ""


def perform(case: Case, folder: Path) -> Seen:
    """Begin a run, do it to the process at that moment, and judge how the run ends."""
    victim, moment = VICTIMS[case.victim], MOMENTS[case.moment]
    runs, scratch = folder / "runs", folder / "tmp"
    scratch.mkdir(parents=True)
    kind = ("--baseline", victim.baseline) if victim.baseline else ("--strategy", "symmetric")
    words = ["run", *kind, "--link-backend", "cable", "--json", *moment.words]
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        tool = spawn(
            ["env", "--default-signal", CHECKOUT / "bin" / "quicferry", *words],
            stdin=DEVNULL,
            stdout=out,
            stderr=err,
            env={**os.environ, "QUICFERRY_RUNS": str(runs), "TMPDIR": str(scratch)},
        )
    tag = ownership.tool_tag(tool.pid)
    try:
        if not _await_moment(tool, tag, moment, runs):
            return Seen([f"the moment did not come: {(folder / 'err').read_text(errors='replace')[-200:]}"])
        living = of_tool(tag)
        found = victim.find(living)
        if not found:
            return Seen([f"there is no {case.victim}"])
        made, there = namespaces([process.pid for process in living]), all_pids()
        os.kill(found[-1], signal.Signals[f"SIG{case.how}"])
        return _judge(case, tool, folder, lambda: left_by(tag, made, there))
    finally:
        tool.kill()
        tool.wait()


def _await_moment(tool: Popen[bytes], tag: str, moment: Moment, runs: Path) -> bool:
    deadline = time.monotonic() + REACHED_S
    while tool.poll() is None and time.monotonic() < deadline:
        is_there = _step(runs) == moment.step and any("client.json" in each.command for each in of_tool(tag))
        if is_there:
            time.sleep(moment.wait_s)
            return True
        time.sleep(POLL_S)
    return False


def _step(runs: Path) -> str | None:
    """The last step of the source's agent in its journal; None: it has begun no move."""
    journal = next(runs.glob("*.partial/journals/edge-1.journal"), None)
    if journal is None:
        return None
    entries = [unsealed(line) for line in journal.read_bytes().splitlines()]
    steps = [entry.step.value for entry in entries if entry is not None and entry.part == "source"]
    return steps[-1] if steps else None


def _judge(case: Case, tool: Popen[bytes], folder: Path, left: Callable[[], list[str]]) -> Seen:
    victim, goes_on = VICTIMS[case.victim], case.how in VICTIMS[case.victim].goes_on
    begun_ns, begun = time.monotonic_ns(), time.monotonic()
    if goes_on:
        # the run is as it was; it is ended in the usual way
        time.sleep(NOTICED_S + SETTLED_S)
        if tool.poll() is None:
            tool.terminate()
    try:
        status = tool.wait(2 * ENDS_S)
    except TimeoutExpired:
        return Seen([f"the run did not end within {2 * ENDS_S:g} s"], time.monotonic() - begun)
    took_s = time.monotonic() - begun
    error = _error(folder)
    noticed_s = _noticed_s(folder / "runs", begun_ns)
    wrong = [*left(), *left_files(folder / "runs", folder / "tmp")]
    if "Traceback" in (folder / "err").read_text(errors="replace"):
        wrong.append("a traceback")
    if took_s > ENDS_S:
        wrong.append(f"it took {took_s:.1f} s")
    if noticed_s is not None and noticed_s > NOTICED_S and not goes_on:
        wrong.append(f"noticed after {noticed_s:.1f} s")
    if status != (128 + signal.SIGTERM if goes_on else 1):
        wrong.append(f"exit status {status}")
    if not goes_on and victim.said is not None and victim.said not in error:
        wrong.append("it does not say who it was")
    if not goes_on and not any(word in error for word in ("SIG", "has ended", "stands still")):
        wrong.append("it does not say what was done to it")
    return Seen(wrong, took_s, noticed_s, error)


def _error(folder: Path) -> str:
    """The error that the run ended with."""
    try:
        result = msgspec.json.decode((folder / "out").read_bytes(), type=dict[str, Any])
    except UNDECODABLE:
        return (folder / "err").read_text(errors="replace").strip()[-300:]
    return str(result.get("error"))


def _noticed_s(runs: Path, begun_ns: int) -> float | None:
    """How long after the signal the run gave up its waiting; None when it could not write that down."""
    for directory in runs.iterdir() if runs.is_dir() else []:
        try:
            events = read_events(RunPaths(directory).events)
        except OSError:
            continue
        for event in events:
            if event.name == "run.collect.started":
                return (event.t_ns - begun_ns) / 1e9
    return None


def main() -> int:
    """Perform the cases, print how each ended, and say whether any is not as it should be."""
    parser = argparse.ArgumentParser(description="Each process of a run, killed or stopped.")
    parser.add_argument("--process", nargs="+", choices=list(VICTIMS), default=list(VICTIMS))
    parser.add_argument("--signal", nargs="+", choices=HOW, default=HOW)
    parser.add_argument("--moment", nargs="+", choices=list(MOMENTS), default=list(MOMENTS))
    parser.add_argument("--at-once", type=int, default=AT_ONCE)
    arguments = parser.parse_args()
    wanted = cases(arguments.process, arguments.signal, arguments.moment)
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(arguments.at_once) as pool:
        folders = [Path(scratch) / str(number) for number in range(len(wanted))]
        for case, seen in zip(wanted, pool.map(perform, wanted, folders), strict=True):
            wrong += bool(seen.wrong)
            noticed = f"noticed after {seen.noticed_s:.1f} s, " if seen.noticed_s is not None else ""
            verdict = "; ".join(seen.wrong) or "as it should be"
            print(f"{case}: {verdict} ({noticed}over after {seen.took_s:.1f} s: {seen.error})", flush=True)
    print(f"{len(wanted)} ends, {wrong} not as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
