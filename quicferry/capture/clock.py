"""Converts the stamps of a capture to the clock of its run.

Captures are stamped with CLOCK_REALTIME, everything else with CLOCK_MONOTONIC. The difference of
the two is sampled at both ends of a run and interpolated in between; a difference that jumped says
that somebody set the clock, and then the captures of that run are not to be trusted to better than
the jump.
"""

from __future__ import annotations

import time

from quicferry.record import Clock
from quicferry.units import NS_PER_MS

#: Slewing by NTP is at most 500 ppm (adjtimex(2)): 30 ms in a minute. Over this it was set, not slewed.
STEP_NS = 1 * NS_PER_MS
SLEW_PPM = 500


def realtime_minus_monotonic_ns(samples: int = 16) -> int:
    """CLOCK_REALTIME minus CLOCK_MONOTONIC now, in nanoseconds.

    The realtime clock is read between two readings of the monotonic one; of several samples the
    one with the shortest time in between is taken, so that a preemption does not count.
    """
    best_width, best = None, 0
    for _ in range(max(1, samples)):
        before = time.monotonic_ns()
        real = time.time_ns()
        after = time.monotonic_ns()
        if best_width is None or after - before < best_width:
            best_width = after - before
            best = real - (before + after) // 2
    return best


class ClockConversion:
    """Turns realtime stamps into monotonic ones for one run.

    The offset goes linearly from its value at the beginning to that at the end. Without a ``Clock``
    it is zero: stamps stay what they are.
    """

    def __init__(self, clock: Clock | None, begin_ns: int, end_ns: int) -> None:
        """``begin_ns`` and ``end_ns``: CLOCK_MONOTONIC at which the two samples were taken."""
        self._start = clock.realtime_minus_monotonic_start_ns if clock else 0
        self._drift = clock.realtime_minus_monotonic_end_ns - self._start if clock else 0
        self._begin = begin_ns
        self._width = max(1, end_ns - begin_ns)

    def to_monotonic_ns(self, realtime_ns: int) -> int:
        """CLOCK_MONOTONIC at the moment of a realtime stamp."""
        plain = realtime_ns - self._start
        if self._drift == 0:
            return plain
        share = min(max(plain - self._begin, 0), self._width)
        return plain - self._drift * share // self._width


def clock_warning(clock: Clock | None, duration_ns: int) -> str | None:
    """A sentence when the realtime clock was set during the run, else None."""
    if clock is None:
        return "the run has no clock samples: the capture's stamps cannot be put on the run's clock"
    drift = clock.realtime_minus_monotonic_end_ns - clock.realtime_minus_monotonic_start_ns
    allowed = STEP_NS + duration_ns * SLEW_PPM // 1_000_000
    if abs(drift) <= allowed:
        return None
    return (
        f"the system's clock was set by {drift / NS_PER_MS:+.3f} ms during the run: "
        "times from the captures are wrong by up to that much"
    )
