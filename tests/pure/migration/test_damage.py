"""The fault `image-corrupted` changes a byte wherever the first piece of a stream travels."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from quicferry.migration.agent.failpoints import DamagingClient, _DamagingCall
from quicferry.migration.rpc.messages import End, Piece


class Recorder:
    """A stream that keeps what is written to it."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    async def write(self, message: Any) -> None:
        self.written.append(message)


@pytest.mark.parametrize(
    ("messages", "damaged"),
    [
        ([Piece(b"abc"), Piece(b"def"), End(size_bytes=6, digest="", resume_before_ns=1)], 0),
        ([End(size_bytes=3, digest="", resume_before_ns=1, data=b"abc")], 0),
        ([Piece(b""), End(size_bytes=3, digest="", resume_before_ns=1, data=b"abc")], 1),
    ],
    ids=["in pieces", "with the end", "an empty piece before it"],
)
def test_the_first_bytes_are_damaged_once(messages: list[Piece | End], damaged: int) -> None:
    recorder = Recorder()
    client = DamagingClient.__new__(DamagingClient)
    client.damage = frozenset({"copy"})
    call = _DamagingCall(recorder, client)  # type: ignore[arg-type]

    async def write_all() -> None:
        for message in messages:
            await call.write(message)

    asyncio.run(write_all())
    differing = [
        number
        for number, (sent, came) in enumerate(zip(messages, recorder.written, strict=True))
        if sent.data != came.data
    ]
    assert differing == [damaged]
    assert len(recorder.written[damaged].data) == len(messages[damaged].data)
    assert client.damage == frozenset()
