"""The hand-off engine's copies ahead of the freeze: their files, their rounds, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock

import pytest

from quicferry.errors import MigrationError
from quicferry.events import EventLog
from quicferry.migration import control
from quicferry.migration.engines.base import INLINE_BYTES
from quicferry.migration.engines.handoff import HandoffEngine
from tests.migration_support import World


class Server:
    """What the engine's orders reach; ``rounds``: for each round, how many connections each file has."""

    def __init__(self, directory: Path, rounds: list[list[int]]) -> None:
        self.root = directory / "root"
        (self.root / "run" / "state").mkdir(parents=True)
        self._rounds = rounds
        self.written: list[bytes] = []
        self.taken: list[bytes] = []
        self.asked: list[int] = []
        self.imported: list[tuple[bytes | None, bytes]] = []  # what was in the order, and in the file
        self.lies = False
        self.changed = b""  # since the last round
        context = SimpleNamespace(
            container=SimpleNamespace(path=lambda inside: self.root / inside.lstrip("/")),
            control=SimpleNamespace(ask=self._ask),
            events=EventLog("edge-1", None, lambda event: None),
            state_dir=Path("/run/state"),
            after_freeze=AsyncMock(),
            before_resume=lambda: None,
            lease_of=lambda order: None,
            inline_bytes=INLINE_BYTES,
        )
        self.engine = HandoffEngine(cast(Any, context))
        self.order = World(directory).order(1)

    async def _ask(self, order: Any, timeout_s: float) -> dict[str, Any]:
        file = self.root / order.state_path.lstrip("/")
        if isinstance(order, control.TakeAhead):
            state = file.read_bytes() if order.state is None else order.state
            assert hashlib.sha256(state).hexdigest() == order.sha256
            self.taken.append(state)
            return {}
        if isinstance(order, control.Import):
            state = file.read_bytes() if order.state is None else order.state
            assert hashlib.sha256(state).hexdigest() == order.sha256
            self.imported.append((order.state, file.read_bytes()))
            return {}
        if isinstance(order, control.Freeze):
            state = b"short"
            assert order.inline_bytes >= len(state)
            return {"sha256": self._digest(state), "state": base64.b64encode(state).decode()}
        assert isinstance(order, control.CopyAhead)
        self.asked.append(order.round)
        if order.last:
            state = self.changed
            answer = {"connections": len(state), "sha256": self._digest(state)}
            if len(state) <= order.inline_bytes:
                return {**answer, "state": base64.b64encode(state).decode()}
            file.write_bytes(state)
            return answer
        left = self._rounds[order.round - 1]
        if not left:
            return {"connections": 0}
        count = left.pop(0)
        state = b"%d connections of round %d" % (count, order.round) * 1000
        assert not file.exists()
        file.write_bytes(state)
        self.written.append(state)
        return {"connections": count, "sha256": self._digest(state)}

    def _digest(self, state: bytes) -> str:
        return "0" * 64 if self.lies else hashlib.sha256(state).hexdigest()

    def files(self) -> list[Path]:
        return list((self.root / "run" / "state").iterdir())


async def collected(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def cut(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1_000, 7, 1 << 20])
def test_the_files_arrive_as_they_were_however_they_are_cut(tmp_path: Path, size: int) -> None:
    server = Server(tmp_path, [[64, 64, 3], [2]])

    async def play() -> None:
        for _ in range(2):
            data = await collected(server.engine.copy_ahead(server.order))
            await server.engine.accept_ahead(server.order, cut(data, size))

    asyncio.run(play())
    assert server.taken == server.written
    assert server.asked == [1, 1, 1, 1, 2, 2]
    assert len(server.written) == 4
    assert server.files() == []


def test_another_move_begins_with_the_first_round(tmp_path: Path) -> None:
    server = Server(tmp_path, [[1, 1], [1]])
    asyncio.run(collected(server.engine.copy_ahead(server.order)))
    asyncio.run(collected(server.engine.copy_ahead(World(tmp_path).order(2))))
    assert set(server.asked) == {1}


@pytest.mark.parametrize("length", [0, 1, INLINE_BYTES, INLINE_BYTES + 1])
def test_what_is_copied_last_is_in_the_order_or_in_the_file(tmp_path: Path, length: int) -> None:
    server = Server(tmp_path, [[1]])
    server.changed = bytes(number % 251 for number in range(length))

    async def play() -> None:
        await collected(server.engine.copy_ahead(server.order))
        await server.engine.accept_last(server.order, await server.engine.copy_last(server.order))

    asyncio.run(play())
    assert server.asked == [1, 1, 2]
    assert server.taken[-1:] == [server.changed]
    assert server.files() == []


def test_a_last_copy_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    server = Server(tmp_path, [])
    server.lies = True
    with pytest.raises(MigrationError, match="not what the server says"):
        asyncio.run(server.engine.copy_last(server.order))
    assert server.files() == []


def test_a_copy_that_is_not_what_was_written_is_refused(tmp_path: Path) -> None:
    server = Server(tmp_path, [[1], []])
    server.lies = True
    with pytest.raises(MigrationError, match="not what the server says"):
        asyncio.run(collected(server.engine.copy_ahead(server.order)))
    assert server.files() == []


def test_short_state_needs_no_file(tmp_path: Path) -> None:
    server = Server(tmp_path, [])
    assert asyncio.run(collected(server.engine.checkpoint(server.order))) == b"short"
    server.lies = True
    with pytest.raises(MigrationError, match="not what the server says"):
        asyncio.run(collected(server.engine.checkpoint(server.order)))


@pytest.mark.parametrize("size", [1_000, 7])
@pytest.mark.parametrize("length", [5, INLINE_BYTES, INLINE_BYTES + 1])
def test_the_state_is_in_the_order_or_in_the_file(tmp_path: Path, length: int, size: int) -> None:
    server = Server(tmp_path, [])
    state = bytes(number % 251 for number in range(length))
    asyncio.run(server.engine.restore(server.order, cut(state, size)))
    assert server.imported == [(state, b"") if length <= INLINE_BYTES else (None, state)]
    assert server.files() == []
