"""How late frames left: a histogram of constant size.

Buckets are 1 us wide below 256 us and 128 us wide above, up to 66 ms; the maximum is exact.
"""

from __future__ import annotations

import bisect
import itertools

FINE_BUCKETS = 256
COARSE_SHIFT = 7
COARSE_BUCKETS = 512


class Lateness:
    """Counts of how late frames were, in microseconds."""

    __slots__ = ("_counts", "_max_ns")

    def __init__(self) -> None:
        self._counts = [0] * (FINE_BUCKETS + COARSE_BUCKETS)
        self._max_ns = 0

    def add(self, late_ns: int) -> None:
        """Count one frame. A negative value, which the clock's granularity can cause, counts as 0."""
        if late_ns > self._max_ns:
            self._max_ns = late_ns
        late_us = late_ns // 1000
        if late_us >= FINE_BUCKETS:
            late_us = min(FINE_BUCKETS + (late_us >> COARSE_SHIFT), FINE_BUCKETS + COARSE_BUCKETS - 1)
        elif late_us < 0:
            late_us = 0
        self._counts[late_us] += 1

    @property
    def max_us(self) -> float:
        """The latest of all, in microseconds."""
        return self._max_ns / 1000

    def percentile_us(self, percent: float) -> float:
        """The lateness that ``percent`` (0..100) of the frames did not exceed: a bucket's upper edge.

        0 when nothing was counted; never more than the maximum.
        """
        # Asked while frames are crossing: no loop in Python over all buckets.
        reached = list(itertools.accumulate(self._counts))
        if not reached[-1]:
            return 0.0
        index = bisect.bisect_left(reached, max(1.0, reached[-1] * percent / 100))
        coarse = index - FINE_BUCKETS
        edge_us = index + 1 if coarse < 0 else (coarse + 1) << COARSE_SHIFT
        return min(float(edge_us), self.max_us)
