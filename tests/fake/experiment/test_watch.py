"""What a run stands on is watched: its end is raised in the main thread, whatever that waits for."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from quicferry.errors import MigrationError
from quicferry.experiment.context import Program
from quicferry.experiment.watch import LOOK_S, Watch


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
    begun = time.monotonic()
    with pytest.raises(MigrationError, match="agent-edge-1 was killed"), Watch(watched):
        waiting()
    assert time.monotonic() - begun < 2.0  # noticed within two seconds
    assert watched.is_broken


def test_nothing_is_raised_afterwards() -> None:
    with Watch(context(ends_after_s=0.05)) as watch:
        watch._over.set()  # the block is about to end when the process does
        time.sleep(3 * LOOK_S)


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
    process = cast(Any, SimpleNamespace(stdout=None, poll=lambda: status))
    program = Program("client", process, log, lambda line: None)
    program.is_to_end = is_to_end
    found = program.ended()
    assert (None if found is None else str(found)) == words
