"""How long a bulk transfer takes to be as fast as before the move."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

import polars as pl

from quicferry.units import NS_PER_MS

RECOVERED = 0.9  # of the rate before
BEFORE_NS = 1000 * NS_PER_MS  # the rate before is that of so long before the freeze, at the most
WINDOW_LEAST_NS = 50 * NS_PER_MS
WINDOW_RTTS = 2  # a window of it holds more than one burst of a sender that waits for acknowledgements
PACKETS_LEAST = 20  # before the freeze; with fewer there is no rate to speak of


def rate_recovered_ns(
    arrivals: pl.DataFrame, frozen_ns: int, resumed_ns: int, rtt_ns: int
) -> tuple[int, float] | None:
    """From ``resumed_ns`` to the end of the first window in which 90 % of the rate before are reached.

    ``arrivals`` as ``timeline.arrivals`` has them. Returns the time in nanoseconds and the rate before in
    bytes per second; None when there was no rate before, or it is never reached again.
    """
    times: list[int] = arrivals["t_ns"].to_list()
    sums = [0, *accumulate(arrivals["new_bytes"].to_list())]

    def received(begin_ns: int, end_ns: int) -> int:
        return int(sums[bisect_left(times, end_ns)] - sums[bisect_left(times, begin_ns)])

    first = bisect_left(times, frozen_ns - BEFORE_NS)
    last = bisect_left(times, frozen_ns)
    if last - first < PACKETS_LEAST:
        return None
    begun_ns = max(frozen_ns - BEFORE_NS, times[first])
    rate = received(begun_ns, frozen_ns) / (frozen_ns - begun_ns)  # bytes per nanosecond
    window_ns = max(WINDOW_LEAST_NS, WINDOW_RTTS * rtt_ns)
    for end_ns in times[bisect_left(times, resumed_ns) :]:
        begin_ns = max(resumed_ns, end_ns - window_ns)
        if received(begin_ns, end_ns + 1) >= RECOVERED * rate * window_ns:
            return end_ns - resumed_ns, rate * 1e9
    return None
