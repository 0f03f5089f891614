"""Tags the processes of a run in their environment, and finds those that a dead tool left behind.

Every process of a run carries two variables: ``QUICFERRY_RUN``, the run's id, and
``QUICFERRY_TOOL``, which names the tool that began the run: process id, start time, and the process
namespace in which the id has a meaning. A process whose tool is gone is an orphan. Orphans are not
expected, as the private root dies with its tool (``private_root.py``); ``quicferry clean`` looks for
them all the same, and ends these alone, each by its process id. What cannot be judged, such as a run
in another container, is left alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import msgspec
import psutil

from quicferry.process import stat_fields

RUN_TAG = "QUICFERRY_RUN"
TOOL_TAG = "QUICFERRY_TOOL"
PARTIAL_SUFFIX = ".partial"
TOO_YOUNG_S = 10.0  # a directory changed so lately may be of a run that is about to start

_PROC = Path("/proc")


class TaggedProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A living process that some run has started."""

    pid: int
    run_id: str
    tool: str  # as in ``tool_tag``
    command: str
    tool_is_gone: bool
    start_ticks: int = 0  # with ``pid``: which process this is, even if the number is given out again


class CleanReport(msgspec.Struct, frozen=True, kw_only=True):
    """What ``clean`` found and did."""

    dry_run: bool
    ended: tuple[TaggedProcess, ...] = ()  # orphans that were ended (or would be)
    groups: tuple[str, ...] = ()  # control groups of dead tools that were removed (or would be)
    living_runs: tuple[str, ...] = ()  # runs whose tool is alive: left alone
    removed: tuple[str, ...] = ()  # directories of incomplete runs that were removed (or would be)
    kept: tuple[str, ...] = ()  # directories of incomplete runs that were left
    failed: tuple[str, ...] = ()  # what could not be done, in words


def start_ticks(pid: int) -> int | None:
    """When a process began, in clock ticks since boot (proc(5), field 22); None when there is none."""
    try:
        fields = stat_fields(_PROC / str(pid))
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def tool_tag(pid: int | None = None) -> str:
    """The unique name of a tool: ``<process id>:<start in ticks since boot>:<process namespace>``."""
    number = os.getpid() if pid is None else pid
    return f"{number}:{start_ticks(number) or 0}:{_process_namespace()}"


def tags(run_id: str) -> dict[str, str]:
    """The environment variables that mark the processes of a run that this process begins."""
    return {RUN_TAG: run_id, TOOL_TAG: tool_tag()}


def tool_is_gone(tag: str) -> bool:
    """Whether the process that a tool tag names has certainly ended: it was one of this namespace."""
    words = tag.split(":")
    if len(words) != 3 or not all(word.isdigit() for word in words):
        return False
    pid, begun, namespace = map(int, words)
    return namespace == _process_namespace() and start_ticks(pid) != begun


def tagged_processes() -> list[TaggedProcess]:
    """Every living process of every run that this process may look at, sorted by process id."""
    found = []
    for pid in psutil.pids():
        environment = _environment(pid)
        run_id = environment.get(RUN_TAG)
        ticks = start_ticks(pid)
        if run_id is None or ticks is None:
            continue
        tool = environment.get(TOOL_TAG, "")
        found.append(
            TaggedProcess(
                pid=pid,
                run_id=run_id,
                tool=tool,
                command=_command(pid),
                tool_is_gone=tool_is_gone(tool),
                start_ticks=ticks,
            )
        )
    return found


def orphans() -> list[TaggedProcess]:
    """Processes of runs whose tool is gone."""
    return [process for process in tagged_processes() if process.tool_is_gone]


def end(process: TaggedProcess, *, wait_s: float = 2.0) -> bool:
    """End one process with SIGKILL, if it is still the one that was seen. Returns whether it is gone."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        # The descriptor pins the process: the number cannot come to mean another one from here on.
        if start_ticks(process.pid) != process.start_ticks:
            return True
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
    finally:
        os.close(descriptor)
    deadline = time.monotonic() + wait_s
    while start_ticks(process.pid) == process.start_ticks:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def clean(runs: Path, *, partial: bool = False, dry_run: bool = False) -> CleanReport:
    """End orphans; with ``partial``, also remove the directories of incomplete runs that are dead.

    A directory ``<run id>.partial`` belongs to a dead run when no living process carries that run's
    id with a tool that is alive, and nothing was added to it for ten seconds. Nothing else is touched.
    """
    failed = []
    seen = tagged_processes()
    gone = [process for process in seen if process.tool_is_gone]
    living = {process.run_id for process in seen if not process.tool_is_gone}
    ended = []
    for process in gone:
        if dry_run or end(process):
            ended.append(process)
        else:
            failed.append(f"process {process.pid} ({process.command}) could not be ended")
    removed, kept = [], []
    for directory in sorted(runs.glob(f"*{PARTIAL_SUFFIX}")) if runs.is_dir() else []:
        try:
            idle_s = time.time() - directory.stat().st_mtime
            lives = directory.name.removesuffix(PARTIAL_SUFFIX) in living or idle_s < TOO_YOUNG_S
            if not partial or lives or directory.is_symlink() or not directory.is_dir():
                kept.append(str(directory))
                continue
            if not dry_run:
                shutil.rmtree(directory)
            removed.append(str(directory))
        except FileNotFoundError:
            continue  # the run got done meanwhile
        except OSError as error:
            failed.append(f"{directory} could not be removed: {error.strerror}")
    return CleanReport(
        dry_run=dry_run,
        ended=tuple(ended),
        living_runs=tuple(sorted(living)),
        removed=tuple(removed),
        kept=tuple(kept),
        failed=tuple(failed),
    )


def _process_namespace() -> int:
    return (_PROC / "self" / "ns" / "pid").stat().st_ino


def _environment(pid: int) -> dict[str, str]:
    try:
        return dict(psutil.Process(pid).environ())
    except (psutil.Error, OSError):
        return {}  # it ended, or it belongs to somebody else


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except (psutil.Error, OSError):
        return ""
