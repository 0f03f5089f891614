"""Missing memory of restored processes, by userfaultfd(2): what CRIU's ``lazy-pages`` daemon does.

``criu restore --lazy-pages`` leaves pages out and hands a userfaultfd for each process to whoever
listens on ``lazy-pages.socket`` in the image directory. That is this module instead of CRIU's daemon,
for one reason: the daemon asks for one page after another and puts it in place, over 200 ms for a
Python server; here all that arrives is put in place at once, many pages by one call, mostly before
the process touches it (docs/adr/0008).

An agent that dies in the middle of it has a successor: init keeps the descriptors, and a ``UffdEventLog``
says what the processes did with memory that had not come yet (docs/adr/0008).

The handshake (``criu/uffd.c``, the same from 3.11 to 4.2): the PID as an int, the descriptor, and so on
for each process; at the end of the restore a magic number.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quicferry.errors import MigrationError
from quicferry.migration.container.readiness import until_readable
from quicferry.migration.memory.page_set import PageSet
from quicferry.migration.memory.pagemap import PAGE_BYTES
from quicferry.migration.memory.uffd_events import FORK, MESSAGE, PAGEFAULT, Target, UffdEventLog

SOCKET = "lazy-pages.socket"
RESTORED = 0x52535446  # LAZY_PAGES_RESTORE_FINISHED
INT = struct.Struct("<i")

# linux/userfaultfd.h
UFFDIO_WAKE = 0x8010AA02
UFFDIO_COPY = 0xC028AA03
UFFDIO_ZEROPAGE = 0xC020AA04
RANGE = struct.Struct("<QQ")  # start, length
COPY = struct.Struct("<QQQQq")  # destination, source, length, mode, result
ZEROPAGE = struct.Struct("<QQQq")  # start, length, mode, result
MESSAGES = 16  # read at once


Content = bytes | NDArray[np.uint8]  # of whole pages, one after another


class UserFaults:
    """Puts pages in place, and reports the pages for which a process stands still.

    ``missing``: PID inside the container -> pages that the images lack. ``wanted(pid, page)`` is
    called when a process waits for a page that has not come yet, ``adopted(pid, descriptor)`` when a
    process is taken on. ``found``: the processes that an agent left when it died; None: CRIU hands some over.
    """

    def __init__(
        self,
        images: Path,
        missing: dict[int, PageSet],
        wanted: Callable[[int, int], None],
        adopted: Callable[[int, int], None],
        event_log: UffdEventLog,
        found: Sequence[Target] | None = None,
    ) -> None:
        self._adopted = adopted
        self._event_log = event_log
        self._missing = missing
        self._wanted = wanted
        self._targets: list[Target] = []
        self._kept: list[tuple[int, int, Content]] = []  # came before there was a process to put it in
        self._awaited: set[tuple[int, int]] = set()  # until then: pages that a process stands still for
        self.restored = asyncio.Event()
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._greeting: asyncio.Task[None] | None = None
        if found is not None:
            self._take_over(found)
            return
        path = images / SOCKET
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)
        listener.bind(str(path))
        listener.listen(1)
        self._greeting = asyncio.create_task(self._greet(listener))

    def _take_over(self, found: Sequence[Target]) -> None:
        """Continue with the processes that an earlier agent left."""
        self.restored.set()
        for target in found:
            self._targets.append(target)
            asyncio.get_running_loop().add_reader(target.descriptor, self._read, target)
        # nobody to tell yet that all is there
        asyncio.get_running_loop().call_soon(self._check)

    async def _greet(self, listener: socket.socket) -> None:
        """Take the descriptors that CRIU hands over, until the processes are restored."""
        loop = asyncio.get_running_loop()
        with listener:
            connection, _ = await loop.sock_accept(listener)
        with connection:
            connection.setblocking(False)
            while (raw := await loop.sock_recv(connection, INT.size)) and len(raw) == INT.size:
                (number,) = INT.unpack(raw)
                if number == RESTORED:
                    self._begin()
                    return
                if number > 0:  # a negative one is that of a zombie
                    # also of a child all of whose memory is in the images: CRIU hands over every process
                    lacking = self._missing.setdefault(number, PageSet.of(()))
                    self._adopt(Target(await _descriptor(connection), number, lacking))

    def _adopt(self, target: Target) -> None:
        """Take a process on: watch its userfaultfd."""
        self._targets.append(target)
        self._adopted(target.pid, target.descriptor)
        asyncio.get_running_loop().add_reader(target.descriptor, self._read, target)

    def _begin(self) -> None:
        """Put in place what has come: the processes have their mappings now."""
        self.restored.set()
        for pid, first, data in self._kept:
            self._place_all(pid, first, data)
        self._kept.clear()
        self._check()

    def arrived(self, pid: int, first: int, data: Content) -> None:
        """Put pages in place that have come, or keep them until there is a process."""
        if self.restored.is_set():
            self._place_all(pid, first, data)
            self._check()
            return
        self._kept.append((pid, first, data))
        # a process may touch its memory before the restore is over
        for page in {page for owner, page in self._awaited if owner == pid}:
            if first <= page < first + len(data) // PAGE_BYTES:
                self._place_all(pid, page, _page_of(data, page - first))
                self._awaited.discard((pid, page))

    def _place_all(self, pid: int, first: int, data: Content) -> None:
        """Put pages in place in a process and in its forks."""
        for target in self._targets:
            if target.pid == pid:
                self._place(target, first, data)

    def _place(self, target: Target, first: int, data: Content) -> None:
        """Put pages in place in one process, those that it still lacks."""
        address = _address_of(data)
        for page, place, count in list(target.runs(first, len(data) // PAGE_BYTES)):
            source = address + (page - first) * PAGE_BYTES
            while count:
                done = self._copy(target, place, source, count)
                if done is None:  # it is giving up memory at this moment: hear what, then go on
                    self._read(target)
                    if page not in target.unplaced:
                        done = 1
                    else:
                        continue
                target.unplaced.remove_run(page, done)
                page, place, count = page + done, place + done, count - done
                source += done * PAGE_BYTES

    def _copy(self, target: Target, place: int, source: int, count: int) -> int | None:
        """Put neighbours in place; returns how many are settled, None to try again."""
        request = bytearray(COPY.pack(place * PAGE_BYTES, source, count * PAGE_BYTES, 0, 0))
        try:
            fcntl.ioctl(target.descriptor, UFFDIO_COPY, request)
        except OSError as error:
            copied = COPY.unpack(request)[4]
            if copied > 0:
                return int(copied) // PAGE_BYTES
            if error.errno == errno.EAGAIN:
                return None
            if count > 1 and error.errno in (errno.ENOENT, errno.EINVAL):
                return self._copy(target, place, source, 1)  # more than one mapping, or one that is gone
            if error.errno == errno.EEXIST:
                self._wake(target, place)
                return 1
            if error.errno in (errno.ENOENT, errno.EINVAL, errno.ESRCH):
                return 1  # nobody can need it any more
            raise
        return count

    def _wake(self, target: Target, place: int) -> None:
        """Let a process that stands still at a page try again."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(target.descriptor, UFFDIO_WAKE, RANGE.pack(place * PAGE_BYTES, PAGE_BYTES))

    def _read(self, target: Target) -> None:
        """Read and follow the kernel's messages about a process."""
        self._event_log.reading()
        try:
            raw = os.read(target.descriptor, MESSAGE.size * MESSAGES)
        except BlockingIOError:
            self._event_log.heard(target.pid, b"")
            return
        except OSError:
            raw = b""
        self._event_log.heard(target.pid, raw)
        if not raw:
            self._leave(target)
            return
        for event, a, b, c in MESSAGE.iter_unpack(raw):
            if target not in self._targets:  # it had all its memory after the message before this one
                return
            if event == PAGEFAULT:
                self._fault(target, b // PAGE_BYTES)
            elif event == FORK:
                self._adopt(target.child(a & 0xFFFFFFFF))
            else:
                target.heard(event, a, b, c)
        self._check()

    def _fault(self, target: Target, place: int) -> None:
        """Handle a page fault: place the page if it has come, else ask for it."""
        page = target.which(place)
        if page not in target.unplaced:
            self._zero(target, place)
            return
        for pid, first, data in self._kept:
            if pid == target.pid and first <= page < first + len(data) // PAGE_BYTES:
                self._place(target, page, _page_of(data, page - first))
                return
        self._awaited.add((target.pid, page))
        self._wanted(target.pid, page)

    def _zero(self, target: Target, place: int) -> None:
        """Place a page of zeros: one that never held anything, or that was discarded."""
        request = bytearray(ZEROPAGE.pack(place * PAGE_BYTES, PAGE_BYTES, 0, 0))
        try:
            fcntl.ioctl(target.descriptor, UFFDIO_ZEROPAGE, request)
        except OSError:
            self._wake(target, place)

    def _leave(self, target: Target) -> None:
        """Close a userfaultfd: the kernel then treats the process as any other."""
        if target in self._targets:
            self._targets.remove(target)
            asyncio.get_running_loop().remove_reader(target.descriptor)
            os.close(target.descriptor)

    def _check(self) -> None:
        """Leave the processes that have all their memory."""
        if not self.restored.is_set():
            return
        for target in [target for target in self._targets if not target.unplaced]:
            self._leave(target)
        if not self._targets and not self.over.done():
            self.over.set_result(None)

    async def close(self) -> None:
        """Stop. Processes that wait for a page read zeros then: they must have been killed before."""
        if self._greeting is not None:
            self._greeting.cancel()
            await asyncio.wait([self._greeting])
        for target in list(self._targets):
            self._leave(target)
        self._kept.clear()
        if not self.over.done():
            self.over.cancel()
        self._event_log.close()


def wake(descriptor: int, areas: Iterable[tuple[int, int]]) -> None:
    """Let a process that stands still in these runs of pages (first, count) fault again.

    The kernel tells only once, and it has told an agent that died.
    """
    for first, count in areas:
        with contextlib.suppress(OSError):  # it has given up the area meanwhile
            fcntl.ioctl(descriptor, UFFDIO_WAKE, RANGE.pack(first * PAGE_BYTES, count * PAGE_BYTES))


def _address_of(data: Content) -> int:
    """Where the contents lie in this process's memory."""
    view = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)
    address: int = view.__array_interface__["data"][0]  # a fifth of what ``ctypes.data`` takes
    return address


def _page_of(data: Content, number: int) -> Content:
    """The content of one page of many."""
    return data[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]


async def _descriptor(connection: socket.socket) -> int:
    """Receive the next descriptor, with a byte or so of no meaning."""
    await until_readable(connection)
    _, ancillary, _, _ = connection.recvmsg(INT.size, socket.CMSG_SPACE(INT.size))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(data[: numbers.itemsize])
            return numbers[0]
    raise MigrationError("CRIU handed over no userfaultfd")
