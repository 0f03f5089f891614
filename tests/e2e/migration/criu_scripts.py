"""Scripts about two edge hosts: how a test has one played, and what tests of several engines expect alike.

A script has a coroutine ``play`` and finds there all of ``criu_support``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.e2e.support import in_private_root

PRELUDE = """
import asyncio, os, signal, subprocess, sys, time
from pathlib import Path
from quicferry.errors import MigrationError
from quicferry.migration.order import Deadlines
from tests.e2e.migration.criu_support import *
"""
#: For a script: the words of a program that holds the port of the service.
SQUAT = """
SQUAT = "import socket, time; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 4433)); time.sleep(60)"
"""


def played(
    script: str, directory: Path, *, timeout_s: float = 120.0, arguments: Any = None, **words: str
) -> Any:
    """Run the coroutine ``play`` of the script in a private root; what it returned.

    ``words``: words of the script, and what stands in their place.
    """
    for word, value in words.items():
        script = script.replace(word, value)
    whole = f"{PRELUDE}{script}\nreport(asyncio.run(play()))\n"
    return in_private_root(whole, directory, arguments=arguments, timeout_s=timeout_s)


def check_hops(got: dict[str, Any], moves: int) -> None:
    """What ``criu_support.hops`` returned is the way of one server, and nothing is left where it has been."""
    assert [answer["requests"] for answer in got["seen"]] == list(range(2, moves + 3)), "state lives on"
    assert got["seen"][-1]["orders"] == ["Freeze", "Resume"] * moves
    assert got["processes"] == {"edge-1": 1 - moves % 2, "edge-2": moves % 2}
    assert got["files"] == [], "images are not kept after a move"


def check_way_back(got: dict[str, Any]) -> None:
    """A move that failed led ``back``, and the next one worked."""
    assert got["back"]["orders"] == ["Freeze", "Abort"]
    assert got["moved"]["orders"] == ["Freeze", "Abort", "Freeze", "Resume"]
    assert got["moved"]["sha256"] == got["before"]["sha256"]
    assert got["back"]["requests"] == got["before"]["requests"] + 1


CALLED_OFF = """
async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        await a.start_server("20")
        before = await a.ask()
        move = order(1, a, b)
        await prepare(move, a, b)
        stream = a.engine.checkpoint(move)
        first = await anext(stream)
        await stream.aclose()
        said = await broken_off(move, a, b, [first[: len(first) // 2]])
        back = await a.ask()
        await whole_move(2, a, b)
        return dict(said=said, before=before, back=back, moved=await b.ask())
"""


def check_called_off(tmp_path: Path, engine: str) -> None:
    """A move that ends in its first piece of memory leads back to the source, and the next one works."""
    got = played(CALLED_OFF, tmp_path, ENGINE=engine)
    assert "cut off" in got["said"]
    check_way_back(got)


def check_there_and_back(got):
    """A server has moved there and back with all it knew; the source stood still until the commit."""
    before, there, back = got["before"], got["there"], got["back"]
    assert (there["requests"], back["requests"]) == (before["requests"] + 1, before["requests"] + 2)
    assert there["sha256"] == back["sha256"] == before["sha256"]
    assert back["orders"] == ["Freeze", "Resume"] * 2
    assert before["t_ns"] < got["resumed"]["t_ns"] < there["t_ns"] < got["now"], "the clock is the machine's"
    assert got["silent"] is None and got["stopped"], "until the commit the source's container stands still"
