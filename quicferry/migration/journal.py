"""What an agent remembers of its moves: one JSON line for every step, written before it is acted on.

The latest epoch makes orders idempotent: one that was taken part in is never begun again. An agent
or orchestrator that was killed and started again finds there what it was doing, and for whom. The
file is opened for each line; losing power is not a case here, losing the process is.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from quicferry.migration.order import MoveOrder
from quicferry.migration.states import Step
from quicferry.units import now_ns


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A step that one side of an agent, or the orchestrator, took in an epoch."""

    t_ns: int
    epoch: int
    part: str  # "source" or "destination"
    step: Step
    order: MoveOrder | None = None  # with the lease, once there is one


class Journal:
    """The journal of one agent or orchestrator; in memory only when there is no ``path``."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.latest: JournalEntry | None = None
        self._epochs: set[tuple[int, str]] = set()
        self.last: dict[tuple[int, str], JournalEntry] = {}  # (epoch, part) -> the last step taken in it
        if path is not None and path.exists():
            for line in path.read_bytes().splitlines():
                try:
                    self._take(msgspec.json.decode(line, type=JournalEntry))
                except msgspec.DecodeError:  # the last line may be cut off
                    continue

    def _take(self, entry: JournalEntry) -> None:
        """Update the summaries with an entry."""
        self.latest = entry
        self._epochs.add((entry.epoch, entry.part))
        self.last[entry.epoch, entry.part] = entry

    @property
    def epoch(self) -> int:
        """The highest epoch this agent took part in; 0 when there was none."""
        return max((epoch for epoch, _ in self._epochs), default=0)

    def knows(self, epoch: int, part: str) -> bool:
        """Whether ``part`` has begun that epoch."""
        return (epoch, part) in self._epochs

    def note(self, epoch: int, part: str, step: Step, order: MoveOrder | None = None) -> None:
        """Append a step, before it is acted on."""
        entry = JournalEntry(t_ns=now_ns(), epoch=epoch, part=part, step=step, order=order)
        self._take(entry)
        if self._path is not None:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(descriptor, msgspec.json.encode(entry) + b"\n")
            finally:
                os.close(descriptor)
