"""What the processes of a run hold on to: file descriptors and memory, read from ``/proc``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from quicferry.events import EventLog


def note_usage(events: EventLog, processes: Iterable[tuple[str, int]]) -> None:
    """Tell what each of these (name, PID) holds now; those that have gone are left out."""
    for name, pid in processes:
        try:
            descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        resident = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
        if resident:  # a zombie has none
            events.emit("process.usage", process=name, fds=descriptors, rss_kib=int(resident[0]))
