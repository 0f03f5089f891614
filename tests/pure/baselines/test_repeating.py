"""Exchanges that outlive their connection: nothing lost, nothing done twice, downloads go on."""

from __future__ import annotations

import msgspec
import pytest

from apps.client.load import Load
from apps.config import ClientConfig
from apps.server.service import ApplicationService
from apps.workload import Ask, RequestShape, chain_of, content
from baselines import repeating
from baselines.repeating import Exchanges, OpenExchange
from quicferry.events import Event, EventLog
from quicferry.model import Endpoint

OLD, NEW = "10.0.1.2:4433", "10.0.2.2:4433"


class Scene:
    """A load, its exchanges and a service; the wire between them breaks when the test says so."""

    def __init__(self, **settings: object) -> None:
        self.events: list[Event] = []
        config = ClientConfig(
            server=Endpoint("10.0.1.2", 4433), authority="", keys="", summary="", request_bytes=64, seed=3
        )
        config = msgspec.structs.replace(config, **settings)
        self.exchanges = Exchanges()
        self.load = Load(config, EventLog("client", sink=self.events.append), self._send, lambda _: 0)
        self.exchanges.load = self.load
        self.service = ApplicationService("edge-1", 200)
        self._keys = 0

    def _send(self, stream: int, data: bytes, end: bool) -> None:
        self.exchanges.send(stream, data, end)

    def request(self) -> None:
        self.load.request(self.exchanges.next_stream)

    def take(self) -> OpenExchange:
        exchange = self.exchanges.take()
        assert exchange is not None
        return exchange

    def serve(
        self, exchange: OpenExchange, origin: str, *, reaches: bool = True, most: int = 1 << 30
    ) -> None:
        """The service obeys; ``reaches``: the answer comes to the client, at most so many bytes of it."""
        self._keys += 1
        answer: list[tuple[bytes, bool]] = []

        def send(_stream: int, data: bytes, end: bool) -> None:
            answer.append((data, end))

        key = str(self._keys)
        while (part := exchange.next_part()) is not None:
            self.service.received(key, 1, part, exchange.ended, send)
        while any(self.service.downloads(key)):
            self.service.pump(key, lambda _: 0, send)
        for data, end in answer if reaches else []:
            exchange.answered(data[:most], end and len(data) <= most, origin)
            most -= len(data)
            if most <= 0:
                break
        self.service.forget(key)


def test_what_was_never_obeyed_is_obeyed_when_it_comes_again() -> None:
    it = Scene()
    for _ in range(3):
        it.request()
    it.serve(it.take(), OLD)
    lost = it.take()  # its connection dies before the server reads it
    it.exchanges.wait_again(lost)
    it.serve(it.take(), NEW)
    it.serve(it.take(), NEW)
    summary = it.load.summary()
    assert (summary.requests_sent, summary.responses, summary.requests_lost) == (3, 3, 0)
    assert (summary.requests_repeated, summary.repeats_recognised, summary.requests_duplicated) == (1, 0, 0)
    assert summary.state_ok, summary.state_detail
    assert [record.server for record in summary.requests] == [OLD, NEW, NEW]
    assert [e.detail["number"] for e in it.events if e.name == "client.request.repeated"] == [2]


def test_a_repeat_of_what_was_obeyed_is_recognised_not_obeyed_again() -> None:
    it = Scene()
    for _ in range(3):
        it.request()
    exchanges = [it.take() for _ in range(3)]
    it.serve(exchanges[0], OLD)
    it.serve(exchanges[1], OLD, reaches=False)
    it.exchanges.wait_again(exchanges[2])
    it.exchanges.wait_again(exchanges[1])
    assert it.take() is exchanges[1]  # the older first, whichever was noticed first
    it.serve(exchanges[1], NEW)
    it.serve(it.take(), NEW)
    summary = it.load.summary()
    assert it.service.state.total == 3
    assert (summary.responses, summary.requests_repeated, summary.repeats_recognised) == (3, 2, 1)
    assert summary.requests_duplicated == 0
    assert summary.state_ok, summary.state_detail


def test_a_repeat_that_the_client_did_not_send_is_still_a_duplicate() -> None:
    it = Scene()
    it.request()
    exchange = it.take()
    it.service.state.sessions.clear()
    other = Scene()
    other.request()
    other.serve(other.take(), OLD)
    it.service = other.service  # it has obeyed number 1 of this session already
    it.serve(exchange, OLD)
    assert it.load.summary().requests_duplicated == 1


def test_half_an_answer_is_forgotten() -> None:
    it = Scene()
    it.request()
    exchange = it.take()
    it.serve(exchange, OLD, most=50)
    it.exchanges.wait_again(exchange)
    it.serve(it.take(), NEW)
    summary = it.load.summary()
    assert (summary.responses, summary.repeats_recognised) == (1, 1)
    assert summary.state_ok, summary.state_detail


@pytest.mark.parametrize("most", [0, 40, 100_000, 700_000])
def test_a_download_goes_on_where_it_was_cut(most: int) -> None:
    it = Scene(download_bytes=1 << 20)
    it.load.start_transfers(it.exchanges.next_stream)
    exchange = it.take()
    it.serve(exchange, OLD, most=most, reaches=most > 0)
    done = it.load.received_bytes(exchange.stream)
    it.exchanges.wait_again(exchange)
    again = it.take()
    part = again.next_part()
    assert part is not None
    assert msgspec.json.decode(part.partition(b"\n")[0], type=Ask).offset == done
    again.begin()  # as if that connection had failed as well
    it.serve(again, NEW)
    (transfer,) = it.load.summary().transfers
    assert transfer.verified
    assert transfer.done_bytes == 1 << 20


def test_an_upload_begins_anew() -> None:
    it = Scene(upload_bytes=200_000)
    it.load.start_transfers(it.exchanges.next_stream)
    exchange = it.take()
    it.load.pump()
    while exchange.next_part() is not None:
        pass
    it.exchanges.wait_again(exchange)
    it.load.pump()
    it.load.pump()
    it.serve(it.take(), NEW)
    (transfer,) = it.load.summary().transfers
    assert transfer.verified


def test_an_offset_is_served_from_there() -> None:
    service, sent = ApplicationService("edge-1", 64), bytearray()
    ask = Ask(op="download", session="a", size=100_000, seed=9, offset=70_001)
    service.received("1", 0, msgspec.json.encode(ask) + b"\n", True, lambda _s, data, _e: sent.extend(data))
    service.pump("1", lambda _: 0, lambda _s, data, _e: sent.extend(data))
    head, _, body = bytes(sent).partition(b"\n")
    assert msgspec.json.decode(head)["size"] == 100_000
    assert body == content(9, 70_001, 29_999)
    assert chain_of(9, 100_000) != chain_of(9, 29_999)


def test_what_waits_is_counted_as_backlog() -> None:
    it = Scene()
    it.request()
    assert it.exchanges.waiting == 1
    (sent,) = [e.detail["size_bytes"] for e in it.events if e.name == "client.request.sent"]
    assert it.exchanges.backlog_bytes(1, lambda _: 7) == sent + 7
    exchange = it.take()
    assert it.exchanges.earliest_due_s() == exchange.due_s
    exchange.next_part()
    assert it.exchanges.backlog_bytes(1, lambda _: 0) == 0
    assert it.exchanges.backlog_bytes(99, lambda _: 7) == 0
    assert it.exchanges.all_open() == [exchange]


def test_a_poll_is_not_missed_before_its_moment_and_waits_no_longer_for_being_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    it, now = Scene(), [100.0]
    monkeypatch.setattr(repeating, "now_s", lambda: now[0])
    it.load.shape = RequestShape(delay_ms=500.0)
    it.request()
    poll = it.take()
    assert it.exchanges.earliest_due_s() == 100.5
    for later_s, left_ms, due_s in [(0.2, 300.0, 100.5), (0.9, 0.0, 100.9)]:
        now[0] = 100.0 + later_s
        it.exchanges.wait_again(poll)
        assert it.take() is poll
        asked = msgspec.json.decode((poll.next_part() or b"").partition(b"\n")[0], type=Ask)
        assert asked.delay_ms == pytest.approx(left_ms)
        assert asked.number == 1
        assert it.exchanges.earliest_due_s() == pytest.approx(due_s)
