"""What the processes of a run hold on to: file descriptors and memory."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from quicferry.events import EventLog


def note_usage(events: EventLog, processes: Iterable[tuple[str, int]]) -> None:
    """Emit what each of these (name, PID) holds now; those that have gone are left out."""
    for name, pid in processes:
        try:
            process = psutil.Process(pid)
            descriptors = process.num_fds()
            resident_kib = process.memory_info().rss // 1024
        except psutil.Error:
            continue
        if resident_kib:  # a zombie has none
            events.emit("process.usage", process=name, fds=descriptors, rss_kib=resident_kib)
