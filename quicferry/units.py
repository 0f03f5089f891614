"""Units and the one clock.

All stamps are CLOCK_MONOTONIC in nanoseconds, as all hosts of a run share one kernel.
Names carry their unit: ``_ns``, ``_us``, ``_ms``, ``_s``, ``_mbps`` (10^6 bit/s), ``_bytes``, ``_mib``.
"""

from __future__ import annotations

import time

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
BYTES_PER_MIB = 1 << 20
BITS_PER_MBIT = 1_000_000


def now_ns() -> int:
    """CLOCK_MONOTONIC in nanoseconds: the clock of every event in a run."""
    return time.monotonic_ns()


def now_s() -> float:
    """CLOCK_MONOTONIC in seconds: the clock that QUIC connections and asyncio run on."""
    return time.monotonic()


def ms_to_ns(value_ms: float) -> int:
    """Milliseconds to whole nanoseconds."""
    return round(value_ms * NS_PER_MS)


def ns_to_ms(value_ns: int) -> float:
    """Nanoseconds to milliseconds."""
    return value_ns / NS_PER_MS


def figures(value: float) -> str:
    """Three significant figures, and never an exponent."""
    return f"{float(f'{value:.3g}'):.0f}" if abs(value) >= 1000 else f"{value:.3g}"
