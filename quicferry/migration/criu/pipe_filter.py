"""Starts CRIU so that its page server works without CAP_SYS_RESOURCE. A program by itself.

The page server of CRIU (``pipe_read_dest_init`` in ``criu/page-pipe.c``) asks for a pipe of 3.2 MiB.
Without the capability the kernel grants at most ``fs.pipe-max-size`` (1 MiB) and refuses to round down;
the server goes on half set up and dies at the first request. This program lets the request seem to
succeed, by a filter of system calls (seccomp(2)) that is in force when CRIU takes its place; whoever
started it then makes the pipe as large as it may be, through ``/proc`` (``page_server.enlarge_pipes``). That
is enough, as CRIU's other pipes cannot be larger either: it asks for twice the limit first, is refused,
and takes one more pipe.

``python -I -S pipe_filter.py LIMIT PROGRAM [ARGUMENT …]``: only the standard library, and little of it.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys

F_SETPIPE_SZ = 1031
PR_SET_SECCOMP = 22
SECCOMP_MODE_FILTER = 2
ALLOW, PRETEND = 0x7FFF0000, 0x00050000  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with the errno 0: success
LOAD, EQUAL, GREATER, RETURN = 0x20, 0x15, 0x25, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGT|K, BPF_RET|K
NUMBER, ARCHITECTURE, SECOND, THIRD = 0, 4, 24, 32  # in struct seccomp_data, the low halves of arguments
#: machine -> (the number of fcntl, AUDIT_ARCH_…)
MACHINES = {"x86_64": (72, 0xC000003E), "aarch64": (25, 0xC00000B7)}


class Program(ctypes.Structure):
    """``struct sock_fprog`` of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def instructions(limit: int, machine: str) -> bytes:
    """The filter program: fcntl(F_SETPIPE_SZ) of more than twice ``limit`` bytes seems to succeed."""
    fcntl, architecture = MACHINES[machine]
    steps = (
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 0, 7, architecture),
        (LOAD, 0, 0, NUMBER),
        (EQUAL, 0, 5, fcntl),
        (LOAD, 0, 0, SECOND),
        (EQUAL, 0, 3, F_SETPIPE_SZ),
        (LOAD, 0, 0, THIRD),
        (GREATER, 0, 1, 2 * limit),
        (RETURN, 0, 0, PRETEND),
        (RETURN, 0, 0, ALLOW),
    )
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


def install(code: bytes) -> None:
    """Put the filter into force for this process and for what it executes. Raises ``OSError``."""
    held = ctypes.create_string_buffer(code, len(code))
    program = Program(len(code) // 8, ctypes.addressof(held))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"no filter of system calls: {os.strerror(number)}")


def main() -> None:
    """Install the filter, then execute the program."""
    limit, *argv = sys.argv[1:]
    install(instructions(int(limit), os.uname().machine))
    os.execv(argv[0], argv)  # noqa: S606 - it is what this program is for


if __name__ == "__main__":
    main()
