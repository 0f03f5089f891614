"""The bytes of a capture file, in pieces, and what could not be read of it."""

from __future__ import annotations

from io import BufferedIOBase
from typing import NamedTuple

_CHUNK_BYTES = 1 << 20


class Gap(NamedTuple):
    """A part of a capture that could not be read or understood, and why."""

    reason: str
    at: int  # the number of the record, from 1; 0: of no record
    packets: int = 1


class Record(NamedTuple):
    """One captured frame."""

    t_ns: int  # since the epoch, on the clock of the capturing machine
    data: bytes
    wire_bytes: int  # as long as it was on the wire
    link_type: int
    interface: str
    interface_index: int


class Window:
    """A file of any size through a window: what is needed next is in ``data`` from ``at`` on."""

    __slots__ = ("_errors", "_file", "at", "data", "dropped", "error")

    def __init__(self, file: BufferedIOBase, errors: tuple[type[Exception], ...] = (OSError,)) -> None:
        """``errors`` are those that reading the file may raise."""
        self._file = file
        self._errors = errors
        self.error: Exception | None = None  # what ended the reading early
        self.data = b""
        self.at = 0
        self.dropped = 0  # bytes of the file before ``data``

    @property
    def position(self) -> int:
        """Where in the file ``at`` is."""
        return self.dropped + self.at

    def need(self, count: int) -> bool:
        """Make ``count`` bytes available from ``at`` on; False when the file ends before."""
        if len(self.data) - self.at >= count:
            return True
        self.dropped += self.at
        parts = [self.data[self.at :]]
        have = len(parts[0])
        self.at = 0
        while have < count and self.error is None:
            try:  # read1: what can be had of a packed file that is cut off comes before the error
                piece = self._file.read1(max(_CHUNK_BYTES, count - have))
            except self._errors as error:
                self.error = error
                break
            if not piece:
                break
            parts.append(piece)
            have += len(piece)
        self.data = b"".join(parts)
        return have >= count

    def left(self) -> int:
        """How many bytes are available now."""
        return len(self.data) - self.at
