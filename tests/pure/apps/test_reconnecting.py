"""A client that is to connect again goes on with what was asked before and meanwhile."""

from __future__ import annotations

import asyncio
import io
import itertools
from collections.abc import Iterator

import pytest

from apps.client.multi_client import Member
from apps.config import ClientConfig
from quicferry.events import EventLog
from quicferry.model import Endpoint


class Connection:
    """Sends nothing, and knows what it was given."""

    def __init__(self) -> None:
        self.sent: dict[int, bytes] = {}
        self._streams = itertools.count(0, 4)

    def get_next_available_stream_id(self) -> int:
        return next(self._streams)

    def send_stream_data(self, stream: int, data: bytes, end: bool) -> None:
        assert end
        self.sent[stream] = data

    def unsent_bytes(self, stream: int) -> int:
        return 0


@pytest.fixture
def member(monkeypatch: pytest.MonkeyPatch) -> Iterator[Member]:
    monkeypatch.setattr(Member, "make_connection", lambda self: Connection())
    monkeypatch.setattr(Member, "_proceed", lambda self: None)
    config = ClientConfig(
        server=Endpoint("127.0.0.1", 4433), authority="", keys="", summary="", interval_ms=10.0
    )
    made = Member(config, EventLog("client", sink=lambda _: None), io.StringIO())
    yield made
    made.port.close()


def test_what_is_asked_while_nobody_is_connected_is_asked_afterwards(member: Member) -> None:
    """It was left out, and whoever waited for the answer asked nothing more."""

    async def play() -> None:
        member.connected.set()
        member.schedule.request()
        first = member.connection
        assert len(first.sent) == 1
        member.connected.clear()  # told to connect again
        member._streams.clear()
        member.connection = Connection()  # type: ignore[assignment]
        member.schedule.request()
        assert member.schedule.unanswered == 2
        assert member.connection.sent == {}
        member.connected.set()
        member._repeat()
        assert next(iter(member.connection.sent.values())) == first.sent[0]
        assert len(member.connection.sent) == 2

    asyncio.run(play())
    assert member.load.summary().requests_repeated == 1
    assert member.load.summary().requests_sent == 2
