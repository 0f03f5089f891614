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

import msgspec
import pytest

from quicferry.errors import MigrationError
from quicferry.events import EventLog
from quicferry.migration import control
from quicferry.migration.engines.base import INLINE_BYTES
from quicferry.migration.engines.handoff import FEW, ROUNDS, HandoffEngine
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
            state = file.read_bytes()
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
            digest = "0" * 64 if self.lies else hashlib.sha256(state).hexdigest()
            return {"sha256": digest, "state": base64.b64encode(state).decode()}
        assert isinstance(order, control.CopyAhead)
        self.asked.append(order.round)
        left = self._rounds[order.round - 1]
        if not left:
            return {"connections": 0}
        count = left.pop(0)
        state = b"%d connections of round %d" % (count, order.round) * 1000
        assert not file.exists()
        file.write_bytes(state)
        self.written.append(state)
        return {"connections": count, "sha256": "0" * 64 if self.lies else hashlib.sha256(state).hexdigest()}

    def files(self) -> list[Path]:
        return list((self.root / "run" / "state").iterdir())


async def collected(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def all_rounds(server: Server) -> int:
    """How many rounds the engine gives."""
    count = 0
    while asyncio.run(collected(server.engine.copy_ahead(server.order))):
        count += 1
    return count


async def cut(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.mark.parametrize("size", [1_000, 7, 1 << 20])
def test_the_files_arrive_as_they_were_however_they_are_cut(tmp_path: Path, size: int) -> None:
    server = Server(tmp_path, [[64, 64, 3], [2]])

    async def play() -> None:
        while data := await collected(server.engine.copy_ahead(server.order)):
            await server.engine.accept_ahead(server.order, cut(data, size))

    asyncio.run(play())
    assert server.taken == server.written
    assert len(server.written) == 4
    assert server.files() == []


def test_few_connections_need_no_second_round(tmp_path: Path) -> None:
    server = Server(tmp_path, [[FEW], [1]])
    assert all_rounds(server) == 1
    assert set(server.asked) == {1}


def test_rounds_go_on_while_they_get_smaller(tmp_path: Path) -> None:
    server = Server(tmp_path, [[64, 36], [40], [20], [9], [8], [7]])
    assert all_rounds(server) == ROUNDS
    assert set(server.asked) == set(range(1, ROUNDS + 1))


def test_a_round_that_is_nearly_as_large_as_the_last_is_the_last(tmp_path: Path) -> None:
    server = Server(tmp_path, [[64, 36], [40], [39], [38]])
    assert all_rounds(server) == 3
    assert server.asked[-1] == 3  # once more, for whoever has come since


def test_the_next_move_begins_with_its_first_round(tmp_path: Path) -> None:
    server = Server(tmp_path, [[64], [3]])
    assert all_rounds(server) == 2
    server.order = msgspec.structs.replace(server.order, epoch=server.order.epoch + 1)
    server.asked.clear()
    assert all_rounds(server) == 0  # this server has no more
    assert server.asked == [1]


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
