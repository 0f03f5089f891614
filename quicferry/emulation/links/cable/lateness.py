"""How late frames left: a histogram of constant size for each lane.

Buckets are 1 us wide below 256 us and 128 us wide above, up to 66 ms; the maximum is exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from quicferry.emulation.links.cable.compiling import compiled

FINE_BUCKETS = 256
COARSE_SHIFT = 7
COARSE_BUCKETS = 512
BUCKETS = FINE_BUCKETS + COARSE_BUCKETS


@compiled
def bucket(late_ns: int) -> int:
    """The bucket of a lateness. A negative one, which the clock's granularity can cause, counts as 0."""
    late_us = late_ns // 1000
    if late_us >= FINE_BUCKETS:
        return min(FINE_BUCKETS + (late_us >> COARSE_SHIFT), BUCKETS - 1)
    return max(0, late_us)


def percentile_us(counts: npt.NDArray[np.int64], percent: float, *, max_us: float) -> float:
    """The lateness that ``percent`` (0..100) of the frames did not exceed: a bucket's upper edge.

    0 when nothing was counted; never more than ``max_us``, the latest of all.
    """
    reached = counts.cumsum()
    if not reached[-1]:
        return 0.0
    index = int(np.searchsorted(reached, max(1.0, reached[-1] * percent / 100)))
    coarse = index - FINE_BUCKETS
    edge_us = index + 1 if coarse < 0 else (coarse + 1) << COARSE_SHIFT
    return min(float(edge_us), max_us)
