"""How requests are spread over time: the workloads that there are, and the schedule that follows them."""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import Iterator

import pytest

from apps.client import workloads
from apps.client.load import Load
from apps.client.load_schedule import LoadSchedule
from apps.client.workloads import BURST_REQUESTS, BURSTS, REQUESTS, Workload
from apps.config import ClientConfig
from apps.workload import Reply, RequestShape, header
from quicferry.errors import InvalidInput
from quicferry.events import EventLog
from quicferry.model import Endpoint
from quicferry.spec import RunSpec
from session.request import to_spec


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose time runs only while everything waits for it: sleeps take none of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def time(self) -> float:
        return self.now_s

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.now_s = max(self.now_s, self._scheduled[0]._when)
        super()._run_once()


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


class Driver:
    """Notes when requests leave; each is answered after ``answer_s`` one after another."""

    def __init__(self, loop: VirtualLoop, interval_s: float, answer_s: float = 0.003) -> None:
        self.interval_s = interval_s
        self.seed = "1 client-1"
        self.sent_s: list[float] = []
        self._loop = loop
        self._answer_s = answer_s
        self._free_s = 0.0  # when the service has answered what it has
        self._answered = asyncio.Event()
        self.unanswered = 0
        self.bit_rate_mbps = 8.0
        self.shapes: list[RequestShape] = []
        self.datagrams_s: list[float] = []
        self.stalls_ms: list[float] = []
        self.behind_s: list[float] = []
        self.costs_s = 0.0  # of the client's processor, for each request

    def behind(self, late_s: float) -> None:
        self.behind_s.append(round(late_s, 6))

    def request_of(self, shape: RequestShape) -> None:
        self.shapes.append(shape)
        self.request()

    def datagram(self) -> None:
        self.datagrams_s.append(round(self._loop.time(), 6))

    def stalled(self, length_ms: float) -> None:
        self.stalls_ms.append(round(length_ms, 3))

    def request(self) -> None:
        self._loop.now_s += self.costs_s
        self.sent_s.append(round(self._loop.time(), 6))
        self.unanswered += 1
        self._free_s = max(self._free_s, self._loop.time()) + self._answer_s
        self._loop.call_at(self._free_s, self._answer)

    def _answer(self) -> None:
        self.unanswered -= 1
        self._answered.set()

    async def next_answer(self) -> None:
        self._answered.clear()
        await self._answered.wait()


def times(loop: VirtualLoop, workload: Workload, interval_s: float, for_s: float) -> list[float]:
    driver = Driver(loop, interval_s)

    async def play() -> None:
        driving = asyncio.ensure_future(workload.drive(driver))
        await asyncio.sleep(for_s)
        driving.cancel()

    loop.run_until_complete(play())
    return driver.sent_s


def test_requests_leave_at_the_interval(loop: VirtualLoop) -> None:
    assert times(loop, REQUESTS, 0.01, 0.045) == [0.0, 0.01, 0.02, 0.03, 0.04]


def test_requests_back_to_back_wait_for_the_answer(loop: VirtualLoop) -> None:
    assert times(loop, REQUESTS, 0.0, 0.010) == [0.0, 0.003, 0.006, 0.009]


def test_bursts_are_as_many_requests_in_the_mean(loop: VirtualLoop) -> None:
    assert times(loop, BURSTS, 0.01, 0.25) == [0.0] * 10 + [0.1] * 10 + [0.2] * 10
    assert BURST_REQUESTS == 10


def test_bursts_back_to_back_wait_for_every_answer(loop: VirtualLoop) -> None:
    assert times(loop, BURSTS, 0.0, 0.05) == [0.0] * 10 + [0.03] * 10


def test_late_sleeps_do_not_slow_the_load_down(loop: VirtualLoop) -> None:
    driver = Driver(loop, 0.01)

    async def play() -> None:
        driving = asyncio.ensure_future(REQUESTS.drive(driver))
        await asyncio.sleep(0.015)
        loop.now_s += 0.030  # the process did not run for a while
        await asyncio.sleep(0.020)
        driving.cancel()

    loop.run_until_complete(play())
    assert len(driver.sent_s) == 7  # at 0, 10, then at once those of 20, 30 and 40, then 50 and 60


def config(**changes: object) -> ClientConfig:
    return ClientConfig(server=Endpoint("127.0.0.1", 1), authority="", keys="", summary="", **changes)


def test_a_client_that_is_too_slow_says_by_how_much(loop: VirtualLoop) -> None:
    """At 25 ms of work for a request every 10 ms, each leaves 15 ms later than the one before."""
    driver = Driver(loop, 0.01)
    driver.costs_s = 0.025

    async def play() -> None:
        driving = asyncio.ensure_future(REQUESTS.drive(driver))
        await asyncio.sleep(0.2)
        driving.cancel()

    loop.run_until_complete(play())
    assert driver.behind_s[:5] == [0.015, 0.03, 0.045, 0.06, 0.075]


def test_a_client_that_keeps_up_is_not_behind(loop: VirtualLoop) -> None:
    driver = Driver(loop, 0.01)

    async def play() -> None:
        driving = asyncio.ensure_future(REQUESTS.drive(driver))
        await asyncio.sleep(0.095)
        driving.cancel()

    loop.run_until_complete(play())
    assert driver.behind_s == [0.0] * 9


@pytest.mark.parametrize(("name", "first"), [("requests", 1), ("bursts", BURST_REQUESTS)])
def test_the_schedule_follows_the_workload_of_its_configuration(
    loop: VirtualLoop, name: str, first: int
) -> None:
    sent: list[int] = []

    async def play() -> None:
        load = Load(
            config(workload=name), EventLog("client", sink=lambda _: None), lambda *_: None, lambda _: 0
        )
        schedule = LoadSchedule(
            config(workload=name, patience_s=0.0),
            load,
            lambda: load.request(lambda: sent.append(len(sent)) or len(sent)),
        )
        running = asyncio.ensure_future(schedule.run(asyncio.Event()))
        await asyncio.sleep(0.001)
        assert (len(sent), schedule.unanswered) == (first, first)
        load.received(1, header(Reply(session_count=1, total=1)), True, "127.0.0.1:1")
        assert schedule.unanswered == first - 1
        schedule.stopping.set()
        await running
        await asyncio.sleep(0)  # tasks that were cancelled end

    loop.run_until_complete(play())


@pytest.mark.parametrize(
    ("pieces_s", "ended_s", "lost"),
    [
        ([], 1.0, 1),  # nothing comes: one patience
        ([0.9, 1.8, 2.7], 2.7, 0),  # longer than that, and bytes come all the time
        ([0.9 * n for n in range(1, 9)], 4.0, 1),  # but not for ever
        ([0.5], 2.0, 1),  # it stood still
    ],
)
def test_what_still_comes_is_waited_for(
    loop: VirtualLoop, pieces_s: list[float], ended_s: float, lost: int
) -> None:
    """A bulk exchange over a slow path is not lost because it takes longer than a patience."""
    reply = header(Reply(session_count=1, total=1)).ljust(10_000, b" ")

    async def play() -> float:
        load = Load(config(), EventLog("client", sink=lambda _: None), lambda *_: None, lambda _: 0)
        schedule = LoadSchedule(config(patience_s=1.0), load, lambda: load.request(lambda: 1))
        running = asyncio.ensure_future(schedule.run(asyncio.Event(), delay_s=60.0))
        await asyncio.sleep(0)
        schedule.request()
        schedule.stopping.set()
        began_s = loop.time()
        for index, piece_s in enumerate(pieces_s):
            whole = lost == 0 and index == len(pieces_s) - 1
            piece = b"" if whole else reply[index * 100 : index * 100 + 100]
            loop.call_later(piece_s, load.received, 1, piece or reply[index * 100 :], whole, "127.0.0.1:1")
        await running
        assert load.summary().requests_lost == lost
        return loop.time() - began_s

    assert loop.run_until_complete(play()) == pytest.approx(ended_s, abs=0.01)


def test_a_request_for_an_unknown_workload_is_refused() -> None:
    assert to_spec({"workload": "bursts"}).workload == "bursts"
    with pytest.raises(InvalidInput, match="no workload 'flood'") as caught:
        to_spec({"workload": "flood"})
    assert "requests, bursts" in str(caught.value.hint)


def test_the_default_is_one_that_there_is() -> None:
    assert (
        RunSpec().workload
        == ClientConfig.__struct_defaults__[ClientConfig.__struct_fields__.index("workload") - 4]
    )
    assert workloads.get(RunSpec().workload) is REQUESTS
    for name in workloads.names():
        assert workloads.get(name).summary.endswith(".")


def drive(loop: VirtualLoop, name: str, interval_s: float, for_s: float, answer_s: float = 0.003) -> Driver:
    driver = Driver(loop, interval_s, answer_s)

    async def play() -> None:
        driving = asyncio.ensure_future(workloads.get(name).drive(driver))
        await asyncio.sleep(for_s)
        driving.cancel()

    loop.run_until_complete(play())
    return driver


def test_sporadic_requests_are_five_seconds_apart_by_default(loop: VirtualLoop) -> None:
    assert drive(loop, "sporadic", RunSpec().interval_ms / 1e3, 12).sent_s == [0, 5, 10]


def test_back_to_back_waits_for_nothing_but_the_answer(loop: VirtualLoop) -> None:
    assert drive(loop, "back-to-back", 5.0, 0.010).sent_s == [0.0, 0.003, 0.006, 0.009]


def test_a_client_that_thinks_pauses_after_each_answer(loop: VirtualLoop) -> None:
    sent = drive(loop, "think", 0.1, 200).sent_s
    pauses = [b - a - 0.003 for a, b in itertools.pairwise(sent)]
    assert min(pauses) >= -1e-6
    assert statistics.mean(pauses) == pytest.approx(0.1, rel=0.1)
    assert statistics.stdev(pauses) == pytest.approx(0.1, rel=0.15)  # exponential: as much as the mean


def test_telemetry_is_small_uploads(loop: VirtualLoop) -> None:
    driver = drive(loop, "telemetry", 0.1, 0.95)
    assert len(driver.sent_s) == 10
    assert {(shape.request_bytes, shape.answer_bytes) for shape in driver.shapes} == {(1000, 0)}


def test_a_game_is_60_datagrams_per_second(loop: VirtualLoop) -> None:
    driver = drive(loop, "game", 0.01, 9.999)
    assert len(driver.datagrams_s) == 600
    assert driver.sent_s == []


@pytest.mark.parametrize(
    ("name", "of_request", "of_answer"), [("download", None, 131072), ("upload", 131072, 0)]
)
def test_bulk_keeps_four_exchanges_open(
    loop: VirtualLoop, name: str, of_request: int | None, of_answer: int
) -> None:
    driver = drive(loop, name, 0.01, 0.0295, answer_s=0.010)
    assert driver.sent_s == [0.0] * 4 + [0.01, 0.02]
    assert {(s.request_bytes, s.answer_bytes) for s in driver.shapes} == {(of_request, of_answer)}


def test_a_video_stays_two_segments_ahead_and_counts_what_it_stood_still(loop: VirtualLoop) -> None:
    good = drive(loop, "video", 0.01, 9.5, answer_s=0.2)
    assert good.stalls_ms == []
    assert {shape.answer_bytes for shape in good.shapes} == {1_000_000}  # 1 s at 8 Mbit/s
    # two come at once, the third when there is room for it: from then on one per second
    assert good.sent_s[:2] == [0, 0.2]
    assert [round(b - a, 6) for a, b in itertools.pairwise(good.sent_s[3:])] == [1.0] * (len(good.sent_s) - 4)
    slow = drive(loop, "video", 0.01, 9.5, answer_s=1.5)
    assert slow.stalls_ms == [500.0] * 5  # each second of it takes a second and a half


def test_push_has_as_many_polls_at_the_server_as_events_are_on_their_way(loop: VirtualLoop) -> None:
    driver = drive(loop, "push", 0.1, 1.05, answer_s=0.05)
    assert [shape.delay_ms for shape in driver.shapes[:3]] == pytest.approx([100, 200, 300])
    assert {round(shape.delay_ms) for shape in driver.shapes[3:]} == {300}
    assert driver.sent_s[:3] == [0, 0, 0]
    assert driver.sent_s[3:] == pytest.approx([0.1 * number for number in range(1, 11)])


def test_a_mixture_is_shared_out_among_the_clients_in_turn() -> None:
    kinds = [workloads.of_client("video+push+game", f"client-{number}").name for number in (1, 2, 3, 4)]
    assert kinds == ["video", "push", "game", "video"]
    assert to_spec({"workload": "video+push", "clients": 2}).workload == "video+push"
    with pytest.raises(InvalidInput, match="2 workloads are shared out among 1 clients"):
        to_spec({"workload": "video+push"})
    with pytest.raises(InvalidInput, match="no workload 'flood'"):
        to_spec({"workload": "video+flood", "clients": 2})


def test_every_workload_says_what_useful_service_is() -> None:
    assert all(workloads.get(name).useful for name in workloads.names())


def test_how_long_a_client_may_ask_for_nothing() -> None:
    assert workloads.longest_pause_s("requests", 10.0) == pytest.approx(0.01)
    assert workloads.longest_pause_s("requests+video", 500.0) == pytest.approx(50.0)
    assert workloads.longest_pause_s("sporadic", 10.0) == pytest.approx(5.0)
    assert workloads.longest_pause_s("download", 500.0) == 0


@pytest.mark.parametrize(
    ("name", "interval_s", "polls"),
    [("push", 0.01, 30), ("push", 0.0, 30), ("push", 1.0, 2), ("requests", 0.01, 0), ("video", 0.01, 0)],
)
def test_only_polls_wait_at_the_server(name: str, interval_s: float, polls: int) -> None:
    assert workloads.polls_ahead(workloads.get(name), interval_s) == polls


@pytest.mark.parametrize("workload", workloads.table().values(), ids=lambda each: each.name)
def test_without_an_interval_nothing_floods(loop: VirtualLoop, workload: Workload) -> None:
    """Each waits for answers, or keeps a pace of its own: it asks no faster than is answered."""
    most_open = max(BURST_REQUESTS, workloads.polls_ahead(workload, 0.0))
    assert len(times(loop, workload, 0.0, 0.3)) <= 0.3 / 0.003 + most_open + 1
