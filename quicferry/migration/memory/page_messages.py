"""Messages between the agents for memory that stayed at the source: which pages are missing, and the pages.

The destination opens a stream with ``WantAll``; the source answers with ``PageRun`` after ``PageRun``.
``memory.page_source`` and ``memory.page_sink`` are the two ends of it.
"""

from __future__ import annotations

from typing import Protocol

import msgspec


class WantAll(msgspec.Struct, frozen=True, kw_only=True, tag="all"):
    """The first message of a stream for pages: everything that is missing, in the order it is wanted.

    ``runs``: (PID inside the container, first page number, number of pages). ``on_demand``: nothing is sent
    but what is waited for, until the first ``GotPages`` has opened the window.
    """

    epoch: int
    runs: list[tuple[int, int, int]]
    on_demand: bool = False


class WantNow(msgspec.Struct, frozen=True, kw_only=True, tag="now"):
    """The process stands still until it has these pages: they are sent before all others."""

    pid: int
    first: int
    count: int


class GotPages(msgspec.Struct, frozen=True, tag="got"):
    """This many pages have arrived: the source may send as many more (a credit window).

    After ``WantAll`` with ``on_demand`` the first of them opens the window.
    """

    count: int


class PagesDone(msgspec.Struct, frozen=True, kw_only=True, tag="done"):
    """The process has all its memory; or it never will, and ``error`` says why."""

    error: str | None = None


class PageRun(msgspec.Struct, frozen=True, kw_only=True):
    """Neighbouring pages and the digest of their contents. ``packed``: ``data`` is a zstd frame.

    ``more``: further runs (first page number, number of pages) whose contents follow in ``data``.
    """

    pid: int
    first: int
    count: int
    data: bytes
    sha256: bytes
    packed: bool = False
    more: list[tuple[int, int]] = []

    @property
    def runs(self) -> list[tuple[int, int]]:
        """All runs of this message as (first page number, number of pages)."""
        return [(self.first, self.count), *self.more]

    @property
    def pages(self) -> int:
        """How many pages this message brings."""
        return sum(count for _, count in self.runs)


ToPageSource = WantAll | WantNow | GotPages | PagesDone


class PageCall(Protocol):
    """The destination's end of a stream for pages."""

    async def write(self, message: ToPageSource) -> None:
        """Send one message. Raises ``MigrationError`` when the stream is broken."""

    async def read(self) -> PageRun:
        """The next answer. Raises ``MigrationError``, also when there are no more."""

    def cancel(self) -> None:
        """Break the stream off."""
