"""The source's end of lazy pages: serves memory that stayed in the stopped process.

All missing pages are sent without being asked, as fast as the destination takes them, and those first for
which the process waits. A stream that breaks is replaced by one that begins with a list of what is still
missing: the source keeps nothing in mind between two streams. ``page_sink`` is the other end.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import zstandard

from quicferry.errors import MigrationError
from quicferry.migration.memory.batches import BATCH_PAGES
from quicferry.migration.memory.page_messages import (
    GotPages,
    PageRun,
    PagesDone,
    ToPageSource,
    WantAll,
    WantNow,
)

#: On its way and not yet taken: enough to fill 1 Gbit/s over the 3 ms of a round trip between agents.
WINDOW_PAGES = 512
#: Sent right after a page that is waited for: the block it is in, as its neighbours are likely to be next.
AROUND_PAGES = 64

#: The answer to PagesDone.
FAREWELL = PageRun(pid=0, first=0, count=0, data=b"", sha256=b"")

Reader = Callable[[int, int, int], bytes]  # (PID, first page number, pages) -> their contents


class PageSource:
    """The source's end. ``reader`` reads the memory of stopped processes, by PID inside the container."""

    def __init__(self, reader: Reader, compression: str) -> None:
        self._reader = reader
        self._level = {"none": None, "zstd-1": 1, "zstd-3": 3}.get(compression, -1)
        self.sent_pages = 0
        self.sent_bytes = 0
        self.waited_for = 0  # requests for a page that the process stood still for
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._given_up = asyncio.Event()

    async def done(self) -> None:
        """Return when the destination has everything. Raises ``MigrationError`` if it never will."""
        await asyncio.shield(self._done)

    def abort(self) -> None:
        """End all streams: the memory is gone, nobody may wait for it."""
        self._done.cancel()
        self._given_up.set()

    async def serve(
        self, requests: AsyncIterator[ToPageSource], send: Callable[[PageRun], Awaitable[None]]
    ) -> None:
        """Answer one stream, which begins with ``WantAll``."""
        wanted = await anext(requests, None)
        if not isinstance(wanted, WantAll):
            raise MigrationError("a stream for pages begins with what is wanted")
        stream = _Stream(wanted)
        listening = asyncio.create_task(self._listen(stream, requests))
        listening.add_done_callback(lambda _: stream.news.set())
        try:
            while not listening.done():
                if stream.over:
                    # else an agent that is killed now would leave a successor who waits to be told so
                    await self._given_up.wait()
                    await send(FAREWELL)
                    return
                batch = stream.next_batch()
                if batch is None:
                    stream.news.clear()
                    await stream.news.wait()
                    continue
                answer = await asyncio.to_thread(self._read, *batch)
                self.sent_pages += answer.pages
                self.sent_bytes += len(answer.data)
                await send(answer)
            await listening
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def _listen(self, stream: _Stream, requests: AsyncIterator[ToPageSource]) -> None:
        """Take in the destination's messages on one stream."""
        async for request in requests:
            match request:
                case GotPages():
                    stream.on_its_way -= request.count
                    stream.on_demand = False
                case WantNow():
                    self.waited_for += 1
                    # before what lies around the page that was waited for last
                    stream.urgent.insert(0, (request.pid, request.first, request.count))
                    around = request.first // AROUND_PAGES * AROUND_PAGES
                    stream.urgent.append((request.pid, around, AROUND_PAGES))
                case PagesDone():
                    self._finish(request.error)
                    stream.over = True
                case WantAll():
                    raise MigrationError("a stream for pages says twice what is wanted")
            stream.news.set()

    def _finish(self, error: str | None) -> None:
        """Note how the destination's memory ended."""
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(MigrationError(error))

    def _read(self, pid: int, runs: list[tuple[int, int]]) -> PageRun:
        """Read and compress runs of pages into one message."""
        data = b"".join([self._reader(pid, first, count) for first, count in runs])
        packed = data if self._level is None else zstandard.ZstdCompressor(level=self._level).compress(data)
        return PageRun(
            pid=pid,
            first=runs[0][0],
            count=runs[0][1],
            data=packed,
            sha256=hashlib.sha256(data).digest(),
            packed=self._level is not None,
            more=runs[1:],
        )


async def say_farewell(
    requests: AsyncIterator[ToPageSource], send: Callable[[PageRun], Awaitable[None]]
) -> bool:
    """Answer a destination that has everything and missed the answer. False: it lacks some pages."""
    async for request in requests:
        if isinstance(request, WantAll) and request.runs:
            return False
        if isinstance(request, PagesDone):
            await send(FAREWELL)
            return True
    return False


@dataclass
class _Stream:
    """What is still to be sent on one stream, and in what order. ``on_demand``: nothing else yet."""

    wanted: WantAll
    urgent: list[tuple[int, int, int]] = field(default_factory=list)
    on_its_way: int = 0
    on_demand: bool = False
    over: bool = False  # the destination has said so
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.on_demand = self.wanted.on_demand
        self._unsent: dict[int, set[int]] = {}
        for pid, first, count in self.wanted.runs:
            self._unsent.setdefault(pid, set()).update(range(first, first + count))
        self._order = self._batches()
        self._following: tuple[int, int, int] | None = None  # taken out of that order, and not sent yet

    def _batches(self) -> Iterator[tuple[int, int, int]]:
        """All wanted runs in their order, cut into batches."""
        for pid, first, count in self.wanted.runs:
            for start in range(first, first + count, BATCH_PAGES):  # nobody says how long a run may be
                yield pid, start, min(BATCH_PAGES, first + count - start)

    def next_batch(self) -> tuple[int, list[tuple[int, int]]] | None:
        """What to send now: a PID and runs. None when nothing is left, or too much is on its way."""
        while self.urgent:
            pid, first, count = self.urgent.pop(0)
            if run := self._take(pid, first, count):
                return pid, [run]
        # short runs go together, see BATCH_PAGES
        runs: list[tuple[int, int]] = []
        room = BATCH_PAGES
        while self.on_its_way < WINDOW_PAGES and not self.on_demand:
            following = self._following = self._following or next(self._order, None)
            if following is None or (runs and (following[0] != pid or following[2] > room)):
                break
            self._following = None
            pid = following[0]
            if run := self._take(*following):
                runs.append(run)
                room -= run[1]
        return (pid, runs) if runs else None

    def _take(self, pid: int, first: int, count: int) -> tuple[int, int] | None:
        """Take the first unsent neighbours out of a range; put the rest of it back."""
        unsent = self._unsent.get(pid, set())
        end = first + count
        while first < end and first not in unsent:
            first += 1
        last = first
        while last < end and last in unsent:
            unsent.discard(last)
            last += 1
        if first == last:
            return None
        if any(page in unsent for page in range(last, end)):
            self.urgent.append((pid, last, end - last))
        self.on_its_way += last - first
        return first, last - first
