"""When a move begins relative to the requests, and which requests it hit."""

from __future__ import annotations

import threading
import time

import pytest

from quicferry.analysis.requests_hit import first_open_ns, requests_hit
from quicferry.errors import InvalidInput, MigrationError
from quicferry.events import Event
from quicferry.experiment import request_watch
from quicferry.experiment.faults import parse
from quicferry.experiment.request_watch import RequestWatch, load_after_s
from quicferry.record import RequestRecord
from quicferry.spec import RunSpec
from session.request import to_spec


def sent(number: int) -> Event:
    return Event(t_ns=0, vantage="client", name="client.request.sent", detail={"number": number})


def answered(number: int) -> Event:
    return Event(t_ns=0, vantage="client", name="client.response.received", detail={"number": number})


def moments(watch: RequestWatch, moment: str, events: list[Event]) -> int:
    """After how many events the wait is over."""
    over = threading.Event()

    def wait() -> None:
        watch.wait_for(moment, 100.0)
        over.set()

    thread = threading.Thread(target=wait)
    thread.start()
    heard = 0
    for event in events:
        if over.wait(0.05):
            break
        watch.heard(event)
        heard += 1
    thread.join(5)
    assert over.is_set()
    return heard


def test_a_pause_begins_with_the_answer_after_which_none_is_open() -> None:
    watch = RequestWatch()
    assert moments(watch, "pause", [sent(1), sent(2), answered(1), answered(2), sent(3)]) == 4


def test_a_pause_that_has_just_begun_is_taken_and_one_that_is_nearly_over_is_not() -> None:
    watch = RequestWatch()
    watch.heard(sent(1))
    watch.heard(answered(1))
    watch.wait_for("pause", 600_000.0)
    time.sleep(0.02)
    assert moments(watch, "pause", [sent(2), answered(2), sent(3)]) == 2


def test_a_request_is_under_way_when_it_has_been_sent() -> None:
    watch = RequestWatch()
    watch.heard(sent(1))
    assert moments(watch, "request", [answered(1), sent(2), answered(2)]) == 2
    watch.wait_for("any", 10.0)


def test_a_moment_that_does_not_come_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_watch, "PATIENCE_S", 0.01)
    with pytest.raises(MigrationError, match="no pause came"):
        RequestWatch().wait_for("pause", 1.0)


def test_moments_that_cannot_be_are_refused() -> None:
    with pytest.raises(InvalidInput, match="many clients"):
        to_spec({"move_when": "request", "clients": 2})
    with pytest.raises(InvalidInput, match="no pause"):
        to_spec({"move_when": "pause", "interval_ms": 0.0})
    assert to_spec({"move_when": "request", "interval_ms": 0.0, "baseline": "tcp-dns"}).move_when == "request"


MS = 1_000_000


def request(number: int, sent_ms: float, received_ms: float | None) -> RequestRecord:
    received = None if received_ms is None else round(received_ms * MS)
    return RequestRecord(
        number=number, stream=4 * number, sent_ns=round(sent_ms * MS), received_ns=received, server=None
    )


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        # the server stands still from 100 to 150 ms
        ([(50, 70), (90, 170), (180, 200), (210, 260)], (80.0, 20.0, 1)),
        ([(50, 70), (160, 200)], (None, 40.0, 0)),
        ([(90, 101), (95, 180), (120, 190)], (85.0, None, 3)),  # of several the longest
        ([(90, None), (95, 180), (170, None)], (None, None, 2)),  # one was never answered: it is not known
        ([], (None, None, 0)),
    ],
)
def test_the_request_that_a_move_hits_was_under_way_in_the_downtime(
    times: list[tuple[float, float | None]], expected: tuple[float | None, float | None, int]
) -> None:
    requests = [request(number, *each) for number, each in enumerate(times)]
    assert requests_hit(requests, 100 * MS, 150 * MS) == expected


@pytest.mark.parametrize(
    ("times", "first_ms"),
    [
        ([(50, 70), (90, 170), (140, 180)], 90),
        ([(50, 70), (160, 200), (170, None)], 160),
        ([(50, 70)], None),
    ],
)
def test_the_first_request_that_the_resumed_server_has_to_answer(
    times: list[tuple[float, float | None]], first_ms: float | None
) -> None:
    requests = [request(number, *each) for number, each in enumerate(times)]
    expected = None if first_ms is None else first_ms * MS
    assert first_open_ns(requests, 150 * MS) == expected


@pytest.mark.parametrize(
    ("faults", "every_ms", "after_s"),
    [((), 5000.0, 1.0), (("commit:link-cut",), 5000.0, 6.2), (("commit:link-cut",), 10.0, 1.21)],
)
def test_after_a_fault_each_client_asks_once_more(
    faults: tuple[str, ...], every_ms: float, after_s: float
) -> None:
    spec = RunSpec(after_s=1.0, faults=tuple(parse(words) for words in faults))
    assert load_after_s(spec, every_ms, 600.0) == pytest.approx(after_s)
