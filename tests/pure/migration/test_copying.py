"""What the source's agent copies before the freeze: how many rounds, and whether it asks once more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from quicferry.errors import MigrationError
from quicferry.events import EventLog
from quicferry.migration.agent.copying import LITTLE_BYTES, ROUNDS, Copying
from quicferry.migration.agent.transfer import Tally
from quicferry.migration.order import MoveOrder
from quicferry.migration.rpc.messages import Ahead, End, Piece, Received, Resumed
from tests.migration_support import World

KEY = bytes(range(16))
MUCH = 40 * LITTLE_BYTES


class MemoryEngine:
    """Copies as many bytes as ``rounds`` has for each time that it is asked; it gives them patterned."""

    def __init__(self, *rounds: int) -> None:
        self._rounds = list(rounds)
        self.given: list[bytes] = []

    async def copy_ahead(self, order: MoveOrder) -> AsyncIterator[bytes]:
        size_bytes = self._rounds.pop(0)
        data = (bytes(range(251)) * (size_bytes // 251 + 1))[:size_bytes]
        self.given.append(data)
        for start in range(0, size_bytes, 100_000):
            yield data[start : start + 100_000]

    async def accept_ahead(self, order: MoveOrder, chunks: AsyncIterator[bytes]) -> None:
        raise AssertionError("this is the source")


class ConnectionEngine(MemoryEngine):
    copies_after_notice = True

    async def copy_last(self, order: MoveOrder) -> bytes:
        return b"changed last"

    async def accept_last(self, order: MoveOrder, copies: bytes) -> None:
        raise AssertionError("this is the source")


class Stream:
    """The destination: takes in each round, of which none may begin before the one before was answered."""

    def __init__(self, answer: object = None) -> None:
        self._answer = answer
        self.rounds: list[bytes] = []
        self._open = False

    async def write(self, message: Any) -> None:
        match message:
            case Ahead():
                assert not self._open
                self._open = True
                self.rounds.append(b"")
            case Piece():
                self.rounds[-1] += message.data
            case End():
                tally = Tally(KEY)
                tally.add(self.rounds[-1])
                assert (message.size_bytes, message.digest) == (tally.size_bytes, tally.digest)

    async def read(self) -> object:
        self._open = False
        return self._answer or Received(size_bytes=len(self.rounds[-1]), t_ns=1)


def copied(folder: Path, engine: MemoryEngine | None, stream: Stream) -> bytes:
    """Send all; returns what goes with Begin."""
    order = World(folder).order(1)
    copying = Copying(EventLog("edge-1", None, lambda event: None), cast(Any, engine), order, KEY)

    async def play() -> bytes:
        await copying.send(cast(Any, stream))
        return await copying.last()

    return asyncio.run(play())


@pytest.mark.parametrize(
    ("sizes", "rounds"),
    [
        ([0], 0),  # no connection, or none that can move
        ([LITTLE_BYTES], 1),
        ([MUCH, LITTLE_BYTES], 2),
        ([MUCH, 0], 1),
        ([MUCH, MUCH // 2, MUCH // 4, MUCH // 8, MUCH // 16], ROUNDS),
        ([MUCH, MUCH // 2 + 1, 1], 2),  # clients change it as fast as it crosses
        ([MUCH, MUCH // 4, MUCH // 6, 1], 3),
    ],
)
def test_rounds_go_on_while_they_make_what_is_left_less(
    tmp_path: Path, sizes: list[int], rounds: int
) -> None:
    engine, stream = ConnectionEngine(*sizes), Stream()
    last = copied(tmp_path, engine, stream)
    assert len(stream.rounds) == rounds
    assert stream.rounds == [data for data in engine.given if data]
    assert last == (b"changed last" if sizes[0] > LITTLE_BYTES else b"")


def test_all_rounds_together_have_the_time_of_the_copies(tmp_path: Path) -> None:
    order = World(tmp_path).order(1)
    deadlines = msgspec.structs.replace(order.deadlines, precopy_s=0.3)
    order = msgspec.structs.replace(order, deadlines=deadlines)

    class Slow(Stream):
        async def read(self) -> object:
            await asyncio.sleep(0.2)
            return await super().read()

    stream = Slow()
    engine = ConnectionEngine(MUCH, MUCH // 2, MUCH // 4, MUCH // 8)
    copying = Copying(EventLog("edge-1", None, lambda event: None), cast(Any, engine), order, KEY)
    with pytest.raises(TimeoutError):
        asyncio.run(copying.send(cast(Any, stream)))
    assert len(stream.rounds) == 2


def test_memory_crosses_in_one_go(tmp_path: Path) -> None:
    engine, stream = MemoryEngine(MUCH, 1), Stream()
    assert copied(tmp_path, engine, stream) == b""
    assert stream.rounds == engine.given and len(stream.rounds) == 1


def test_an_engine_that_copies_nothing_ahead_sends_nothing(tmp_path: Path) -> None:
    stream = Stream()
    assert copied(tmp_path, None, stream) == b""
    assert stream.rounds == []


def test_another_answer_than_that_it_was_received_ends_the_move(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="answered Resumed before Received"):
        copied(tmp_path, ConnectionEngine(MUCH), Stream(Resumed(epoch=1, t_ns=1)))
