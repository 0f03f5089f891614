"""Whoever a run stands on is killed in the middle of it: the run ends soon, and says who it was."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from quicferry.emulation.sandbox import ownership
from quicferry.paths import CHECKOUT
from quicferry.process import DEVNULL, TimeoutExpired, spawn
from tests.waiting import eventually

ENDS_S = 15.0
#: who is killed: a part of its command, and the words by which the run names it
VICTIMS = {
    "destination's agent": ("agent-edge-2.json", "agent-edge-2 was killed by SIGKILL"),
    "orchestrator": ("orchestrator.json", "orchestrator was killed by SIGKILL"),
    "client": ("client.json", "client was killed by SIGKILL"),
    "cable": ("quicferry.emulation.links.cable", "the cable was killed by SIGKILL"),
}


class Ended(NamedTuple):
    status: int
    took_s: float
    error: str
    left: list[str]


def kill_in_the_middle(command: str, folder: Path) -> Ended:
    words = ["run", "--before-s", "120", "--link-backend", "cable", "--json", "--runs", str(folder / "runs")]
    folder.mkdir()
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        tool = spawn([CHECKOUT / "bin" / "quicferry", *words], stdin=DEVNULL, stdout=out, stderr=err)
    tag = ownership.tool_tag(tool.pid)

    def mine() -> list[ownership.TaggedProcess]:
        return [process for process in ownership.tagged_processes() if process.tool == tag]

    def runs(word: str) -> list[int]:
        return [
            process.pid for process in mine() if word in process.command and "sh -c" not in process.command
        ]

    try:
        # the client is started last
        assert eventually(lambda: runs("client.json") or tool.poll() is not None, 180)
        time.sleep(1.0)
        os.kill(runs(command)[-1], signal.SIGKILL)
        begun = time.monotonic()
        try:
            status = tool.wait(3 * ENDS_S)
        except TimeoutExpired:
            status = -1
        took_s = time.monotonic() - begun
        eventually(lambda: not mine(), 5)
        printed = (folder / "out").read_text()
        error = str(json.loads(printed)["error"]) if printed else (folder / "err").read_text()
        return Ended(status, took_s, error, [process.command for process in mine()])
    finally:
        tool.kill()
        tool.wait()


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Ended]]]:
    folder = tmp_path_factory.mktemp("dead")
    with ThreadPoolExecutor(len(VICTIMS)) as pool:
        yield {
            name: pool.submit(kill_in_the_middle, command, folder / str(number))
            for number, (name, (command, _)) in enumerate(VICTIMS.items())
        }


@pytest.mark.needs("mininet", "tshark", "shaped-link")
@pytest.mark.parametrize("name", VICTIMS)
def test_the_run_ends_soon_and_names_who_died(name: str, ended: dict[str, Future[Ended]]) -> None:
    seen = ended[name].result()
    assert VICTIMS[name][1] in seen.error
    assert seen.status == 1
    assert seen.took_s < ENDS_S
    assert seen.left == []
