"""Whose turn it is among many clients: a few at a time, nobody is held up by those who are silent."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from apps.server import notice_window as turns
from apps.server.connections import Peer
from apps.server.notice_window import AT_ONCE, NoticeWindow
from quicferry.quic import MigratableConnection


class Caller:
    """Notes who had a turn."""

    def __init__(self, *, answers: bool = True) -> None:
        self.taken: list[str] = []
        self._answers = answers

    def __call__(self, peer: Peer) -> bool:
        self.taken.append(peer.key)
        return self._answers


def crowd(size: int) -> list[Peer]:
    # nothing of a connection is asked for
    return [
        Peer(str(number), cast(MigratableConnection, None), lambda peer, now: None) for number in range(size)
    ]


def test_a_few_have_their_turn_at_once() -> None:
    async def play() -> None:
        call, peers = Caller(), crowd(AT_ONCE)
        line = NoticeWindow(peers, call)
        line.go_on()
        assert call.taken == [peer.key for peer in peers]
        assert line.over.is_set()

    asyncio.run(play())


def test_the_next_ones_wait_for_answers() -> None:
    async def play() -> None:
        call, peers = Caller(), crowd(AT_ONCE + 3)
        line = NoticeWindow(peers, call)
        line.go_on()
        assert len(call.taken) == AT_ONCE
        assert not line.heard(peers[0])
        assert not line.heard(peers[-1]), "it is served as always while it waits to be told"
        line.go_on()
        assert call.taken[-1] == peers[AT_ONCE].key and len(call.taken) == AT_ONCE + 1
        line.drop()
        assert line.over.is_set()
        line.go_on()
        assert len(call.taken) == AT_ONCE + 1

    asyncio.run(play())


def test_those_of_whom_no_answer_is_expected_take_no_time() -> None:
    async def play() -> None:
        call = Caller(answers=False)
        line = NoticeWindow(crowd(500), call)
        line.go_on()
        assert len(call.taken) == 500
        assert line.over.is_set()

    asyncio.run(play())


def test_silent_ones_hold_nobody_up() -> None:
    #: wire-format 7.1: SHOULD NOT wait longer than a deadline for any one client
    async def play() -> None:
        call = Caller()
        line = NoticeWindow(crowd(3 * AT_ONCE), call)
        line.go_on()
        async with asyncio.timeout(2.0):
            await line.over.wait()
        assert len(call.taken) == 3 * AT_ONCE

    asyncio.run(play())


def test_who_asks_comes_first_when_nothing_may_leave() -> None:
    async def play() -> None:
        call, peers = Caller(), crowd(AT_ONCE + 3)
        line = NoticeWindow(peers, call, holding=True)
        assert line.heard(peers[-1])
        line.go_on()
        assert call.taken[0] == peers[-1].key
        assert not line.heard(peers[-1]), "it has had its turn"
        line.finish()
        assert sorted(map(int, call.taken)) == list(range(AT_ONCE + 3))

    asyncio.run(play())


@pytest.mark.parametrize("end", ["finish", "drop"])
def test_no_timer_outlives_it(end: str) -> None:
    async def play() -> int:
        call = Caller()
        line = NoticeWindow(crowd(2 * AT_ONCE), call)
        line.go_on()
        getattr(line, end)()
        told = len(call.taken)
        await asyncio.sleep(2 * turns.TURN_S)
        assert len(call.taken) == told
        return told

    assert asyncio.run(play()) == {"finish": 2 * AT_ONCE, "drop": AT_ONCE}[end]


def told_in_turns(queued_s: float, turns_: int) -> int:
    """How many have been told when all that were told have answered so often."""

    async def play() -> int:
        call, peers = Caller(), crowd(20 * AT_ONCE)
        line = NoticeWindow(peers, call, queued_s=lambda _: queued_s)
        line.go_on()
        answered = 0
        for _ in range(turns_):
            told = len(call.taken)
            for peer in peers[answered:told]:
                line.heard(peer)
            answered = told
            line.go_on()
        line.drop()
        return len(call.taken)

    return asyncio.run(play())


def test_more_are_told_at_once_while_answers_come_without_delay() -> None:
    assert told_in_turns(0.0, 3) == AT_ONCE * (1 + 1.5 + 1.5**2 + 1.5**3)


def test_answers_that_waited_in_line_leave_it_at_a_few() -> None:
    assert told_in_turns(2 * turns.QUEUED_S, 3) == 4 * AT_ONCE


@pytest.mark.parametrize("queued_s", [0.0, 1.0])
def test_places_are_kept_longer_while_answers_wait_in_line(
    monkeypatch: pytest.MonkeyPatch, queued_s: float
) -> None:
    now_s = [1000.0]
    monkeypatch.setattr(turns, "now_s", lambda: now_s[0])

    async def play() -> int:
        call, peers = Caller(), crowd(4 * AT_ONCE)
        line = NoticeWindow(peers, call, queued_s=lambda _: queued_s)
        line.go_on()
        for peer in peers[:AT_ONCE]:  # all of the first answer; of the next nobody does
            line.heard(peer)
        line.go_on()
        told = len(call.taken)
        now_s[0] += turns.TURN_S
        line.go_on()
        given_on = len(call.taken) - told
        now_s[0] += turns.TURN_MOST_S
        line.go_on()
        assert len(call.taken) > told, "nobody is held up for good"
        line.drop()
        return given_on

    given_on = asyncio.run(play())
    assert (given_on > 0) == (queued_s == 0.0)
