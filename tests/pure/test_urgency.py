"""Who is hastened while a server stands still, and that nobody stays so."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from quicferry import urgency
from quicferry.urgency import Urgency, calm


def is_hastened(thread: int) -> bool:
    return os.sched_getscheduler(thread) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR


def may_hasten() -> bool:
    code = "import os; os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


needs_real_time = pytest.mark.skipif(not may_hasten(), reason="this process may not use SCHED_RR")


@pytest.fixture
def server() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process.pid
        process.kill()


@needs_real_time
def test_agent_and_server_are_hastened_until_the_end(server: int) -> None:
    async def play() -> None:
        haste, over = Urgency(lambda: server), threading.Event()
        other = threading.Thread(target=over.wait)
        other.start()
        assert other.native_id is not None
        everybody = (os.getpid(), other.native_id, server)
        try:
            haste.begin()
            haste.begin()  # the word may come twice
            assert all(map(is_hastened, everybody))
            haste.end()
            haste.end()
            assert not any(map(is_hastened, everybody))
        finally:
            over.set()
            other.join()

    asyncio.run(play())


@needs_real_time
def test_whom_nobody_calms_a_clock_does(server: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urgency, "LONGEST_S", 0.02)

    async def play() -> None:
        Urgency(lambda: server).begin()
        assert is_hastened(server)
        await asyncio.sleep(0.1)
        assert not is_hastened(server) and not is_hastened(os.getpid())

    asyncio.run(play())


@needs_real_time
def test_a_server_calms_itself() -> None:
    os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    calm()
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    calm()


def test_who_was_not_hastened_stays_as_it_is() -> None:
    before = os.sched_getscheduler(0)
    calm()
    assert os.sched_getscheduler(0) == before


def test_nothing_is_hastened_where_agents_share_a_process() -> None:
    async def play() -> None:
        haste = Urgency()
        haste.begin()
        assert not is_hastened(0)
        haste.end()

    asyncio.run(play())


def test_a_server_that_is_gone_and_a_kernel_that_refuses_are_no_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "sched_setscheduler", refuse)

    async def play() -> None:
        haste = Urgency(lambda: None)
        haste.begin()
        haste.end()

    asyncio.run(play())


@needs_real_time
def test_a_successor_calms_the_server_of_an_agent_that_was_killed(server: int) -> None:
    os.sched_setscheduler(server, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    Urgency(lambda: None).take_back()
    Urgency().take_back()
    assert is_hastened(server)
    Urgency(lambda: server).take_back()
    assert not is_hastened(server)
