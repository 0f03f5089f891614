"""Memory that crosses before the freeze or after the commit: two agents, an engine that is not real."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from quicferry.errors import MigrationError
from quicferry.migration.memory.page_messages import GotPages, PageRun, PagesDone, ToPageSource, WantAll
from quicferry.migration.order import MoveOrder
from tests.migration_support import FakeEngine, Injected, World, world


class MemoryEngine(FakeEngine):
    """Copies a part ahead, and leaves a part at the source."""

    ahead = b""
    error: str | None = None
    done: asyncio.Event

    async def copy_ahead(self, order: MoveOrder) -> AsyncIterator[bytes]:
        for number in range(3):
            await self._phase(f"round {number}")
            assert order.source in self.service.serves
            yield bytes([number]) * 300_000

    async def accept_ahead(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> None:
        type(self).ahead = b"".join([chunk async for chunk in chunks])
        await self._phase("accepted")

    async def restore(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> dict[str, Any]:
        answer = await super().restore(order, chunks)
        self.fetching = asyncio.create_task(self._fetch(order))
        return answer

    async def _fetch(self, order: MoveOrder) -> None:
        assert self.context.open_pages is not None
        call = self.context.open_pages(order.source, 5.0, False)
        await call.write(WantAll(epoch=order.epoch, runs=[(7, 16, 2)]))
        run = await call.read()
        assert run.data == b"page" * 2
        await call.write(GotPages(run.count))
        await call.write(PagesDone(error=self.error))
        with pytest.raises(MigrationError):
            await call.read()

    async def serve_pages(
        self, epoch: int, requests: AsyncIterator[ToPageSource], send: Callable[[PageRun], Awaitable[None]]
    ) -> None:
        async for request in requests:
            match request:
                case WantAll():
                    await send(PageRun(pid=7, first=16, count=2, data=b"page" * 2, sha256=b""))
                case PagesDone():
                    type(self).error = request.error
                    self.done.set()
                    return
                case _:
                    await self._phase("got")

    async def drain_source(self, order: MoveOrder) -> dict[str, Any]:
        await self._phase("drain")
        await self.done.wait()
        if self.error:
            raise MigrationError(self.error)
        return {"bytes": 8}


def go(
    directory: Path,
    story: Callable[[World], Awaitable[None]],
    monkeypatch: pytest.MonkeyPatch,
    error: str | None,
) -> None:
    monkeypatch.setattr("tests.migration_support.FakeEngine", MemoryEngine)
    monkeypatch.setattr(MemoryEngine, "error", error)

    async def run() -> None:
        MemoryEngine.done = asyncio.Event()
        async with world(directory) as made:
            await asyncio.wait_for(story(made), 90)
            assert not made.service.ever_two

    asyncio.run(run())


def test_memory_crosses_before_and_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(w: World) -> None:
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert (outcome.outcome, outcome.error) == ("moved", None)
        assert MemoryEngine.ahead == b"".join(bytes([number]) * 300_000 for number in range(3))
        log = w.service.log
        assert log.index("accepted") < log.index("Prepare") < log.index("checkpoint"), "all before the notice"
        assert log.index("drain") < log.index("give_up_source")
        details = {event.name: event.detail for event in w.events}
        assert details["migration.precopy.complete"]["bytes"] == 900_000
        assert details["migration.pages.complete"]["bytes"] == 8

    go(tmp_path, story, monkeypatch, None)


def test_a_round_that_fails_leaves_the_server_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(w: World) -> None:
        def trouble(now: str) -> None:
            if now == where:
                raise Injected(f"no {now}")

        for epoch, where in enumerate(("round 1", "accepted"), start=1):
            w.trouble = trouble
            outcome = await w.agents["edge-1"].source.move(w.order(epoch))
            assert (outcome.outcome, outcome.serves_at) == ("stayed", "edge-1")
            assert f"no {where}" in (outcome.error or "")
            assert "checkpoint" not in w.service.log

    go(tmp_path, story, monkeypatch, None)


def test_a_destination_that_cannot_have_all_memory_is_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(w: World) -> None:
        outcome = await w.agents["edge-1"].source.move(w.order())
        assert (outcome.outcome, outcome.serves_at) == ("lost", None)
        assert "no memory left" in (outcome.error or "") and "is lost" in (outcome.error or "")
        assert "resume_source" not in w.service.log, "what clients have seen since cannot be taken back"
        names = [event.name for event in w.events]
        assert "migration.pages.failed" in names

    go(tmp_path, story, monkeypatch, "no memory left")
