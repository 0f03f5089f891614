"""The destination's end of lazy pages: fetches missing memory and has it put in place.

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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import zstandard

from quicferry.errors import MigrationError
from quicferry.migration.memory.batches import small_first
from quicferry.migration.memory.page_messages import GotPages, PageCall, PageRun, PagesDone, WantAll, WantNow
from quicferry.migration.memory.page_set import PageSet
from quicferry.migration.memory.pagemap import NO_PAGES, PAGE_BYTES, Pages, joined
from quicferry.migration.memory.round_pages import LocalPages
from quicferry.migration.memory.uffd_events import Target, UffdEventLog
from quicferry.migration.memory.userfault import UserFaults

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


class PageSink:
    """The destination's end: fetches the missing pages and puts them into the restored processes.

    ``images`` is the image directory, ``missing`` says what the source has, ``local`` what is here
    already and how it is read, ``open_stream`` opens a stream to the source, by a detour if so told;
    ``adopted``, ``event_log`` and ``found`` are as for ``UserFaults``. ``ahead_pages``: so many come unasked
    while the server is brought up. It works from its making until ``close``.
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
        ahead_pages: int = WORKING_PAGES,
    ) -> None:
        self._epoch = epoch
        self._ahead_pages = ahead_pages
        self._on_demand = False  # the source has not been told yet that it may send unasked
        self._open_stream = open_stream
        self._detour = False
        self._missing = {pid: PageSet(pages) for pid, pages in missing.items()}
        self._order = [
            (pid, first, count) for pid, pages in missing.items() for first, count in small_first(pages)
        ]
        self._local = local
        unplaced = {
            pid: PageSet(joined(missing.get(pid, NO_PAGES), local[pid].pages if pid in local else NO_PAGES))
            for pid in {**missing, **local}
        }
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
        # if this agent died when the server serves, nobody would have these
        held = sum(len(pages.held) for pages in self._local.values())
        await self._faults.restored.wait()
        filled = 0
        for pid, first, data in runs:
            if filled >= max(WORKING_PAGES, held) and not self._serving.is_set():
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
                        self._missing[run.pid].remove_run(first, count)
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
        self._on_demand = on_demand = not self._ahead_pages and not self._serving.is_set()
        stream = self._stream = self._open_stream(self._detour)
        async with self._writing:
            await stream.write(WantAll(epoch=self._epoch, runs=wanted, on_demand=on_demand))
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
                expected = self._may_send
                await asyncio.wait([reading], timeout=SILENCE_S)
                if not reading.done() and expected and self._may_send:
                    raise MigrationError("the source is silent")
        finally:
            reading.cancel()
        return reading.result()

    @property
    def _may_send(self) -> bool:
        """Whether the source has something to send: what is waited for, or what it has room for."""
        return bool(self._asking) or not (self._untold or self._on_demand)

    async def _tell(self) -> None:
        """Tell the source how many pages have come, which lets it send more, unless that can wait."""
        enough = self._taken >= self._ahead_pages and self._waits < PATIENCE_PAGES
        news = self._untold or self._on_demand
        if news and self._stream and (self._serving.is_set() or not enough):
            told, self._untold, self._on_demand = self._untold, 0, False
            async with self._writing:
                await self._stream.write(GotPages(told))

    def _wanted(self) -> list[tuple[int, int, int]]:
        """The runs with missing pages, in the order in which a process is likely to need them."""
        return [
            (pid, first, count)
            for pid, first, count in self._order
            if self._missing[pid].has_any(first, count)
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
