"""A userfaultfd that passes from the process whose memory it is about to another one.

A process can make a userfaultfd of its own memory only. Whoever wants to watch another process asks it to
make one, takes a copy of the descriptor, and does all else from outside; the process closes its own.
No numpy here: the server imports this module, and its memory is what is to be moved.

System calls: userfaultfd(2), pidfd_getfd(2).
"""

from __future__ import annotations

import ctypes
import os
import platform

from quicferry.errors import Unsupported

#: The number of userfaultfd(2) differs between machines (asm/unistd.h), that of pidfd_getfd(2) does not.
USERFAULTFD = {"x86_64": 323, "aarch64": 282, "riscv64": 282, "ppc64le": 364, "s390x": 355}
PIDFD_GETFD = 438

_libc = ctypes.CDLL(None, use_errno=True)


def offer() -> int:
    """Make a userfaultfd of this process's memory; whoever calls closes it. Raises ``Unsupported``."""
    number = USERFAULTFD.get(platform.machine())
    if number is None:
        raise Unsupported(f"the number of userfaultfd(2) on {platform.machine()} is not known here")
    descriptor = int(_libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK))
    if descriptor < 0:
        raise Unsupported(f"this process gets no userfaultfd: {os.strerror(ctypes.get_errno())}")
    return descriptor


def take(pid: int, number: int) -> int:
    """A copy of the descriptor that a process has under this number. ``pid``: as the caller sees it.

    Raises ``Unsupported``.
    """
    try:
        process = os.pidfd_open(pid)
    except OSError as error:
        raise Unsupported(f"process {pid} cannot be reached: {error}") from error
    try:
        taken = int(_libc.syscall(PIDFD_GETFD, process, number, 0))
    finally:
        os.close(process)
    if taken < 0:
        raise Unsupported(f"descriptor {number} cannot be taken: {os.strerror(ctypes.get_errno())}")
    return taken
