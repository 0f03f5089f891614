"""Reads how many file descriptors and how much memory the processes of a run hold."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from quicferry.events import EventLog


def note_usage(events: EventLog, processes: Iterable[tuple[str, int]]) -> None:
    """Emit the usage of each of these processes (name, PID); those that have ended are left out."""
    for name, pid in processes:
        try:
            process = psutil.Process(pid)
            descriptors = process.num_fds()
            resident_kib = process.memory_info().rss // 1024
        except psutil.Error:
            continue
        if resident_kib:  # a zombie has none
            events.emit("process.usage", process=name, fds=descriptors, rss_kib=resident_kib)
