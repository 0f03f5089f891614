"""File descriptors of other processes: what they lead to, and copies of them (pidfd_getfd(2))."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from quicferry.errors import Unsupported

_PIDFD_GETFD = 438  # on all architectures

_libc = ctypes.CDLL(None, use_errno=True)


def descriptors_of(pid: int) -> Iterator[tuple[int, str]]:
    """The number of each open descriptor of a process, and what it leads to."""
    return descriptors_in(Path(f"/proc/{pid}"))


def descriptors_in(proc: Path) -> Iterator[tuple[int, str]]:
    """The same for the process whose directory below ``/proc`` that is, perhaps of another PID namespace."""
    for entry in (proc / "fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # it was closed while we looked
            yield int(entry.name), str(entry.readlink())


def take_descriptor(pid: int, number: int) -> int:
    """A copy of the descriptor that a process has under this number. ``pid``: as the caller sees it.

    Raises ``Unsupported``.
    """
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise Unsupported(f"process {pid} cannot be reached: {error}") from error
    try:
        taken = int(_libc.syscall(_PIDFD_GETFD, process, number, 0))
    finally:
        os.close(process)
    if taken < 0:
        raise Unsupported(f"descriptor {number} cannot be taken: {os.strerror(ctypes.get_errno())}")
    return taken
