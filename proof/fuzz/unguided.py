"""Where there is no atheris: hypothesis draws bytes, and changes those of the corpus, blindly."""

from __future__ import annotations

import time
from collections.abc import Sequence

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proof.fuzz.attempt import Target, attempt
from proof.fuzz.findings import Collector

BATCH = 200
_EDIT = st.tuples(st.integers(0, 1 << 16), st.integers(0, 8), st.binary(max_size=8))


def _changed(seed: bytes, edits: Sequence[tuple[int, int, bytes]]) -> bytes:
    """The seed with some places overwritten, cut or grown."""
    data = bytearray(seed)
    for place, removed, added in edits:
        at = place % (len(data) + 1)
        data[at : at + removed] = added
    return bytes(data)


def fuzz(target: Target, seconds: float, seeds: Sequence[bytes], collector: Collector) -> None:
    """Draw bytes until the time is over."""
    drawn = st.binary(max_size=256)
    if seeds:
        drawn |= st.builds(_changed, st.sampled_from(list(seeds)), st.lists(_EDIT, min_size=1, max_size=4))

    @settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(drawn)
    def batch(data: bytes) -> None:
        collector.take(attempt(target, data, time_s=collector.time_s), data)

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        batch()
