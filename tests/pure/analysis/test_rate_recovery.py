"""The time until a download is as fast as before, on arrivals that are written down."""

from __future__ import annotations

import polars as pl
import pytest

from quicferry.analysis.rate_recovery import rate_recovered_ns

MS = 1_000_000
FROZEN, RESUMED = 2000 * MS, 2100 * MS


def arrivals(*phases: tuple[int, int, int]) -> pl.DataFrame:
    """``phases``: from, to (ms), and one packet of 1000 bytes every so many ms."""
    times = [t * MS for begin, end, every in phases for t in range(begin, end, every)]
    return pl.DataFrame(
        {"t_ns": times, "server": "x", "new_bytes": 1000}, schema_overrides={"t_ns": pl.Int64}
    )


def test_it_ends_with_the_first_window_that_is_as_full_as_before():
    before = (500, 2000, 1)
    found = rate_recovered_ns(arrivals(before, (2110, 2300, 10), (2300, 3000, 1)), FROZEN, RESUMED, 20 * MS)
    assert found is not None
    took_ns, rate = found
    assert rate == pytest.approx(1_000_000)
    assert 2300 - 2100 + 40 <= took_ns / MS <= 2300 - 2100 + 50


def test_a_burst_is_no_rate():
    """What was kept in a queue comes all at once, less than a window holds."""
    burst = arrivals((1000, 2000, 1), (2110, 2112, 1), (2120, 4000, 10))
    assert rate_recovered_ns(burst, FROZEN, RESUMED, 20 * MS) is None


def test_without_a_rate_before_there_is_nothing_to_recover():
    assert rate_recovered_ns(arrivals((1000, 2000, 100), (2100, 3000, 1)), FROZEN, RESUMED, 20 * MS) is None
    assert rate_recovered_ns(arrivals(), FROZEN, RESUMED, 20 * MS) is None


def test_a_rate_that_never_comes_back_is_none():
    assert rate_recovered_ns(arrivals((1000, 2000, 1), (2200, 4000, 2)), FROZEN, RESUMED, 20 * MS) is None
