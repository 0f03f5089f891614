"""A set of byte ranges, to count each byte of a stream once."""

from __future__ import annotations

from bisect import bisect_left


class RangeSet:
    """A set of byte ranges; ranges that touch are joined."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> int:
        """Add ``[start, end)``; returns how many bytes of it are new."""
        if end <= start:
            return 0
        starts, ends = self._starts, self._ends
        if ends and ends[-1] == start:  # in order: by far the commonest
            ends[-1] = end
            return end - start
        first = bisect_left(ends, start)
        last = first
        covered = 0
        low, high = start, end
        while last < len(starts) and starts[last] <= end:
            covered += max(0, min(ends[last], end) - max(starts[last], start))
            low, high = min(low, starts[last]), max(high, ends[last])
            last += 1
        starts[first:last] = [low]
        ends[first:last] = [high]
        return end - start - covered
