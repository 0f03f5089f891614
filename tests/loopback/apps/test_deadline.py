"""A deadline that moves: the loop is asked only when it moves to an earlier time."""

from __future__ import annotations

import asyncio
from typing import Any

from apps.deadline import Deadline
from quicferry.units import now_s


class Counted:
    """Counts the timers that the running loop is asked for."""

    def __init__(self, monkeypatch: Any) -> None:
        self.asked = 0
        loop = asyncio.get_running_loop()
        call_at = loop.call_at

        def counted(*arguments: Any, **keywords: Any) -> asyncio.TimerHandle:
            self.asked += 1
            return call_at(*arguments, **keywords)

        monkeypatch.setattr(loop, "call_at", counted)


def _firing(came: list[float]) -> tuple[asyncio.Event, Deadline]:
    fired = asyncio.Event()

    def due(now: float) -> None:
        came.append(now)
        fired.set()

    return fired, Deadline(due)


def test_a_deadline_that_moves_later_costs_no_timer_and_comes_once(monkeypatch):
    came: list[float] = []

    async def play() -> tuple[float, int]:
        counted = Counted(monkeypatch)
        fired, deadline = _firing(came)
        begun = now_s()
        for number in range(100):
            deadline.set(begun + 0.02 + number * 0.001)
        asked = counted.asked
        await fired.wait()
        await asyncio.sleep(0.05)
        return begun, asked

    begun, asked = asyncio.run(play())
    assert asked == 1
    assert len(came) == 1
    assert came[0] >= begun + 0.02 + 99 * 0.001


def test_a_deadline_that_moves_earlier_comes_earlier():
    came: list[float] = []

    async def play() -> float:
        fired, deadline = _firing(came)
        begun = now_s()
        deadline.set(begun + 30)
        deadline.set(begun + 0.01)
        await fired.wait()
        return begun

    begun = asyncio.run(play())
    assert begun + 0.01 <= came[0] < begun + 15


def test_what_is_called_off_does_not_come():
    came: list[float] = []

    async def play() -> None:
        first, second = Deadline(came.append), Deadline(came.append)
        first.set(now_s() + 0.01)
        first.cancel()
        second.set(now_s() + 0.01)
        second.set(None)
        await asyncio.sleep(0.05)

    asyncio.run(play())
    assert came == []
