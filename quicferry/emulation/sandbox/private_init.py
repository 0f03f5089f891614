"""The first process of a private root: makes it habitable, starts the command, reaps, and dies with the tool.

Run as a script by ``private_root.py``, with nothing but the standard library, as it is started once
per run and should cost little: ``private_init.py LIFELINE_FD PROGRAM [ARGUMENT …]``.

The lifeline is the reading end of a pipe whose writing end the tool holds. A byte in it is the
number of a signal for the command; its end means that the tool is gone. As this process is PID 1 of
its namespace, the kernel kills everything in the private root when it ends.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys

EXIT_NOT_FOUND = 127
EXIT_LIFELINE_CUT = 128 + signal.SIGKILL

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1
_MS_NOSUID, _MS_NODEV = 2, 4
_IFREQ = "16sH14x"  # struct ifreq: name, then flags (netdevice(7))


def mount(kind: str, target: str, options: str) -> None:
    """Mount a kernel file system. Raises ``OSError``."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    if libc.mount(kind.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind} on {target}: {os.strerror(number)}")


def loopback_up() -> None:
    """Set ``lo`` up. Raises ``OSError``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        reply = fcntl.ioctl(probe, _SIOCGIFFLAGS, struct.pack(_IFREQ, b"lo", 0))
        flags = struct.unpack(_IFREQ, reply)[1]
        fcntl.ioctl(probe, _SIOCSIFFLAGS, struct.pack(_IFREQ, b"lo", flags | _IFF_UP))


def start(argv: list[str]) -> int:
    """Start the command; returns its process id."""
    pid = os.fork()
    if pid == 0:
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execvp(argv[0], argv)  # noqa: S606 - starting one program without a shell is the purpose
        except OSError as error:
            print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201 - no logger here
        os._exit(EXIT_NOT_FOUND)
    return pid


def reap(command: int) -> int | None:
    """Collect every child that has ended; the command's exit code if it is one of them."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == command:
            end = os.waitstatus_to_exitcode(status)
            code = end if end >= 0 else 128 - end


def main(lifeline: int, argv: list[str]) -> int:
    """Live until the command ends or the lifeline is cut; returns the exit code."""
    os.set_inheritable(lifeline, False)
    mount("sysfs", "/sys", "")  # the one from outside shows the interfaces of the network outside
    mount("tmpfs", "/run", "mode=755")
    loopback_up()
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # a handler must exist for the wake-up to be written
    command = start(argv)
    while True:
        ready, _, _ = select.select([woken, lifeline], [], [])
        if lifeline in ready:
            orders = os.read(lifeline, 64)
            if not orders:
                return EXIT_LIFELINE_CUT
            for order in orders:
                os.kill(command, order)
        if woken in ready:
            numbers = os.read(woken, 256)
            code = reap(command)
            if code is not None:
                return code
            if signal.SIGTERM in numbers:
                os.kill(command, signal.SIGTERM)


if __name__ == "__main__":
    # No interpreter shut-down: the end of PID 1 is to come at once.
    os._exit(main(int(sys.argv[1]), sys.argv[2:]))
