"""Enters network namespaces, existing and new ones, and finds the processes in them."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import psutil

CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_RUNNING = 0x1, 0x40  # RUNNING is the operational state "up" (netdevice(7))

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def network_of(pid: int) -> Iterator[None]:
    """A context in which this thread is in the network namespace of that process. Raises ``OSError``.

    Sockets made meanwhile stay in that network; ``/proc/sys/net`` shows its settings. No ``await``
    and no new thread may happen meanwhile.
    """
    own = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _enter(other)
        finally:
            os.close(other)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)


def set_network_settings(values: Mapping[str, int]) -> None:
    """Write settings below ``/proc/sys/net`` (``ipv4/ip_forward``) of this thread's network.

    Raises ``OSError``; a setting that this kernel does not have is an error too.
    """
    for name, value in values.items():
        with open(f"/proc/sys/net/{name}", "wb", buffering=0) as setting:  # noqa: PTH123 - unbuffered
            setting.write(str(value).encode())


def without_carrier(interfaces: Iterable[str]) -> list[str]:
    """Which of these interfaces of this thread's network are down or have no carrier."""
    missing = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for name in interfaces:
            reply = fcntl.ioctl(probe, _SIOCGIFFLAGS, struct.pack("16sH14x", name.encode(), 0))
            flags = struct.unpack("16sH14x", reply)[1]
            if flags & (_IFF_UP | _IFF_RUNNING) != _IFF_UP | _IFF_RUNNING:
                missing.append(name)
    return missing


def network_id(pid: int) -> int:
    """The inode number of a process's network namespace. Raises ``OSError``."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino


def processes_in_networks(networks: Iterable[int]) -> list[int]:
    """The living processes in these network namespaces, as far as this process sees them."""
    wanted = set(networks)
    found = []
    for pid in psutil.pids():
        try:
            if network_id(pid) in wanted:
                found.append(pid)
        except OSError:
            continue  # it has ended meanwhile, or is a zombie
    return found


def in_new_netns(call: Callable[[], T]) -> T:
    """Call in a new, empty network namespace, which ends with the call.

    The call runs in a thread of its own, as a thread can have a network namespace without its process
    (unshare(2)); processes and threads that it starts are in that namespace too. Raises
    ``PermissionError`` without CAP_SYS_ADMIN, and what the call raises.
    """

    def enter_and_call() -> T:
        if _libc.unshare(CLONE_NEWNET) != 0:
            raise _last_error("unshare")
        return call()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(enter_and_call).result()


def _enter(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        raise _last_error("setns")


def _last_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
