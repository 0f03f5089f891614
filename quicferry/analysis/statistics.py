"""Statistics that need no assumption about the distribution.

Migration times are skewed and have outliers that matter, so the median and its exact confidence
interval are used: for any continuous distribution, the number of values below the median follows
the binomial distribution with p = 1/2, and order statistics bound it (Conover, *Practical
Nonparametric Statistics*, §3.2; ``scipy.stats.quantile_test``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import quantile_test


class Summary(NamedTuple):
    """One quantity over several runs, in the unit of its values.

    ``low`` and ``high`` bound the median; None when there are too few values for the level (at 95 %:
    fewer than six).
    """

    runs: int
    median: float
    low: float | None
    high: float | None
    mean: float
    p95: float
    minimum: float
    maximum: float


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The exact confidence interval of the median from order statistics.

    Its coverage is at least ``level`` (0..1, both excluded). None when even the whole range covers less.
    Raises ``ValueError`` for a level outside its range.
    """
    if not 0 < level < 1:
        raise ValueError(f"a confidence level of {level}")
    if not values:
        return None
    interval = quantile_test(values, p=0.5).confidence_interval(level)
    low, high = float(interval.low), float(interval.high)
    return None if math.isnan(low) or math.isnan(high) else (low, high)


def percentile(values: Sequence[float], percent: float) -> float:
    """The percentile (0..100), interpolated linearly. Raises ``ValueError`` without values."""
    if not values:
        raise ValueError("a percentile of nothing")
    return float(np.percentile(np.asarray(values, dtype=float), percent))


def summarise(values: Sequence[float], level: float = 0.95) -> Summary:
    """Median with its interval, mean, 95th percentile and extremes. Raises ``ValueError`` without values."""
    if not values or any(math.isnan(value) for value in values):
        raise ValueError("nothing to summarise" if not values else "not a number among the values")
    interval = median_interval(values, level)
    array = np.asarray(values, dtype=float)
    return Summary(
        runs=len(values),
        median=float(np.median(array)),
        low=interval[0] if interval else None,
        high=interval[1] if interval else None,
        mean=float(array.mean()),
        p95=percentile(values, 95),
        minimum=float(array.min()),
        maximum=float(array.max()),
    )
