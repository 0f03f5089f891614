"""When the bytes of a frame have passed: at a fixed rate, or at the moments of a trace.

Both are told frames in the order of their arrival and keep what they have promised so far.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Protocol

from quicferry.emulation.links.trace import OPPORTUNITY_BYTES
from quicferry.units import NS_PER_MS


class Rate(Protocol):
    """Says when a frame has passed the bottleneck."""

    def finish_ns(self, arrival_ns: int, wire_bytes: int) -> int:
        """The moment at which the last byte of a frame that arrives now is out."""

    def begin(self, zero_ns: int) -> None:
        """Note the moment from which times are counted."""


class NoLimit:
    """As fast as the machine."""

    def finish_ns(self, arrival_ns: int, wire_bytes: int) -> int:
        """At once."""
        return arrival_ns

    def begin(self, zero_ns: int) -> None:
        """Nothing depends on time."""


class FixedRate:
    """A virtual finish time: a frame starts when it has arrived and its predecessor has finished."""

    def __init__(self, rate_mbps: float) -> None:
        # bytes * 8 / (rate * 1e6 / 1e9 ns) = bytes * 8000 / rate
        self._ns_per_byte = 8000 / rate_mbps
        self._finished_ns = 0.0  # float: 53 bits resolve a quarter of a nanosecond for 70 days of uptime

    def finish_ns(self, arrival_ns: int, wire_bytes: int) -> int:
        """After its bytes at the rate."""
        begin_ns = self._finished_ns if self._finished_ns > arrival_ns else arrival_ns
        self._finished_ns = begin_ns + wire_bytes * self._ns_per_byte
        return round(self._finished_ns)

    def begin(self, zero_ns: int) -> None:
        """Nothing depends on time."""


class TracedRate:
    """Each moment of the trace lets 1500 bytes pass, of one frame or of several; unused ones are lost."""

    def __init__(self, moments_ms: tuple[int, ...]) -> None:
        self._moments = moments_ms
        self._length_ms = moments_ms[-1]
        self._zero_ns: int | None = None
        self._index = 0  # of the opportunity that is being used, counted over all repetitions
        self._left = 0  # bytes of it

    def begin(self, zero_ns: int) -> None:
        """The trace begins, or begins anew, at this moment."""
        self._zero_ns, self._index, self._left = zero_ns, 0, OPPORTUNITY_BYTES

    def _at_ns(self, index: int) -> int:
        rounds, place = divmod(index, len(self._moments))
        assert self._zero_ns is not None
        return self._zero_ns + (rounds * self._length_ms + self._moments[place]) * NS_PER_MS

    def finish_ns(self, arrival_ns: int, wire_bytes: int) -> int:
        """At the opportunity that its last byte fits into."""
        if self._zero_ns is None:
            self.begin(arrival_ns)
        assert self._zero_ns is not None
        if self._at_ns(self._index) < arrival_ns:
            # what has passed unused is lost: go to the first opportunity that is not over
            behind_ms = -(-(arrival_ns - self._zero_ns) // NS_PER_MS)
            rounds, within = divmod(behind_ms - 1, self._length_ms)  # the end belongs to its round
            found = rounds * len(self._moments) + bisect_left(self._moments, within + 1)
            if found > self._index:
                self._index, self._left = found, OPPORTUNITY_BYTES
        while wire_bytes > self._left:
            wire_bytes -= self._left
            self._index, self._left = self._index + 1, OPPORTUNITY_BYTES
        self._left -= wire_bytes
        return max(arrival_ns, self._at_ns(self._index))
