"""A userfaultfd that the process whose memory it is about makes for another one.

A process can make a userfaultfd of its own memory only. Whoever wants to watch another process asks it to
make one, takes a copy of the descriptor, and does all else from outside; the process closes its own.
No numpy here: the server imports this module, and its memory is what is to be moved.

The agent's half is ``container.descriptors.take_descriptor``. System call: userfaultfd(2).
"""

from __future__ import annotations

import ctypes
import os
import platform

from quicferry.errors import Unsupported

#: The number of userfaultfd(2) differs between machines (asm/unistd.h).
USERFAULTFD = {"x86_64": 323, "aarch64": 282, "riscv64": 282, "ppc64le": 364, "s390x": 355}
USER_MODE_ONLY = 1  # linux/userfaultfd.h

_libc = ctypes.CDLL(None, use_errno=True)


def offer() -> int:
    """Make a userfaultfd of this process's memory; whoever calls closes it. Raises ``Unsupported``."""
    number = USERFAULTFD.get(platform.machine())
    if number is None:
        raise Unsupported(f"the number of userfaultfd(2) on {platform.machine()} is not known here")
    flags = os.O_CLOEXEC | os.O_NONBLOCK
    descriptor = int(_libc.syscall(number, flags))
    if descriptor < 0:  # without privileges: one that stops nobody in the kernel, which tracking never does
        descriptor = int(_libc.syscall(number, flags | USER_MODE_ONLY))
    if descriptor < 0:
        raise Unsupported(f"this process gets no userfaultfd: {os.strerror(ctypes.get_errno())}")
    return descriptor
