"""What happened in one simulated world, in order, with a digest that two equal plays share."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

from simulation.clock import START_S, Clock


@dataclass(frozen=True)
class Violation:
    """A rule that was broken. ``kind`` names rule and situation; equal faults have equal kinds."""

    kind: str
    text: str
    t_s: float


@dataclass(frozen=True)
class Entry:
    """Something that is worth telling."""

    t_s: float
    who: str
    what: str
    detail: dict[str, Any]

    def __str__(self) -> str:
        told = " ".join(f"{name}={value}" for name, value in self.detail.items())
        return f"{self.t_s - START_S:10.4f}  {self.who:<12} {self.what:<22} {told}".rstrip()


class History:
    """Entries, violations, and the digest of both and of every datagram."""

    def __init__(self, clock: Clock, hide: str | None = None) -> None:
        self._clock = clock
        self._hide = hide  # a path that is another one in each play
        self._digest = hashlib.blake2b(digest_size=16)
        self.entries: list[Entry] = []
        self.violations: list[Violation] = []
        self.packet_times_s: list[float] = []
        self.closed = False  # what is collected after the end has no effect

    def note(self, who: str, what: str, **detail: Any) -> None:
        """Write down something that happened now."""
        if self.closed:
            return
        if self._hide is not None:
            hide = self._hide
            detail = {k: v.replace(hide, "") if isinstance(v, str) else v for k, v in detail.items()}
        entry = Entry(self._clock.now_s, who, what, detail)
        self.entries.append(entry)
        self._digest.update(f"{entry.t_s!r}{who}{what}{detail!r}".encode())

    def packet(self, direction: str, edge: object, data: bytes) -> None:
        """Count a datagram into the digest."""
        self.packet_times_s.append(self._clock.now_s)
        self._digest.update(f"{self._clock.now_s!r}{direction}{edge}{zlib.crc32(data)}".encode())

    def violated(self, kind: str, text: str) -> None:
        """A rule is broken; the first of a kind is kept."""
        if self.closed or any(known.kind == kind for known in self.violations):
            return
        if self._hide is not None:
            text = text.replace(self._hide, "")
        self.violations.append(Violation(kind, text, self._clock.now_s))
        self.note("oracle", "VIOLATION", kind=kind, text=text)

    @property
    def digest(self) -> str:
        """Equal for equal plays."""
        return self._digest.hexdigest()

    def kinds(self) -> list[str]:
        """The kinds of what was violated."""
        return [violation.kind for violation in self.violations]
