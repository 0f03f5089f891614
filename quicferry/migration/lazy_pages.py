"""Memory that stayed at the source: served there, fetched here, and given to CRIU as it asks for it.

CRIU's daemon for lazy pages asks a page server, over a socket without protection, for one range
after another and in the order in which the process happens to touch its memory. Here the daemon
asks its own agent, over a socket pair. The agent has a stream to the source's agent (mutual TLS),
which sends all missing pages without being asked, as fast as they are taken, and those first for
which the process waits. What has arrived when CRIU asks costs no round trip: that is the better
part of the pages, since sending begins before the restore.

A stream that breaks is opened again, with a list of what is still missing: the source keeps nothing
in mind between two streams.

CRIU's side of it: ``criu/page-xfer.c`` (``struct page_server_iov``), read from version 3.17 to 4.2.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

import zstandard

from quicferry.errors import MigrationError
from quicferry.migration.engines.base import (
    GotPages,
    PageCall,
    PageRun,
    PagesDone,
    ToPageSource,
    WantAll,
    WantNow,
)
from quicferry.migration.pagemap import PAGE_BYTES, Flag, Pages

#: Sent at once without being asked: 256 KiB, 2 ms at 1 Gbit/s, which is what an urgent page waits for.
BATCH_PAGES = 64
#: On its way and not yet taken: enough to fill 1 Gbit/s over the 3 ms of a round trip between agents.
WINDOW_PAGES = 192
#: Sent along with a page that is waited for: its neighbours are likely to be next.
AROUND_PAGES = 16
REOPEN_S = 0.1

PS_GET = 7  # PS_IOV_GET
PS_ADD = 6  # PS_IOV_ADD_F
PS_CLOSE = (0x1023, 0x1024)  # PS_IOV_CLOSE, PS_IOV_FORCE_CLOSE
COMMAND_BITS = 16  # the flags are above
#: command, number of pages, address, PID. Until CRIU 4.1 the number had 32 bits.
OLD_REQUEST = struct.Struct("<IIQQ")
NEW_REQUEST = struct.Struct("<I4xQQQ")
#: No process has memory below this address, and no request is for so many pages.
LEAST_ADDRESS = 1 << 16

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

    async def done(self) -> None:
        """Return when the destination has everything. Raises ``MigrationError`` if it never will."""
        await asyncio.shield(self._done)

    def abort(self) -> None:
        """Nobody will ask any more."""
        self._done.cancel()

    async def serve(
        self, requests: AsyncIterator[ToPageSource], send: Callable[[PageRun], Awaitable[None]]
    ) -> None:
        """Answer one stream, which begins with ``WantAll``."""
        wanted = await anext(requests, None)
        if not isinstance(wanted, WantAll):
            raise MigrationError("a stream for pages begins with what is wanted")
        stream = _Stream(wanted)
        listening = asyncio.create_task(self._listen(stream, requests))
        try:
            while not listening.done():
                if stream.over:
                    await send(FAREWELL)
                    return
                run = stream.next_run()
                if run is None:
                    stream.news.clear()
                    waiting = asyncio.ensure_future(stream.news.wait())
                    await asyncio.wait([waiting, listening], return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
                    continue
                answer = await asyncio.to_thread(self._read, *run)
                self.sent_pages += answer.count
                self.sent_bytes += len(answer.data)
                await send(answer)
            await listening
        finally:
            listening.cancel()
            await asyncio.wait([listening])

    async def _listen(self, stream: _Stream, requests: AsyncIterator[ToPageSource]) -> None:
        async for request in requests:
            match request:
                case GotPages():
                    stream.on_its_way -= request.count
                case WantNow():
                    self.waited_for += 1
                    stream.urgent.append((request.pid, request.first, request.count))
                case PagesDone():
                    self._finish(request.error)
                    stream.over = True
                case WantAll():
                    raise MigrationError("a stream for pages says twice what is wanted")
            stream.news.set()

    def _finish(self, error: str | None) -> None:
        if self._done.done():
            return
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(MigrationError(error))

    def _read(self, pid: int, first: int, count: int) -> PageRun:
        data = self._reader(pid, first, count)
        packed = data if self._level is None else zstandard.ZstdCompressor(level=self._level).compress(data)
        return PageRun(pid=pid, first=first, count=count, data=packed, sha256=hashlib.sha256(data).digest())


@dataclass
class _Stream:
    """What one stream still has to send, and in what order."""

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

    def _batches(self) -> Iterator[tuple[int, int, int]]:
        for pid, first, count in self.wanted.runs:
            for start in range(first, first + count, BATCH_PAGES):
                yield pid, start, min(BATCH_PAGES, first + count - start)

    def next_run(self) -> tuple[int, int, int] | None:
        """What to send now; None when nothing is left, or too much is on its way."""
        while self.urgent:
            pid, first, count = self.urgent.pop(0)
            if run := self._take(pid, first, max(count, AROUND_PAGES)):
                return run
        while self.on_its_way < WINDOW_PAGES:
            batch = next(self._order, None)
            if batch is None:
                return None
            if run := self._take(*batch):
                return run
        return None

    def _take(self, pid: int, first: int, count: int) -> tuple[int, int, int] | None:
        """The first unsent pages of a range that are neighbours; what is left of it is put back."""
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
        return pid, first, last - first


class PageSink:
    """The destination's end: fetches the missing pages and answers CRIU's daemon.

    ``open_stream`` opens a stream to the source. ``await run(socket)`` in a task; ``close`` ends it.
    """

    def __init__(
        self, epoch: int, missing: Mapping[int, Pages], compression: str, open_stream: Callable[[], PageCall]
    ) -> None:
        self._epoch = epoch
        self._packed = compression != "none"
        self._open_stream = open_stream
        self._missing = {pid: set(pages.tolist()) for pid, pages in missing.items()}
        self._here: dict[tuple[int, int], bytes | memoryview] = {}
        self._arrived = asyncio.Event()
        self._stream: PageCall | None = None
        self._fetching = asyncio.create_task(self._fetch())

    async def answer(self, requests: socket.socket) -> None:
        """Answer CRIU's requests until it closes. Raises ``MigrationError`` for what is no request."""
        requests.setblocking(False)
        layout: struct.Struct | None = None
        while (raw := await _receive(requests, OLD_REQUEST.size)) is not None:
            if layout is None:
                layout = _layout(raw)
            if layout.size > len(raw):
                raw += await _receive(requests, layout.size - len(raw)) or b""
            if not await self._answer_one(requests, layout, raw):
                # the status that CRIU waits for
                await asyncio.get_running_loop().sock_sendall(requests, bytes(4))
                return

    async def _answer_one(self, requests: socket.socket, layout: struct.Struct, raw: bytes) -> bool:
        command, count, address, pid = layout.unpack(raw)
        command &= (1 << COMMAND_BITS) - 1
        if command in PS_CLOSE:
            return False
        if command != PS_GET:
            raise MigrationError(f"CRIU asks its page server for something unknown: {command}")
        first = address // PAGE_BYTES
        pages = await self._pages(pid, first, count)
        header = layout.pack(PS_ADD | int(Flag.PRESENT) << COMMAND_BITS, count, address, pid)
        await asyncio.get_running_loop().sock_sendall(requests, b"".join([header, *pages]))
        return True

    async def _pages(self, pid: int, first: int, count: int) -> list[bytes | memoryview]:
        keys = [(pid, page) for page in range(first, first + count)]
        missing = [page for _, page in keys if page in self._missing.get(pid, ())]
        if missing:
            for start, length in _neighbours(missing):
                await self._want_now(pid, start, length)
            while any(page in self._missing[pid] for page in missing):
                self._arrived.clear()
                waiting = asyncio.ensure_future(self._arrived.wait())
                await asyncio.wait([waiting, self._fetching], return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if self._fetching.done():
                    await self._fetching
        if not all(key in self._here for key in keys):
            raise MigrationError(f"CRIU asks for a page that no image lists, at {first * PAGE_BYTES:#x}")
        return [self._here.pop(key) for key in keys]

    async def _want_now(self, pid: int, first: int, count: int) -> None:
        if self._stream is not None:
            with suppress(MigrationError):  # a new stream begins with all that is missing
                await self._stream.write(WantNow(pid=pid, first=first, count=count))

    async def _fetch(self) -> None:
        """Read streams until all is here."""
        while True:
            try:
                self._stream = self._open_stream()
                await self._stream.write(WantAll(epoch=self._epoch, runs=self._wanted()))
                while any(self._missing.values()):
                    await self._take_in(await self._stream.read(), self._stream)
                return
            except MigrationError:
                self._stream = None
                await asyncio.sleep(REOPEN_S)

    def _wanted(self) -> list[tuple[int, int, int]]:
        """All that is missing. Small pieces first: a process works in them and has its data in large ones."""
        runs = [
            (pid, first, count)
            for pid, pages in self._missing.items()
            for first, count in _neighbours(sorted(pages))
        ]
        return sorted(runs, key=lambda run: (run[2], run[1]))

    async def _take_in(self, run: PageRun, stream: PageCall) -> None:
        data = run.data
        if self._packed:
            try:
                data = zstandard.ZstdDecompressor().decompress(data, max_output_size=run.count * PAGE_BYTES)
            except zstandard.ZstdError as error:
                raise MigrationError(f"pages were damaged on their way: {error}") from error
        if len(data) != run.count * PAGE_BYTES or hashlib.sha256(data).digest() != run.sha256:
            raise MigrationError(f"{run.count} pages were damaged on their way")
        view = memoryview(data)
        missing = self._missing.get(run.pid, set())
        for number in range(run.count):
            page = run.first + number
            if page in missing:
                missing.discard(page)
                self._here[run.pid, page] = view[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
        self._arrived.set()
        await stream.write(GotPages(run.count))

    async def finish(self, error: str | None = None) -> None:
        """Tell the source that it is no longer needed, or that all is lost."""
        while True:
            try:
                if self._stream is None:
                    self._stream = self._open_stream()
                    await self._stream.write(WantAll(epoch=self._epoch, runs=[]))
                await self._stream.write(PagesDone(error=error))
                while (await self._stream.read()).count:
                    pass  # sent before the source heard of it
                return
            except MigrationError:
                self._stream = None
                await asyncio.sleep(REOPEN_S)

    async def close(self) -> None:
        """End it."""
        self._fetching.cancel()
        await asyncio.wait([self._fetching])
        if self._stream is not None:
            self._stream.cancel()


def _neighbours(pages: list[int]) -> list[tuple[int, int]]:
    """The runs of a sorted list of pages."""
    runs: list[tuple[int, int]] = []
    for page in pages:
        if runs and runs[-1][0] + runs[-1][1] == page:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((page, 1))
    return runs


def _layout(raw: bytes) -> struct.Struct:
    """Which of the two forms a first request has: the second word is a number, or an address."""
    (second,) = struct.unpack_from("<Q", raw, 8)
    return NEW_REQUEST if second < LEAST_ADDRESS else OLD_REQUEST


async def _receive(source: socket.socket, size: int) -> bytes | None:
    """Exactly so many bytes; None at the end."""
    loop = asyncio.get_running_loop()
    parts = bytearray()
    while len(parts) < size:
        got = await loop.sock_recv(source, size - len(parts))
        if not got:
            return None
        parts += got
    return bytes(parts)
