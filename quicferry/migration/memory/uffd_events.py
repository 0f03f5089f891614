"""What the kernel tells of processes that lack memory (userfaultfd(2)), followed and written down.

Beside page faults it reports that a process forked, moved memory (mremap) or gave some up (munmap,
MADV_DONTNEED), each once. ``Target`` follows it for one process; ``UffdEventLog`` keeps it for the next
agent, should this one die.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterable, Iterator, Set
from pathlib import Path

from quicferry.errors import MigrationError
from quicferry.migration.memory.page_set import PageSet
from quicferry.migration.memory.pagemap import PAGE_BYTES

# linux/userfaultfd.h
MESSAGE = struct.Struct("<B7xQQQ")  # event, three arguments
PAGEFAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16


class UffdEventLog:
    """The userfaultfd events of processes that lack memory, in a file, for the next agent if this one dies.

    The kernel tells of it once, and a page that was given up must not be put in place. The file is
    mapped, so that keeping it costs no system call. Its head says whether a message may have been lost:
    one was being read when the agent died, or there were more than there is room for, or one was of a
    fork, whose descriptor nobody keeps. Raises ``OSError`` when there is no room for the file itself.
    """

    _HEAD = struct.Struct("<II")  # state, records
    _RECORD = struct.Struct("<iIQQQ")  # PID inside the container, event, its three arguments
    _SIZE = 256 * 1024
    _WHOLE, _READING, _TORN = 0, 1, 2

    def __init__(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            # all of it now: a page that cannot be had later would be a SIGBUS
            os.posix_fallocate(descriptor, 0, self._SIZE)
            self._map = mmap.mmap(descriptor, self._SIZE)
        finally:
            os.close(descriptor)
        self._state, self._count = self._HEAD.unpack_from(self._map)

    def _note(self) -> None:
        """Write the head of the file."""
        self._HEAD.pack_into(self._map, 0, self._state, self._count)

    def reading(self) -> None:
        """Mark that messages are about to be read: from here on one may be lost."""
        if self._state == self._WHOLE:
            self._map[0] = self._READING

    def heard(self, pid: int, raw: bytes) -> None:
        """Append the messages that a successor must know, and clear the mark."""
        for event, a, b, c in MESSAGE.iter_unpack(raw):
            if event == PAGEFAULT:
                continue
            place = self._HEAD.size + self._count * self._RECORD.size
            if event == FORK or place + self._RECORD.size > self._SIZE:
                self._state = self._TORN
                break
            self._RECORD.pack_into(self._map, place, pid, event, a, b, c)
            self._count += 1
        self._note()

    def of(self, pid: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield the event and its arguments for all messages about a process.

        Raises ``MigrationError`` when that is not all that happened.
        """
        if self._state != self._WHOLE:
            raise MigrationError("what the server did with memory that it lacks was not written down")
        for number in range(self._count):
            place = self._HEAD.size + number * self._RECORD.size
            owner, *message = self._RECORD.unpack_from(self._map, place)
            if owner == pid:
                event, a, b, c = message
                yield event, a, b, c

    def close(self) -> None:
        """Unmap the file, which stays."""
        self._map.close()


class Target:
    """One process with missing pages. Page numbers are those of the images, wherever mremap moved them."""

    def __init__(
        self, descriptor: int, pid: int, unplaced: Set[int], moves: Iterable[tuple[int, int, int]] = ()
    ) -> None:
        self.descriptor = descriptor
        self.pid = pid
        self.unplaced = unplaced if isinstance(unplaced, PageSet) else PageSet.of(unplaced)
        self._moves = list(moves)  # from, to, how many, in the order of the events

    def where(self, page: int) -> int:
        """The page of the process in which a page of the images is now."""
        for old, new, count in self._moves:
            if old <= page < old + count:
                page += new - old
        return page

    def which(self, page: int) -> int:
        """The page of the images that a page of the process is now: the reverse of ``where``."""
        for old, new, count in reversed(self._moves):
            if new <= page < new + count:
                page += old - new
        return page

    def moved(self, old: int, new: int, count: int) -> None:
        """Note an mremap: pages of the process have moved."""
        self._moves.append((old, new, count))

    def dropped(self, first: int, count: int) -> None:
        """Note that a range was unmapped or discarded: its pages must not be put in place any more."""
        if not self._moves:
            self.unplaced.remove_run(first, count)
            return
        if count > len(self.unplaced):
            gone = {page for page in self.unplaced if first <= self.where(page) < first + count}
        else:
            gone = {self.which(page) for page in range(first, first + count)}
        self.unplaced -= gone

    def heard(self, event: int, a: int, b: int, c: int) -> None:
        """Follow an event of the kernel about the process's mappings."""
        if event == REMAP:
            self.moved(a // PAGE_BYTES, b // PAGE_BYTES, c // PAGE_BYTES)
        elif event in (REMOVE, UNMAP):
            self.dropped(a // PAGE_BYTES, (b - a) // PAGE_BYTES)

    def retrace(self, event_log: UffdEventLog, there: set[int]) -> None:
        """Reach the state of an agent that died. ``there``: the pages that the process has by now."""
        for message in event_log.of(self.pid):
            self.heard(*message)
        self.unplaced -= {page for page in self.unplaced if self.where(page) in there}

    def child(self, descriptor: int) -> Target:
        """A target for a fork of the process, which lacks the same pages."""
        return Target(descriptor, self.pid, self.unplaced.copy(), self._moves)

    def runs(self, first: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield unplaced neighbours of a range as (image page, page in the process, how many)."""
        if not self._moves and self.unplaced.has_all(first, count):
            yield first, first, count  # as nearly always
            return
        start = first
        while start < first + count:
            if start not in self.unplaced:
                start += 1
                continue
            place, length = self.where(start), 1
            while (
                start + length < first + count
                and start + length in self.unplaced
                and self.where(start + length) == place + length
            ):
                length += 1
            yield start, place, length
            start += length
