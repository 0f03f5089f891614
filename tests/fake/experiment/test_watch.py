"""What a run stands on is watched: its end is raised in the main thread, whatever that waits for."""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quicferry.errors import MigrationError
from quicferry.experiment.container_watch import ContainerWatch
from quicferry.experiment.context import Program
from quicferry.experiment.watch import CAUSE_S, LOOK_S, Watch
from quicferry.process import PIPE, STILL_S, Popen, Stillness, spawn, state_of, stop
from tests.waiting import OwnTime, eventually


def context(ends_after_s: float) -> Any:
    begun = time.monotonic()

    def ended() -> MigrationError | None:
        gone = time.monotonic() - begun > ends_after_s
        return MigrationError("agent-edge-1 was killed by SIGKILL") if gone else None

    return cast(Any, SimpleNamespace(ended=ended, is_broken=False))


def wait_for_a_lock() -> None:
    threading.Condition().acquire()
    threading.Event().wait(30)


@pytest.mark.parametrize(
    "waiting",
    [lambda: time.sleep(30), wait_for_a_lock, lambda: queue.SimpleQueue().get(timeout=30)],
    ids=["sleep", "event", "queue"],
)
def test_whatever_waits_hears_of_it(waiting: Callable[[], None]) -> None:
    watched = context(ends_after_s=0.1)
    with OwnTime() as took, pytest.raises(MigrationError, match="agent-edge-1 was killed"), Watch(watched):
        waiting()
    assert took.seconds < 2.0  # noticed within two seconds
    assert watched.is_broken


def test_nothing_is_raised_afterwards() -> None:
    with Watch(context(ends_after_s=0.05)) as watch:
        watch._over.set()  # the block is about to end when the process does
        time.sleep(3 * LOOK_S)


def test_the_cause_is_told_before_what_follows_from_it() -> None:
    """Who asked it notices first that nobody answers; who stands still is known a second later."""
    words = "^agent-edge-1 was killed by SIGKILL; nobody answers$"
    watched = context(ends_after_s=STILL_S)
    with OwnTime() as took, pytest.raises(MigrationError, match=words), Watch(watched):
        raise MigrationError("nobody answers")
    assert took.seconds < CAUSE_S + 1.0


def test_an_error_of_its_own_stays_as_it_is() -> None:
    with pytest.raises(MigrationError, match=r"^nobody answers$"), Watch(context(ends_after_s=60)):
        raise MigrationError("nobody answers")


@pytest.fixture
def sleeping() -> Iterator[Popen[bytes]]:
    process = spawn(["sleep", "60"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_process_that_was_stopped_is_known_within_two_seconds(sleeping: Popen[bytes]) -> None:
    stillness = Stillness()
    assert not stillness.is_for_good(sleeping.pid)
    sleeping.send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    with OwnTime() as took:
        assert eventually(lambda: stillness.is_for_good(sleeping.pid))
    assert time.monotonic() - begun >= STILL_S
    assert took.seconds < STILL_S + 0.5
    sleeping.send_signal(signal.SIGCONT)
    assert eventually(lambda: not stillness.is_for_good(sleeping.pid))
    # a new stop counts from its own beginning
    sleeping.send_signal(signal.SIGSTOP)
    assert eventually(lambda: state_of(sleeping.pid) == "T")
    assert not stillness.is_for_good(sleeping.pid)


def test_who_stands_still_is_ended_all_the_same(sleeping: Popen[bytes]) -> None:
    sleeping.send_signal(signal.SIGSTOP)
    with OwnTime() as took:
        assert stop(sleeping, grace_s=20.0) == -signal.SIGTERM
    assert took.seconds < 10.0


@pytest.mark.parametrize("is_held", [False, True])
def test_a_program_that_stands_still(tmp_path: Any, sleeping: Popen[bytes], is_held: bool) -> None:
    """Not one that a fault has stopped, and will let go on."""
    program = Program("orchestrator", sleeping, tmp_path / "log", lambda line: None)
    program.is_held = is_held
    sleeping.send_signal(signal.SIGSTOP)
    assert eventually(lambda: state_of(sleeping.pid) == "T")
    assert program.ended() is None
    time.sleep(STILL_S + 0.1)
    words = "orchestrator stands still (SIGSTOP) in the middle of the run"
    assert str(program.ended()) == ("None" if is_held else words)


class Container:
    """Stands where a container's first process is, with the server as its child."""

    def __init__(self) -> None:
        script = "import os, signal; child = os.fork(); child and print(child, flush=True); signal.pause()"
        self.process = spawn([sys.executable, "-c", script], stdout=PIPE)
        assert self.process.stdout is not None
        self.server = int(self.process.stdout.readline())
        self.process.stdout.close()

    def end(self) -> None:
        for pid in (self.process.pid, self.server):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def container() -> Iterator[Container]:
    made = Container()
    yield made
    made.end()


def told(watch: ContainerWatch) -> str:
    seen: list[str] = []
    assert eventually(lambda: bool(seen.append(str(watch.ended())) or seen[-1] != "None"))
    return seen[-1]


def test_a_server_that_has_died_is_missed_but_not_in_a_move(container: Container) -> None:
    moving = False
    watch = ContainerWatch(lambda: not moving)
    watch.add("edge-1", container.process.pid)
    assert watch.ended() is None
    moving = True
    os.kill(container.server, signal.SIGKILL)
    assert eventually(lambda: state_of(container.server) is None)
    assert [watch.ended() for _ in range(3)] == [None] * 3
    moving = False
    assert told(watch) == "the server at edge-1 has ended in the middle of the run"


def test_a_server_or_a_container_that_stands_still(container: Container) -> None:
    for pid, who in ((container.server, "server at edge-1"), (container.process.pid, "container of edge-1")):
        watch = ContainerWatch(lambda: True)
        watch.add("edge-1", container.process.pid)
        os.kill(pid, signal.SIGSTOP)
        assert told(watch) == f"the {who} stands still (SIGSTOP) in the middle of the run"
        os.kill(pid, signal.SIGCONT)
        assert eventually(lambda pid=pid: state_of(pid) != "T")


def test_a_container_that_has_ended(container: Container) -> None:
    watch = ContainerWatch(lambda: False)
    watch.add("edge-1", container.process.pid)
    container.process.kill()
    assert told(watch) == "the container of edge-1 has ended in the middle of the run"


def test_all_is_well() -> None:
    watched = context(ends_after_s=60)
    with Watch(watched):
        time.sleep(3 * LOOK_S)
    assert not watched.is_broken


@pytest.mark.parametrize(
    ("status", "is_to_end", "words"),
    [
        (None, False, None),
        (0, False, None),  # it had nothing more to do
        (-9, False, "client was killed by SIGKILL in the middle of the run"),
        (3, False, "client ended with status 3 in the middle of the run: no room"),
        (-9, True, None),  # somebody is ending it
    ],
)
def test_who_ended_by_itself(tmp_path: Any, status: int | None, is_to_end: bool, words: str | None) -> None:
    log = tmp_path / "client.log"
    log.write_text("something\nno room\nhint: make some\n")
    process = cast(Any, SimpleNamespace(stdout=None, pid=None, poll=lambda: status))
    program = Program("client", process, log, lambda line: None)
    program.is_to_end = is_to_end
    found = program.ended()
    assert (None if found is None else str(found)) == words
