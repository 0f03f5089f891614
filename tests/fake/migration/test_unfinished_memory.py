"""Memory that follows when agents die and links are cut: trails, silent streams, farewells."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from quicferry.errors import MigrationError
from quicferry.migration.agent.failpoints import DamagingSender
from quicferry.migration.criu.image_stream import Unpacker
from quicferry.migration.engines.criu import unfinished
from quicferry.migration.engines.criu.rounds import round_records
from quicferry.migration.engines.criu.unfinished import Unfinished
from quicferry.migration.memory import batches, page_sink, page_source
from quicferry.migration.memory.page_messages import (
    GotPages,
    PageRun,
    PagesDone,
    ToPageSource,
    WantAll,
    WantNow,
)
from quicferry.migration.memory.page_sink import PageSink
from quicferry.migration.memory.page_source import PageSource, say_farewell
from quicferry.migration.memory.pagemap import PAGE_BYTES
from quicferry.migration.memory.process_memory import Reading, Snapshot
from quicferry.migration.memory.round_pages import LocalPages
from quicferry.migration.memory.uffd_events import (
    FORK,
    MESSAGE,
    PAGEFAULT,
    REMAP,
    REMOVE,
    UNMAP,
    Target,
    UffdEventLog,
)


def at(page: int) -> int:
    return page * PAGE_BYTES


def messages(*given: tuple[int, int, int, int]) -> bytes:
    return b"".join(MESSAGE.pack(*each) for each in given)


# --- what a successor knows -------------------------------------------------------------------


def test_a_successor_knows_what_was_given_up_and_moved(tmp_path: Path) -> None:
    event_log = UffdEventLog(tmp_path / "event_log")
    event_log.reading()
    event_log.heard(7, messages((PAGEFAULT, 0, at(10), 0), (REMOVE, at(10), at(12), 0)))
    event_log.reading()
    event_log.heard(7, messages((REMAP, at(20), at(120), 3 * PAGE_BYTES), (UNMAP, at(121), at(122), 0)))
    event_log.reading()
    event_log.heard(7, b"")
    # the agent is gone; its successor opens the same file
    target = Target(-1, 7, {10, 11, 12, 20, 21, 22, 30, 31})
    target.retrace(UffdEventLog(tmp_path / "event_log"), there={31, 122})
    # 10 and 11 given up, 21 given up where it was moved to, 22 and 31 are there already
    assert target.unplaced == {12, 20, 30}
    assert target.where(20) == 120
    other = Target(-1, 8, {10})
    other.retrace(UffdEventLog(tmp_path / "event_log"), there=set())
    assert other.unplaced == {10}, "each process has its own event_log"


@pytest.mark.parametrize(
    "happens",
    [
        lambda event_log: event_log.reading(),  # and died
        lambda event_log: event_log.heard(7, messages((FORK, 5, 0, 0))),
        lambda event_log: [event_log.heard(7, messages((REMOVE, at(1), at(2), 0))) for _ in range(9000)],
    ],
    ids=["died while reading", "forked", "full"],
)
def test_a_trail_that_lacks_something_is_not_followed(
    tmp_path: Path, happens: Callable[[UffdEventLog], object]
) -> None:
    event_log = UffdEventLog(tmp_path / "event_log")
    happens(event_log)
    with pytest.raises(MigrationError, match="not written down"):
        Target(-1, 7, {1}).retrace(UffdEventLog(tmp_path / "event_log"), there=set())


def test_the_record_of_what_is_missing(tmp_path: Path) -> None:
    assert unfinished.read(tmp_path) is None
    pages = {7: np.array([1, 2, 3, 9], np.int64)}
    record = Unfinished(epoch=3, pid=7, rounds=2, missing=unfinished.runs_by_pid(pages), local={})
    record.write(tmp_path)
    found = unfinished.read(tmp_path)
    assert found == record
    assert unfinished.pages_by_pid(record.missing)[7].tolist() == [1, 2, 3, 9]
    (tmp_path / unfinished.FILE).write_bytes(b'{"epoch": 3')
    assert unfinished.read(tmp_path) is None


# --- streams ----------------------------------------------------------------------------------


class Stream:
    """A stream of pages; a silent one takes everything in and says nothing."""

    def __init__(self, *, silent: bool) -> None:
        self.silent = silent
        self.cancelled = False
        self._answers: asyncio.Queue[PageRun] = asyncio.Queue()

    async def write(self, message: ToPageSource) -> None:
        if self.silent:
            return
        if isinstance(message, WantAll):
            for pid, first, count in message.runs:
                data = bytes(count * PAGE_BYTES)
                digest = hashlib.sha256(data).digest()
                await self._answers.put(PageRun(pid=pid, first=first, count=count, data=data, sha256=digest))
        elif isinstance(message, PagesDone):
            await self._answers.put(page_source.FAREWELL)

    def answer(self, run: PageRun) -> None:
        self._answers.put_nowait(run)

    async def read(self) -> PageRun:
        return await self._answers.get()

    def cancel(self) -> None:
        self.cancelled = True


def test_a_silent_way_is_left_for_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_sink, "SILENCE_S", 0.05)
    monkeypatch.setattr(page_sink, "REOPEN_S", 0.01)
    opened: list[tuple[bool, Stream]] = []

    def open_stream(detour: bool) -> Stream:
        opened.append((detour, Stream(silent=not detour)))
        return opened[-1][1]

    async def play() -> None:
        sink = PageSink(
            1,
            tmp_path,
            {7: np.arange(100, 300)},
            {},
            open_stream,
            lambda pid, descriptor: None,
            UffdEventLog(tmp_path / "event_log"),
            [],
        )
        await sink.serving()
        await asyncio.wait_for(sink.placed(), 30)
        await asyncio.wait_for(sink.finish(), 30)
        await sink.close()

    asyncio.run(play())
    assert [detour for detour, _ in opened] == [False, True]
    assert opened[0][1].cancelled


def test_images_of_rounds_are_let_go_when_all_is_in_place(tmp_path: Path) -> None:
    pages = np.arange(100, 164)
    unpacker = Unpacker(tmp_path, tmp_path)
    data = np.zeros((len(pages), PAGE_BYTES), np.uint8)
    for piece in round_records(0, 7, Reading(pages, Snapshot(pages, data))):
        unpacker.feed(piece)

    def held() -> list[str]:
        open_files = [
            str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()
        ]
        return [name for name in open_files if str(tmp_path) in name]

    async def play() -> tuple[int, int]:
        sink = PageSink(
            1,
            tmp_path,
            {},
            {7: LocalPages([tmp_path / "round-0"], 7, pages)},
            lambda detour: Stream(silent=True),
            lambda pid, descriptor: None,
            UffdEventLog(tmp_path / "event_log"),
            [],
        )
        await sink.serving()
        await asyncio.wait_for(sink.placed(), 30)
        before = len(held())
        await sink.close()
        return before, len(held())

    # not when the garbage collector comes by: engines keep a sink until the next move
    assert asyncio.run(play()) == (2, 0)


async def of(*requests: ToPageSource) -> AsyncIterator[ToPageSource]:
    """A stream that stays open."""
    for request in requests:
        yield request
    await asyncio.Event().wait()


def test_the_farewell_waits_until_the_memory_is_given_up() -> None:
    async def play() -> list[int]:
        sent: list[PageRun] = []

        async def send(run: PageRun) -> None:
            sent.append(run)

        source = PageSource(lambda pid, first, count: bytes(count * PAGE_BYTES), "none")
        serving = asyncio.create_task(source.serve(of(WantAll(epoch=1, runs=[]), PagesDone()), send))
        await asyncio.wait_for(source.done(), 30)
        await asyncio.sleep(0.02)
        before = len(sent)
        source.abort()
        await asyncio.wait_for(serving, 30)
        # an agent that was started after that has nothing left, but an answer
        assert await say_farewell(of(WantAll(epoch=1, runs=[]), PagesDone()), send)
        assert not await say_farewell(of(WantAll(epoch=1, runs=[(7, 1, 1)])), send)
        return [before, len(sent)]

    assert asyncio.run(play()) == [0, 2]


def contents(first: int, count: int) -> bytes:
    return b"".join(page.to_bytes(2, "big") * (PAGE_BYTES // 2) for page in range(first, first + count))


def test_short_runs_share_a_message_and_each_page_comes_once() -> None:
    # every second page, then a long run
    wanted = [*((7, page, 1) for page in range(0, 200, 2)), (7, 1000, 300)]

    async def play() -> list[PageRun]:
        sent: list[PageRun] = []
        heard: asyncio.Queue[ToPageSource] = asyncio.Queue()

        async def send(run: PageRun) -> None:
            sent.append(run)
            await heard.put(GotPages(run.pages) if run.pages else PagesDone())

        async def requests() -> AsyncIterator[ToPageSource]:
            yield WantAll(epoch=1, runs=wanted)
            while sum(run.pages for run in sent) < 400:
                yield await heard.get()
            yield PagesDone()
            await asyncio.Event().wait()

        source = PageSource(lambda pid, first, count: contents(first, count), "none")
        serving = asyncio.create_task(source.serve(requests(), send))
        await asyncio.wait_for(source.done(), 30)
        source.abort()
        await asyncio.wait_for(serving, 30)
        assert source.sent_pages == 400
        return sent[:-1]  # the last is the farewell

    sent = asyncio.run(play())
    assert len(sent) == 4
    found = [page for run in sent for first, count in run.runs for page in range(first, first + count)]
    assert sorted(found) == [*range(0, 200, 2), *range(1000, 1300)]
    for run in sent:
        assert run.pages <= batches.BATCH_PAGES
        assert run.data == b"".join(contents(*each) for each in run.runs)


def test_on_demand_nothing_is_sent_but_what_is_waited_for_until_the_window_is_opened() -> None:
    async def play() -> tuple[list[int], list[int]]:
        sent: list[int] = []
        more = asyncio.Event()
        heard: asyncio.Queue[ToPageSource] = asyncio.Queue()

        async def send(run: PageRun) -> None:
            sent.extend(page for first, count in run.runs for page in range(first, first + count))
            more.set()

        async def requests() -> AsyncIterator[ToPageSource]:
            while True:
                yield await heard.get()

        async def until(pages: int) -> None:
            while len(sent) < pages:
                more.clear()
                await more.wait()

        source = PageSource(lambda pid, first, count: contents(first, count), "none")
        serving = asyncio.create_task(source.serve(requests(), send))
        await heard.put(WantAll(epoch=1, runs=[(7, 0, 200)], on_demand=True))
        await heard.put(WantNow(pid=7, first=130, count=1))
        await asyncio.wait_for(until(64), 30)  # the page and the block that it lies in
        await asyncio.sleep(0.02)
        before = list(sent)
        await heard.put(GotPages(0))
        await asyncio.wait_for(until(200), 30)
        await heard.put(PagesDone())
        await asyncio.wait_for(source.done(), 30)
        source.abort()
        await asyncio.wait_for(serving, 30)
        return before, sent

    before, sent = asyncio.run(play())
    assert before[0] == 130
    assert sorted(before) == list(range(128, 192))
    assert sorted(sent) == list(range(200))


def test_what_shares_a_message_arrives_page_by_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrived: dict[int, bytes] = {}
    all_there = asyncio.Event()

    def take(self: object, pid: int, first: int, data: bytes) -> None:
        for number in range(len(data) // PAGE_BYTES):
            arrived[first + number] = data[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
        if len(arrived) == 3:
            all_there.set()

    monkeypatch.setattr(page_sink.UserFaults, "arrived", take)

    async def play() -> None:
        stream = Stream(silent=True)
        data = contents(3, 2) + contents(9, 1)
        stream.answer(
            PageRun(pid=7, first=3, count=2, data=data, sha256=hashlib.sha256(data).digest(), more=[(9, 1)])
        )
        sink = PageSink(
            1,
            tmp_path,
            {7: np.array([3, 4, 9])},
            {},
            lambda detour: stream,
            lambda pid, descriptor: None,
            UffdEventLog(tmp_path / "event_log"),
            [],
        )
        await all_there.wait()
        await sink.close()

    asyncio.run(asyncio.wait_for(play(), 30))
    assert arrived == {page: contents(page, 1) for page in (3, 4, 9)}


def test_one_run_of_pages_is_damaged() -> None:
    async def play() -> list[bytes]:
        sent: list[bytes] = []

        async def send(run: PageRun) -> None:
            sent.append(run.data)

        damaging = DamagingSender()
        for _ in range(2):  # two streams
            await damaging.around(send)(PageRun(pid=7, first=1, count=1, data=b"page", sha256=b""))
        return sent

    assert asyncio.run(play()) == [b"pafe", b"page"]
