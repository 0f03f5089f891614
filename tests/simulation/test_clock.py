"""The virtual clock and the simulated process: what asyncio promises holds, and no time passes."""

from __future__ import annotations

import asyncio
import time

import pytest

from simulation.clock import START_S, Deadlock, VirtualLoop
from simulation.process import Process


def test_a_day_passes_in_no_time() -> None:
    loop = VirtualLoop()
    began = time.monotonic()
    loop.run_until_complete(asyncio.sleep(86_400))
    assert loop.time() == START_S + 86_400
    assert time.monotonic() - began < 5
    loop.close()


def test_timers_come_in_order_and_equal_ones_as_they_were_set() -> None:
    loop = VirtualLoop()
    seen: list[str] = []
    for delay_s, name in ((0.2, "c"), (0.1, "a"), (0.2, "d"), (0.1, "b")):
        loop.call_later(delay_s, seen.append, name)
    loop.run_until_complete(asyncio.sleep(1))
    assert seen == ["a", "b", "c", "d"]
    loop.close()


def test_a_timeout_fires_at_its_time() -> None:
    async def waits() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.75):
                await asyncio.sleep(10)
        return asyncio.get_running_loop().time()

    loop = VirtualLoop()
    assert loop.run_until_complete(waits()) == START_S + 0.75
    loop.close()


def test_waiting_for_nothing_is_a_deadlock() -> None:
    loop = VirtualLoop()
    future = loop.create_future()
    with pytest.raises(Deadlock):
        loop.run_until_complete(future)
    loop.close()


def _ticking(loop: VirtualLoop, process: Process, seen: list[float]) -> None:
    async def tick() -> None:
        while True:
            seen.append(round(loop.time() - START_S, 3))
            await asyncio.sleep(1.0)

    process.spawn(tick())


def test_a_stopped_process_runs_late_and_a_killed_one_never() -> None:
    loop = VirtualLoop()
    stopped, killed = Process(loop, "stopped", "a"), Process(loop, "killed", "b")
    of_stopped: list[float] = []
    of_killed: list[float] = []
    _ticking(loop, stopped, of_stopped)
    _ticking(loop, killed, of_killed)
    loop.physics(1.5, stopped.stop)
    loop.physics(4.25, stopped.go_on)
    loop.physics(2.5, killed.kill)
    loop.run_until_complete(asyncio.sleep(5.5))
    assert of_stopped == [0.0, 1.0, 4.25, 5.25]
    assert of_killed == [0.0, 1.0, 2.0]
    for process in (stopped, killed):
        process.bury()
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_no_finally_runs_in_a_killed_process() -> None:
    loop = VirtualLoop()
    process = Process(loop, "killed", "a")
    seen: list[str] = []

    async def works() -> None:
        try:
            await asyncio.sleep(1.0)
        finally:
            seen.append("cleaned up")

    process.spawn(works())
    loop.physics(0.5, process.kill)
    loop.run_until_complete(asyncio.sleep(2.0))
    assert not seen
    process.bury()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_what_is_under_way_arrives_though_its_sender_has_died() -> None:
    loop = VirtualLoop()
    process = Process(loop, "sender", "a")
    seen: list[str] = []

    async def send() -> None:
        loop.physics(1.0, seen.append, "arrived")

    process.spawn(send())
    loop.physics(0.5, process.kill)
    loop.run_until_complete(asyncio.sleep(2.0))
    assert seen == ["arrived"]
    loop.close()


def test_a_host_whose_clock_is_ahead_lives_by_its_own_time() -> None:
    loop = VirtualLoop()
    loop.clock.skewed = True
    ahead, right = Process(loop, "ahead", "edge-1"), Process(loop, "right", "edge-2")
    ahead.ahead_s = 2.5
    seen: dict[str, tuple[float, float]] = {}

    async def waits(name: str) -> None:
        began = loop.time()
        await asyncio.sleep(1.0)
        seen[name] = (began, loop.time() - began)

    async def both() -> None:
        await asyncio.gather(ahead.spawn(waits("ahead")), right.spawn(waits("right")))

    loop.run_until_complete(both())
    assert seen == {"ahead": (START_S + 2.5, 1.0), "right": (START_S, 1.0)}
    assert loop.time() == pytest.approx(START_S + 1.0)
    loop.close()
