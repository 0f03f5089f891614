"""Statistics that need no assumption about the distribution.

Migration times are skewed and have outliers that matter, so the median and its exact confidence
interval are used: for any continuous distribution, the number of values below the median follows
the binomial distribution with p = 1/2, and order statistics bound it (Conover, *Practical
Nonparametric Statistics*, §3.2; ``scipy.stats.quantile_test``).

Two groups are compared by the Mann-Whitney test, whose p-values are corrected by Holm's method when
there are several, by Cliff's delta as the size of the effect, and by the difference of their medians with a
bootstrap interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

#: Fewer values than these have no 95 % interval of their median, and no test finds what there is.
ENOUGH = 6
_RESAMPLES = 2000
#: Cliff's delta: how large an effect is called (Romano et al. 2006)
_EFFECTS = ((0.147, "negligible"), (0.33, "small"), (0.474, "medium"), (1.0, "large"))


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
    from scipy.stats import quantile_test  # takes half a second to load, and one run needs none of it

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


class Comparison(NamedTuple):
    """Two groups beside each other. ``difference`` is the second's median less the first's."""

    one: str
    other: str
    difference: float
    low: float  # the bootstrap interval of the difference
    high: float
    delta: float  # Cliff's: -1 every value of the second is smaller, 1 every one is larger
    p: float  # of the two-sided Mann-Whitney test, corrected for the number of comparisons

    @property
    def effect(self) -> str:
        """The size of the effect in a word."""
        return next(word for limit, word in _EFFECTS if abs(self.delta) <= limit)

    @property
    def is_clear(self) -> bool:
        """Whether the groups differ at the level of 5 %, all comparisons together."""
        return self.p < 0.05


def bootstrap_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the median; None for fewer than ``ENOUGH`` values."""
    if len(values) < ENOUGH:
        return None
    from scipy.stats import bootstrap

    data = np.asarray(values, dtype=float)
    found = bootstrap(
        (data,), np.median, confidence_level=level, n_resamples=_RESAMPLES, method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def compare(groups: Mapping[str, Sequence[float]]) -> list[Comparison]:
    """Every pair of groups that have ``ENOUGH`` values, with p-values corrected by Holm's method."""
    from scipy.stats import bootstrap, mannwhitneyu

    enough = {name: np.asarray(v, dtype=float) for name, v in groups.items() if len(v) >= ENOUGH}
    pairs = list(combinations(enough.items(), 2))
    tests = [mannwhitneyu(other, one) for (_, one), (_, other) in pairs]
    corrected = holm([float(test.pvalue) for test in tests])
    found = []
    for ((name, one), (other_name, other)), test, p in zip(pairs, tests, corrected, strict=True):
        interval = bootstrap(
            (other, one), _difference_of_medians, n_resamples=_RESAMPLES, method="percentile",
            rng=np.random.default_rng(1),
        ).confidence_interval  # fmt: skip
        found.append(
            Comparison(
                one=name,
                other=other_name,
                difference=float(np.median(other) - np.median(one)),
                low=float(interval.low),
                high=float(interval.high),
                delta=float(2 * test.statistic / (len(one) * len(other)) - 1),
                p=p,
            )
        )
    return found


def _difference_of_medians(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    return np.asarray(np.median(one, axis=axis) - np.median(other, axis=axis))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values of several tests (Holm 1979): the chance of any false finding stays at the level."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected
