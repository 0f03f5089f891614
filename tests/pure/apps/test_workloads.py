"""How requests are spread over time: the workloads that there are, and the schedule that follows them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from apps.client import workloads
from apps.client.load import Load
from apps.client.load_schedule import LoadSchedule
from apps.client.workloads import BURST_REQUESTS, BURSTS, REQUESTS, Workload
from apps.config import ClientConfig
from apps.workload import Reply, header
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

    def request(self) -> None:
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
