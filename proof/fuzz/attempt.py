"""One call of a decoder, with bounded time and memory, and what is wrong with how it ended.

The time is the process's own, so that a busy machine makes no findings. Both bounds are far above what a
decoder needs for the few kilobytes that it is given.
"""

from __future__ import annotations

import resource
import signal
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from quicferry.paths import CHECKOUT

TIME_S = 1.0
MEMORY_BYTES = 512 << 20
#: Folders whose code is ours: where a crash is said to be. The fuzzer itself is not among them.
OURS = ("quicferry", "apps", "baselines", "session", "cli", "topologies")


class TooLong(BaseException):
    """The decoder has used up its time. No ``Exception``: no decoder is to catch it."""


class Target(NamedTuple):
    """A decoder: ``call`` gets the bytes and an empty directory; ``errors`` are those it may raise."""

    name: str
    call: Callable[[bytes, Path], object]
    errors: tuple[type[Exception], ...]
    what: str


class Crash(NamedTuple):
    """An undeclared end. Two with equal fields are the same fault."""

    error: str  # the name of the exception's class
    #: "quicferry/record.py:read_manifest", the innermost function of ours; of what took too long the
    #: outermost, as where a loop is when the time is over is chance
    at: str

    def __str__(self) -> str:
        return f"{self.error} at {self.at}"


def attempt(target: Target, data: bytes, *, time_s: float = TIME_S) -> Crash | None:
    """Give the bytes to the decoder; None when it ended as it says. Main thread only."""
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_fastest()) as scratch:
        try:
            with _bounded(time_s):
                target.call(data, Path(scratch))
        except target.errors:
            return None
        except (Exception, TooLong) as error:
            found = _places(error.__traceback__)
            return Crash(_name(error), found[0 if isinstance(error, TooLong) else -1])
    return None


def _fastest() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108 - a private directory in it


def _name(error: BaseException) -> str:
    # numpy has a class of its own for it
    return "MemoryError" if isinstance(error, MemoryError) else type(error).__name__


def _places(trace: TracebackType | None) -> list[str]:
    """The functions of ours that were being called, the outermost first."""
    found = []
    for frame, _ in traceback.walk_tb(trace):
        path = Path(frame.f_code.co_filename)
        if frame.f_code.co_name.startswith("<"):
            continue  # a comprehension, which has no frame of its own in later Pythons
        if path.is_relative_to(CHECKOUT) and path.relative_to(CHECKOUT).parts[0] in OURS:
            found.append(f"{path.relative_to(CHECKOUT)}:{frame.f_code.co_name}")
    return found or ["outside"]


@contextmanager
def _bounded(time_s: float) -> Iterator[None]:
    def over(*_: object) -> None:
        raise TooLong

    before = signal.signal(signal.SIGVTALRM, over)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    signal.setitimer(signal.ITIMER_VIRTUAL, time_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)
