"""Waiting for what must happen, for as long as a busy machine may need."""

from __future__ import annotations

import time
from collections.abc import Callable


def eventually(is_so: Callable[[], object], within_s: float = 60.0) -> bool:
    """Whether it has become so by then."""
    deadline = time.monotonic() + within_s
    while not is_so():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
