"""Rounds by CRIU's own pre-dumps, with a CRIU that writes what it is told: few kernels track writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from quicferry.events import Event, EventLog
from quicferry.migration.criu.image_stream import Unpacker
from quicferry.migration.criu.packing import unpack
from quicferry.migration.criu.stats import DumpStats
from quicferry.migration.engines.criu.native_copy import NativePreCopyEngine
from quicferry.migration.engines.criu.rounds import FEW_PAGES
from quicferry.migration.order import MoveOrder
from quicferry.model import Endpoint
from quicferry.strategies import Strategy

PID = 11_000
ORDER = MoveOrder(
    epoch=4,
    strategy=Strategy.POOL,
    engine="criu-pre-copy",
    source="edge-1",
    destination="edge-2",
    service=Endpoint("10.0.2.2", 4433),
    memory_by="criu",
)


class FakeCriu:
    """Dumps as many pages as the next number says, into images that say which round it was."""

    def __init__(self, root: Path, pages: list[int]) -> None:
        self.root = root
        self.left = list(pages)
        self.asked: list[tuple[str, str | None]] = []

    async def pre_dump(self, pid: int, images: Path, previous: str | None, *, timeout_s: float) -> DumpStats:
        assert (pid, timeout_s) == (PID, ORDER.deadlines.precopy_s)
        self.asked.append((images.name, previous))
        directory = self.root / images.name
        directory.mkdir()
        pages = self.left.pop(0)
        (directory / "pages-1.img").write_bytes(images.name.encode() * pages)
        (directory / "stats-dump").write_bytes(b"not to be sent")
        return DumpStats(
            freezing_time_us=0,
            frozen_time_us=1500,
            memdump_time_us=0,
            memwrite_time_us=0,
            pages_scanned=9000,
            pages_written=pages,
        )


def test_rounds_follow_each_other_until_a_rule_ends_them(tmp_path: Path) -> None:
    heard: list[Event] = []
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    criu = FakeCriu(here, [5000, 1000, FEW_PAGES])

    class Engine(NativePreCopyEngine):
        def __init__(self) -> None:
            self._context = SimpleNamespace(edge="edge-1", events=EventLog("edge-1", sink=heard.append))  # type: ignore[assignment]
            self._container = SimpleNamespace(service_pid=PID)  # type: ignore[assignment]
            self._images = Path("/run/state/criu")
            self._rounds = 0
            self._dumping = None

        @property
        def _outside(self) -> Path:
            return here

        def _with_memory(self) -> Any:
            return criu

    async def chunks() -> AsyncIterator[bytes]:
        async for chunk in Engine().copy_ahead(ORDER):
            yield chunk

    unpacker = Unpacker(there, tmp_path)
    asyncio.run(unpack(ORDER.compression, unpacker, chunks()))
    manifest = unpacker.manifest()
    assert (manifest.epoch, manifest.pid, manifest.rounds) == (4, PID, 3)
    assert criu.asked == [("round-0", None), ("round-1", "../round-0"), ("round-2", "../round-1")]
    for number, pages in enumerate([5000, 1000, FEW_PAGES]):
        directory = there / f"round-{number}"
        assert (directory / "pages-1.img").read_bytes() == f"round-{number}".encode() * pages
        assert not (directory / "stats-dump").exists()
    assert [str((there / f"round-{number}" / "parent").readlink()) for number in (1, 2)] == [
        "../round-0",
        "../round-1",
    ]
    told = [event.detail for event in heard if event.name == "migration.precopy.round.complete"]
    assert [detail["round"] for detail in told] == [1, 2, 3]
    assert [detail["pages"] for detail in told] == [5000, 1000, FEW_PAGES]
    assert [detail["stop"] for detail in told] == [None, None, "few-pages"]
    assert {(detail["of_pages"], detail["stood_still_ms"]) for detail in told} == {(9000, 1.5)}
