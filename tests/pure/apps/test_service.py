"""The service that is moved, and the client's account of it."""

from __future__ import annotations

import msgspec
import pytest

from apps.client.load import Load
from apps.config import ClientConfig
from apps.server.service import ApplicationService, Session
from apps.workload import BACKLOG_BYTES, Ask, Reply, chain_of, content, header
from quicferry.events import Event, EventLog
from quicferry.model import Endpoint


class Wire:
    """Collects what was sent, by stream."""

    def __init__(self) -> None:
        self.sent: dict[int, bytes] = {}
        self.ended: set[int] = set()

    def send(self, stream: int, data: bytes, end: bool) -> None:
        assert stream not in self.ended
        self.sent[stream] = self.sent.get(stream, b"") + data
        if end:
            self.ended.add(stream)

    def reply(self, stream: int) -> Reply:
        return msgspec.json.decode(self.sent[stream].partition(b"\n")[0], type=Reply)


def ask(service: ApplicationService, wire: Wire, stream: int, number: int) -> Reply:
    data = header(Ask(op="get", session="a", number=number))
    service.received("1", stream, data, True, wire.send)
    return wire.reply(stream)


def test_counts_each_request_once() -> None:
    service, wire = ApplicationService("edge-1", 200), Wire()
    assert [ask(service, wire, 4 * n, n).session_count for n in (1, 3, 2)] == [1, 2, 3]
    again = ask(service, wire, 400, 2)
    assert again.repeated
    assert again.session_count == 3
    assert service.state.repeated == 1
    assert len(wire.sent[4]) == 200
    assert wire.ended == {4, 8, 12, 400}


def test_session_remembers_numbers_in_any_order() -> None:
    session = Session()
    assert all(session.obey(number) for number in (5, 1, 2, 4, 3))
    assert (session.contiguous, session.beyond) == (5, set())
    assert not session.obey(3)


def test_goes_on_where_it_was_dumped_in_mid_transfer() -> None:
    service, wire = ApplicationService("edge-1", 64), Wire()
    ask(service, wire, 0, 1)
    size = 3 * BACKLOG_BYTES
    service.received("1", 4, header(Ask(op="download", session="a", size=size, seed=9)), True, wire.send)
    service.pump("1", lambda _: 0, wire.send)
    upload = header(Ask(op="upload", session="a", size=50_000, seed=3)) + content(3, 0, 50_000)
    service.received("1", 8, upload[:20], False, wire.send)
    service.received("1", 8, upload[20:30_000], False, wire.send)

    moved = ApplicationService.load(service.dump(), "edge-2", 64)
    moved.received("1", 8, upload[30_000:], True, wire.send)
    while list(moved.downloads("1")):
        moved.pump("1", lambda _: 0, wire.send)
    assert ask(moved, wire, 12, 2).session_count == 2
    assert wire.reply(12).edge == "edge-2"
    body = wire.sent[4].partition(b"\n")[2]
    assert body == content(9, 0, size)
    assert wire.reply(8).chain == chain_of(3, 50_000)
    assert moved.state.connections["1"] == {}


def test_pump_respects_the_backlog() -> None:
    service, wire = ApplicationService("e", 64), Wire()
    service.received("1", 0, header(Ask(op="download", session="a", size=10**6)), True, wire.send)
    before = len(wire.sent[0])
    service.pump("1", lambda _: BACKLOG_BYTES, wire.send)
    assert len(wire.sent[0]) == before


def test_refuses_what_is_not_of_the_protocol() -> None:
    service, wire = ApplicationService("e", 64), Wire()
    with pytest.raises(msgspec.DecodeError):
        service.received("1", 0, b'{"op":"burn"}\n', True, wire.send)


def make_load(**settings: object) -> tuple[Load, Wire, list[Event]]:
    config = msgspec.convert(
        {
            "server": Endpoint("10.0.1.2", 4433),
            "authority": "",
            "keys": "",
            "summary": "",
            **settings,
        },
        ClientConfig,
    )
    wire, events = Wire(), list[Event]()
    return Load(config, EventLog("client", sink=events.append), wire.send, lambda _: 0), wire, events


def test_the_client_accounts_for_every_request() -> None:
    load, wire, events = make_load()
    streams = iter(range(0, 400, 4))
    for _ in range(3):
        load.request(lambda: next(streams))
    service, back = ApplicationService("edge-1", 128), Wire()
    for stream in (0, 4):
        service.received("1", stream, wire.sent[stream], True, back.send)
        load.received(stream, back.sent[stream], True, "10.0.1.2:4433")
    summary = load.summary()
    assert (summary.requests_sent, summary.responses, summary.requests_lost) == (3, 2, 1)
    assert summary.state_ok
    assert [record.received_ns is None for record in summary.requests] == [False, False, True]
    assert [event.name for event in events].count("client.response.received") == 2


def test_the_client_notices_a_state_that_went_back() -> None:
    load, wire, _ = make_load()
    streams = iter(range(0, 400, 4))
    for stream in (0, 4):
        load.request(lambda: next(streams))
        back = Wire()
        ApplicationService("edge-1", 128).received(
            "1", stream, wire.sent[stream], True, back.send
        )  # a new, empty service
        load.received(stream, back.sent[stream], True, "10.0.1.2:4433")
    summary = load.summary()
    assert not summary.state_ok
    assert "went back" in summary.state_detail


@pytest.mark.parametrize("damage", [False, True])
def test_transfers_are_verified(damage: bool) -> None:
    load, wire, _ = make_load(download_bytes=100_000, upload_bytes=70_000, seed=5)
    streams = iter((0, 4))
    load.start_transfers(lambda: next(streams))
    while 4 not in wire.ended:
        load.pump()
    service, back = ApplicationService("edge-1", 128), Wire()
    for stream in (0, 4):
        service.received("1", stream, wire.sent[stream], True, back.send)
    while 0 not in back.ended:
        service.pump("1", lambda _: 0, back.send)
    for stream in (0, 4):
        data = back.sent[stream]
        if damage:
            data = data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]
        load.received(stream, data, True, "10.0.2.2:4433")
    summary = load.summary()
    assert [transfer.verified for transfer in summary.transfers] == (
        [False, False] if damage else [True, True]
    )
    assert summary.bytes_verified == (0 if damage else 170_000)


def test_finish_waits_for_what_is_open() -> None:
    load, wire, _ = make_load()
    load.request(lambda: 0)
    load.finish()
    assert not load.complete.is_set()
    back = Wire()
    ApplicationService("e", 64).received("1", 0, wire.sent[0], True, back.send)
    load.received(0, back.sent[0], True, "10.0.1.2:4433")
    assert load.complete.is_set()


def test_a_poll_is_answered_when_its_time_has_come_also_by_the_service_that_goes_on() -> None:
    service, wire = ApplicationService("edge-1", 64), Wire()
    now = 100.0
    service.clock = lambda: now
    for stream, delay_ms in ((0, 250.0), (4, 500.0)):
        poll = Ask(op="get", session="a", number=stream + 1, delay_ms=delay_ms)
        service.received("1", stream, header(poll), True, wire.send)
    assert (wire.sent, service.next_due_s(), service.due()) == ({}, 100.25, [])
    now = 100.3
    assert service.due() == ["1"]
    service.pump("1", lambda _: 0, wire.send)
    assert wire.ended == {0}
    moved = ApplicationService.load(service.dump(), "edge-2", 64)
    moved.clock = lambda: 101.0
    assert moved.next_due_s() == 100.5
    moved.pump("1", lambda _: 0, wire.send)
    assert wire.ended == {0, 4}
    assert wire.reply(4).edge == "edge-2"
    assert moved.next_due_s() is None


def test_a_client_may_ask_for_an_answer_of_another_size() -> None:
    service, wire = ApplicationService("edge-1", 64), Wire()
    service.received("1", 0, header(Ask(op="get", session="a", number=1, answer_bytes=5000)), True, wire.send)
    assert len(wire.sent[0]) == 5000
