"""Memory that stayed at the source: served there, fetched here, and put in place.

CRIU has a page server and a daemon that asks it for one range after another, over a connection
without protection. Here the agents' own stream (mutual TLS) brings all missing pages without being
asked, as fast as they are taken, and those first for which the process waits. Sending begins before
the restore, so that most pages are there before the process touches them.

A stream that breaks or falls silent is opened again, by the other of two ways, with a list of what is
still missing: the source keeps nothing in mind between two streams.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from quicferry.errors import MigrationError
from quicferry.migration.memory.page_messages import (
    GotPages,
    PageCall,
    PageRun,
    PagesDone,
    ToPageSource,
    WantAll,
    WantNow,
)
from quicferry.migration.memory.pagemap import PAGE_BYTES, Pages, decode, runs_of
from quicferry.migration.memory.userfault import Target, UffdEventLog, UserFaults

#: Sent at once without being asked: 512 KiB, at most 4 ms at 1 Gbit/s, which is what an urgent page waits
#: for. In one message, of however many short runs: each message costs about a millisecond at both ends.
BATCH_PAGES = 128
#: On its way and not yet taken: enough to fill 1 Gbit/s over the 3 ms of a round trip between agents.
WINDOW_PAGES = 512
#: Sent right after a page that is waited for: the block it is in, as its neighbours are likely to be next.
AROUND_PAGES = 64
#: After so many pages that the process had to wait for, what it works with is elsewhere than expected:
#: all may come.
PATIENCE_PAGES = 16
#: So much comes while the server is brought up, 24 MiB: about what the server of this tool works with
#: (5,800 pages without added memory). The rest would take the processor from those who bring it up, and
#: comes when it serves; what it waits for comes at any time.
WORKING_PAGES = 6144
REOPEN_S = 0.1
ASK_AGAIN_S = 0.5
#: A source that has something to send and does not in this time cannot be reached by this way.
SILENCE_S = 1.0

#: The answer to PagesDone.
FAREWELL = PageRun(pid=0, first=0, count=0, data=b"", sha256=b"")

#: Put in place by one call: 1 MiB, a tenth of a millisecond.
PLACED_PAGES = 256

Content = NDArray[np.uint8]  # of whole pages, one after another
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
    """What is still to be sent on one stream, and in what order."""

    wanted: WantAll
    urgent: list[tuple[int, int, int]] = field(default_factory=list)
    on_its_way: int = 0
    over: bool = False  # the destination has said so
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
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
        while self.on_its_way < WINDOW_PAGES:
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


class LocalPages:
    """The memory of a process as rounds left it here: incremental images, of which the newest counts.

    The images are mapped until ``close``.
    """

    def __init__(self, rounds: Sequence[Path], pid: int, pages: Pages) -> None:
        """``rounds``: the image directories, the oldest first; ``pages``: the pages wanted of them."""
        self.pages = pages
        self._images: list[tuple[Pages, NDArray[np.uint8]]] = []
        for directory in reversed(rounds):
            pagemap = decode((directory / f"pagemap-{pid}.img").read_bytes())
            if len(pagemap.present):
                shape = (len(pagemap.present), PAGE_BYTES)
                file = directory / f"pages-{pagemap.pages_id}.img"
                self._images.append((pagemap.present, np.memmap(file, np.uint8, "r", shape=shape)))

    def page(self, number: int) -> Content:
        """The content of one page. Raises ``MigrationError`` if no round has it."""
        for pages, data in self._images:
            row = int(np.searchsorted(pages, number))
            if row < len(pages) and pages[row] == number:
                content: Content = data[row]
                return content
        raise MigrationError(f"no round has page {number:#x}")

    def runs(self) -> list[tuple[int, Content]]:
        """All wanted pages as (first, contents of neighbours), in the order in which they may be needed.

        What came last goes first, as it was written last; of the oldest image, short stretches go before
        long ones. Contents are those of the files, nothing is copied. Raises ``MigrationError`` if no round
        has a page.
        """
        found: list[tuple[int, Content]] = []
        left = self.pages
        for number, (pages, data) in enumerate(self._images, 1):
            here = np.intersect1d(left, pages, assume_unique=True)
            left = np.setdiff1d(left, here, assume_unique=True)
            oldest = number == len(self._images)
            for first, count in small_first(here, PLACED_PAGES) if oldest else batches_of(here, PLACED_PAGES):
                row = int(np.searchsorted(pages, first))
                found.append((first, data[row : row + count].reshape(-1)))
        if len(left):
            raise MigrationError(f"no round has {len(left)} pages from {left[0]:#x} on")
        return found

    def close(self) -> None:
        """Let go of the images: each is a descriptor, and one that was removed keeps its room until then."""
        self._images.clear()


class PageSink:
    """The destination's end: fetches the missing pages and puts them into the restored processes.

    ``images`` is the image directory, ``missing`` says what the source has, ``local`` what is here
    already and how it is read, ``open_stream`` opens a stream to the source, by a detour if so told;
    ``adopted``, ``event_log`` and ``found`` are as for ``UserFaults``. It works from its making until
    ``close``.
    """

    def __init__(
        self,
        epoch: int,
        images: Path,
        missing: Mapping[int, Pages],
        local: Mapping[int, LocalPages],
        open_stream: Callable[[bool], PageCall],
        adopted: Callable[[int, int], None],
        event_log: UffdEventLog,
        found: Sequence[Target] | None = None,
    ) -> None:
        self._epoch = epoch
        self._open_stream = open_stream
        self._detour = False
        self._missing = {pid: set(pages.tolist()) for pid, pages in missing.items()}
        self._order = [
            (pid, first, count) for pid, pages in missing.items() for first, count in small_first(pages)
        ]
        self._local = local
        unplaced = {pid: set(pages) for pid, pages in self._missing.items()}
        for pid, pages in local.items():
            unplaced.setdefault(pid, set()).update(pages.pages.tolist())
        self._faults = UserFaults(images, unplaced, self._want, adopted, event_log, found)
        self._stream: PageCall | None = None
        self._asking: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Lock()  # gRPC takes one message at a time and may lose the other
        self._serving = asyncio.Event()
        self._worked = asyncio.Event()
        self._taken = 0  # pages that have come from the source
        self._waits = 0  # pages that a process waited for
        self._untold = 0  # of these, those that the source does not know of
        self._fetching = asyncio.create_task(self._fetch())
        self._filling = asyncio.create_task(self._fill())

    async def worked(self) -> None:
        """Wait until the pages that are here and that the process is likely to need are in place."""
        working = asyncio.create_task(self._worked.wait())
        await asyncio.wait([working, self._filling], return_when=asyncio.FIRST_COMPLETED)
        working.cancel()
        if not self._worked.is_set():
            await self._filling

    async def serving(self) -> None:
        """Let all other pages come, too: the server serves."""
        self._serving.set()
        with suppress(MigrationError):  # a new stream begins with nothing on its way
            await self._tell()

    async def placed(self) -> None:
        """Wait until all memory is in place. Raises what went wrong meanwhile."""
        working = [self._fetching, self._filling, self._faults.over]
        await asyncio.wait(working, return_when=asyncio.FIRST_EXCEPTION)
        for task in working:
            if task.done():
                task.result()
        await self._faults.over

    def _want(self, pid: int, page: int) -> None:
        """Get a page for which a process stands still: from the rounds here, else from the source."""
        if page not in self._missing.get(pid, ()) and pid in self._local:
            data = self._local[pid].page(page)
            asyncio.get_running_loop().call_soon(self._faults.arrived, pid, page, data)
            return
        task = asyncio.get_running_loop().create_task(self._ask(pid, page))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, pid: int, page: int) -> None:
        """Ask the source for a page until it has come: the kernel reports a fault only once."""
        self._waits += 1
        while page in self._missing.get(pid, ()):
            if self._stream is not None:
                with suppress(MigrationError):  # a new stream will be asked
                    async with self._writing:
                        await self._stream.write(WantNow(pid=pid, first=page, count=1))
                    await self._tell()
            await asyncio.sleep(ASK_AGAIN_S)

    async def _fill(self) -> None:
        """Put pages of the rounds in place, as soon as the process has its mappings."""
        runs = [(pid, *run) for pid, pages in self._local.items() for run in pages.runs()]
        await self._faults.restored.wait()
        filled = 0
        for pid, first, data in runs:
            if filled >= WORKING_PAGES and not self._serving.is_set():
                self._worked.set()
                await self._serving.wait()
            self._faults.arrived(pid, first, data)
            filled += len(data) // PAGE_BYTES
            await asyncio.sleep(0)  # what the process waits for goes before
        self._worked.set()

    async def _fetch(self) -> None:
        """Read streams of pages until none is missing."""
        while any(self._missing.values()):
            try:
                stream = await self._begin(self._wanted())
                while any(self._missing.values()):
                    run = await self._next(stream)
                    data = await asyncio.to_thread(self._unpack, run)
                    start = 0
                    for first, count in run.runs:
                        self._faults.arrived(run.pid, first, data[start : start + count * PAGE_BYTES])
                        self._missing[run.pid].difference_update(range(first, first + count))
                        start += count * PAGE_BYTES
                    self._taken += run.pages
                    self._untold += run.pages
                    await self._tell()
                return
            except MigrationError:
                await self._turn()

    async def _begin(self, wanted: list[tuple[int, int, int]]) -> PageCall:
        """Open a stream and say what is wanted."""
        self._untold = 0
        stream = self._stream = self._open_stream(self._detour)
        await stream.write(WantAll(epoch=self._epoch, runs=wanted))
        return stream

    async def _turn(self) -> None:
        """Give a stream up that has failed; the next one takes the other way."""
        if self._stream is not None:
            self._stream.cancel()
        self._stream = None
        self._detour = not self._detour
        await asyncio.sleep(REOPEN_S)

    async def _next(self, stream: PageCall) -> PageRun:
        """The next message. Raises ``MigrationError`` also when the source is silent although it may send."""
        reading = asyncio.ensure_future(stream.read())
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=SILENCE_S)
                if not reading.done() and not self._untold:
                    raise MigrationError("the source is silent")
        finally:
            reading.cancel()
        return reading.result()

    async def _tell(self) -> None:
        """Tell the source how many pages have come, which lets it send more, unless that can wait."""
        enough = self._taken >= WORKING_PAGES and self._waits < PATIENCE_PAGES
        if self._untold and self._stream and (self._serving.is_set() or not enough):
            told, self._untold = self._untold, 0
            async with self._writing:
                await self._stream.write(GotPages(told))

    def _wanted(self) -> list[tuple[int, int, int]]:
        """The runs with missing pages, in the order in which a process is likely to need them."""
        return [
            (pid, first, count)
            for pid, first, count in self._order
            if not self._missing[pid].isdisjoint(range(first, first + count))
        ]

    def _unpack(self, run: PageRun) -> bytes:
        """Decompress and check a message. Raises ``MigrationError``."""
        size = run.pages * PAGE_BYTES
        data = run.data
        if run.packed:
            try:
                data = zstandard.ZstdDecompressor().decompress(data, max_output_size=size)
            except zstandard.ZstdError as error:
                raise MigrationError(f"pages were damaged on their way: {error}") from error
        if len(data) != size or hashlib.sha256(data).digest() != run.sha256:
            raise MigrationError(f"{run.pages} pages were damaged on their way")
        if run.pid not in self._missing:
            raise MigrationError(f"pages of an unknown process {run.pid} came")
        return data

    async def finish(self, error: str | None = None) -> None:
        """Tell the source that it is no longer needed, or that all is lost."""
        while True:
            try:
                stream = self._stream or await self._begin([])
                self._untold = 0
                await stream.write(PagesDone(error=error))
                while (await self._next(stream)).count:
                    pass  # sent before the source heard of it
                return
            except MigrationError:
                await self._turn()

    async def close(self) -> None:
        """Stop. A process that lacks memory must have been killed before: it would read zeros."""
        self._fetching.cancel()
        self._filling.cancel()
        for task in self._asking:
            task.cancel()
        await asyncio.wait([self._fetching, self._filling, *self._asking])
        await self._faults.close()
        for pages in self._local.values():
            pages.close()
        if self._stream is not None:
            self._stream.cancel()


def small_first(pages: Pages, batch_pages: int = BATCH_PAGES) -> list[tuple[int, int]]:
    """Sorted pages as runs of at most a batch, those of short stretches of memory before those of long ones.

    A process works in many small stretches (stacks, tables, arenas of small objects); a long one is bulk
    data as a rule. Where that is wrong, what the process waits for corrects it.
    """
    return _cut(sorted(runs_of(pages), key=lambda run: (run[1], run[0])), batch_pages)


def batches_of(pages: Pages, batch_pages: int) -> list[tuple[int, int]]:
    """Sorted pages as runs of at most a batch, in their order."""
    return _cut(runs_of(pages), batch_pages)


def _cut(runs: Iterable[tuple[int, int]], batch_pages: int) -> list[tuple[int, int]]:
    """Cut runs into batches."""
    return [
        (start, min(batch_pages, first + count - start))
        for first, count in runs
        for start in range(first, first + count, batch_pages)
    ]
