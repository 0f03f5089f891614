"""Try something in a network namespace that exists only for that."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

CLONE_NEWNET = 0x40000000

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def in_new_netns(call: Callable[[], T]) -> T:
    """Call in a new, empty network namespace, which ends with the call.

    The call runs in a thread of its own, as a thread can have a network namespace without its process
    (unshare(2)); processes and threads that it starts are in that namespace too. Raises
    ``PermissionError`` without CAP_SYS_ADMIN, and what the call raises.
    """

    def enter_and_call() -> T:
        if _libc.unshare(CLONE_NEWNET) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"unshare: {os.strerror(number)}")
        return call()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(enter_and_call).result()
