"""What the machine did besides a run: the load by others, time stolen by a hypervisor, waiting for a CPU."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from quicferry.record import MachineLoad

_PRESSURE = Path("/proc/pressure/cpu")
_STAT = Path("/proc/stat")


class _Reading(NamedTuple):
    """Seconds since some moment; CPU times are over all processors."""

    elapsed_s: float
    busy_s: float  # of the whole machine
    stolen_s: float
    own_s: float  # of the processes that are seen here: those of the run, in its PID namespace
    waiting_s: float | None  # some process waited for a CPU; None: this kernel does not say


class LoadWatch:
    """Reads the counters when it is made, and what has become of them when it is asked."""

    def __init__(self) -> None:
        self._begin = _read()

    def load(self) -> MachineLoad:
        """The load since it was made."""
        end, begin = _read(), self._begin
        elapsed_s = max(1e-6, end.elapsed_s - begin.elapsed_s)
        whole_s = elapsed_s * (os.cpu_count() or 1)
        others_s = (end.busy_s - begin.busy_s) - (end.own_s - begin.own_s)
        waiting = None
        if end.waiting_s is not None and begin.waiting_s is not None:
            waiting = round(100 * (end.waiting_s - begin.waiting_s) / elapsed_s, 1)
        return MachineLoad(
            others_percent=round(min(100.0, max(0.0, 100 * others_s / whole_s)), 1),
            steal_percent=round(100 * max(0.0, end.stolen_s - begin.stolen_s) / whole_s, 1),
            pressure_percent=waiting,
        )


def _read() -> _Reading:
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    # proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal; guest time is part of user time
    fields = [int(word) * tick_s for word in _STAT.read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _, _, irq, softirq, *rest = fields
    own_s = 0.0
    for process in psutil.process_iter():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue  # it has ended: its parent has its time
        own_s += times.user + times.system + times.children_user + times.children_system
    return _Reading(
        time.monotonic(), user + nice + system + irq + softirq, rest[0] if rest else 0.0, own_s, _waiting_s()
    )


def _waiting_s() -> float | None:
    try:
        some = _PRESSURE.read_text().split("\n", 1)[0]
    except OSError:
        return None
    return int(some.rpartition("total=")[2]) / 1e6
