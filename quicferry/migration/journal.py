"""What an agent remembers of its moves: one JSON line for every step, written before it is acted on.

The latest epoch makes orders idempotent: one that was taken part in is never begun again. An agent
or orchestrator that was killed and started again finds there what it was doing, and for whom. The
file is opened for each line; losing power is not a case here, losing the process is.

A line ends with its own length and checksum (``bytes``, ``crc32``: of the entry before they were added).
What is not exactly what was written does not count: a line that was cut off by a crash, or that a full
disk took only half of. Whoever reads such a journal (``is_damaged``) knows that one step more may have
been taken than it tells, and asks the other side.
"""

from __future__ import annotations

import errno
import os
import re
import zlib
from pathlib import Path

import msgspec

from quicferry.migration.order import MoveOrder
from quicferry.migration.states import Step
from quicferry.units import now_ns

SEAL = re.compile(rb'(\{.*),"bytes":(\d+),"crc32":(\d+)\}', re.DOTALL)


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A step that one side of an agent, or the orchestrator, took in an epoch."""

    t_ns: int
    epoch: int
    part: str  # "source", "destination" or "orchestrator"
    step: Step
    order: MoveOrder | None = None  # with the lease, once there is one


def sealed(entry: JournalEntry) -> bytes:
    """An entry as a line, with length and checksum."""
    text = msgspec.json.encode(entry)
    return b'%s,"bytes":%d,"crc32":%d}\n' % (text[:-1], len(text), zlib.crc32(text))


def unsealed(line: bytes) -> JournalEntry | None:
    """The entry of a line; None when it is not what ``sealed`` made."""
    found = SEAL.fullmatch(line)
    if found is None:
        return None
    text = found[1] + b"}"
    if (len(text), zlib.crc32(text)) != (int(found[2]), int(found[3])):
        return None
    try:
        return msgspec.json.decode(text, type=JournalEntry)
    except msgspec.DecodeError:
        return None


class Journal:
    """The journal of one agent or orchestrator; in memory only when there is no ``path``."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.latest: JournalEntry | None = None
        self._epochs: set[tuple[int, str]] = set()
        self.last: dict[tuple[int, str], JournalEntry] = {}  # (epoch, part) -> the last step taken in it
        self.is_damaged = False  # its last line cannot be read: one step more may have been taken
        self._ragged = False  # the file does not end with a line's end
        if path is not None and path.exists():
            content = path.read_bytes()
            for line in content.splitlines():
                entry = unsealed(line)
                self.is_damaged = entry is None
                if entry is not None:
                    self._take(entry)
            self._ragged = bool(content) and not content.endswith(b"\n")
            self.is_damaged = self.is_damaged or self._ragged

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

    def step_in(self, epoch: int, part: str) -> Step:
        """The last step that ``part`` took in that epoch, IDLE when it took none."""
        entry = self.last.get((epoch, part))
        return entry.step if entry is not None else Step.IDLE

    def note(self, epoch: int, part: str, step: Step, order: MoveOrder | None = None) -> None:
        """Append a step, before it is acted on.

        Raises ``OSError`` when it is not in the file as a whole: then it was not taken, for this process
        neither, unless that calls ``remember``.
        """
        entry = JournalEntry(t_ns=now_ns(), epoch=epoch, part=part, step=step, order=order)
        if self._path is not None:
            self._append(self._path, sealed(entry))
        self._take(entry)

    def remember(self, epoch: int, part: str, step: Step, order: MoveOrder | None = None) -> None:
        """Know of a step in this process alone: it was taken, although it could not be written."""
        self._take(JournalEntry(t_ns=now_ns(), epoch=epoch, part=part, step=step, order=order))

    def _append(self, path: Path, line: bytes) -> None:
        """Write a line at the end of the file, whole. Raises ``OSError``."""
        # what an earlier write left there in half must not spoil this line
        line = b"\n" + line if self._ragged else line
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            written = os.write(descriptor, line)
        except OSError:
            self._ragged = True
            raise
        finally:
            os.close(descriptor)
        self._ragged = written != len(line)
        if self._ragged:
            raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes could be written", str(path))
