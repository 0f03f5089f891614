"""Pre-copy, post-copy and hybrid by CRIU's own machinery. Rounds need a kernel that tracks written pages."""

import pytest

from tests.e2e.support import in_private_root

PRELUDE = """
import asyncio, os, signal, sys, time
from pathlib import Path
from quicferry.errors import MigrationError
from quicferry.migration.engines.base import Deadlines
from tests.e2e.criu_support import *
"""
TRACKS = pytest.mark.needs("criu-tracking")
ENGINES = [
    "criu-post-copy/criu",
    pytest.param("criu-pre-copy/criu", marks=TRACKS),
    pytest.param("criu-hybrid/criu", marks=TRACKS),
]

pytestmark = pytest.mark.needs("criu", "criu-lazy-pages", "criu-page-server")


def played(script, tmp_path, **words):
    """Run the coroutine ``play`` of the script in a private root; what it returned."""
    for word, value in words.items():
        script = script.replace(word, value)
    return in_private_root(PRELUDE + script + "\nreport(asyncio.run(play()))\n", tmp_path, timeout_s=600)


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_whole_after_there_and_back(tmp_path, engine):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        await a.start_server("50", "writes")
        seen, drained = [], []
        for epoch in range(1, 3):
            seen.append(await a.ask(60.0))
            move = order(epoch, a, b)
            await carry(move, a, b)
            drained.append(await settle(move, a))
            seen.append(await b.ask(60.0))
            a, b = b, a
        await asyncio.sleep(0.3)
        images = [str(p) for p in b.container.path("/run/state").rglob("*")]
        processes = {edge.name: len(edge.container.processes()) for edge in (a, b)}
        details = lambda name: [e.detail for e in a.seen + b.seen if e.name == name]
        return dict(seen=seen, processes=processes, at=a.name, images=images, drained=drained,
            rounds=details("migration.precopy.round.complete"),
            taken=details("migration.checkpoint.complete"))
""",
        tmp_path,
        ENGINE=engine,
    )
    assert [answer["requests"] for answer in got["seen"]] == [2, 3, 4, 5]
    written = [answer["written"] for answer in got["seen"]]
    assert written == sorted(written)
    assert got["seen"][-1]["orders"] == ["Freeze", "Resume"] * 2
    assert got["processes"] == {"edge-1": 1, "edge-2": 0}
    assert got["images"] == [], "images are not kept after a move"
    pages = [drained["pages"] for drained in got["drained"]]
    first_rounds = [detail["pages"] for detail in got["rounds"] if detail["round"] == 1]
    if engine.startswith("criu-post-copy"):
        assert min(pages) > 50 * 256
        assert min(drained["bytes"] for drained in got["drained"]) > 50 << 20
    else:
        assert len(first_rounds) == 2
        assert min(first_rounds) > 50 * 256
        assert max(pages) < 10 * 256, "what was written after the last round, and nothing else"
    assert (max(pages) == 0) == engine.startswith("criu-pre-copy"), "pre-copy needs the source no longer"
    assert all("CRIU's" in detail["method"] for detail in got["taken"])


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_the_same_afterwards(tmp_path, engine):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        await a.start_server("20")
        before = await a.ask(60.0)
        move = order(1, a, b)
        await carry(move, a, b)
        await settle(move, a)
        return dict(before=before, after=await b.ask(60.0))
""",
        tmp_path,
        ENGINE=engine,
    )
    assert got["after"]["sha256"] == got["before"]["sha256"]
    assert got["after"]["pid"] == got["before"]["pid"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_move_that_is_called_off_leads_back_to_the_source(tmp_path, engine):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        await a.start_server("20")
        before = await a.ask(60.0)
        move = order(1, a, b)
        await prepare(move, a, b)
        chunks = [chunk async for chunk in a.engine.checkpoint(move)]

        async def broken():
            for chunk in chunks[:-1]:
                yield chunk
        try:
            await b.engine.restore(move, broken())
        except MigrationError as error:
            said = str(error)
        await b.engine.abandon_destination(move, "cut off")
        await a.engine.resume_source(move, "cut off")
        back = await a.ask(60.0)
        left = [p.argv for p in a.container.processes() if "criu" in " ".join(p.argv[:1])]
        move = order(2, a, b)
        await carry(move, a, b)
        await settle(move, a)
        return dict(said=said, before=before, back=back, left=left, moved=await b.ask(60.0))
""",
        tmp_path,
        ENGINE=engine,
    )
    assert "cut off" in got["said"]
    assert got["left"] == [], "CRIU's page server has gone"
    assert got["back"]["orders"] == ["Freeze", "Abort"]
    assert got["moved"]["orders"] == ["Freeze", "Abort", "Freeze", "Resume"]
    assert got["moved"]["sha256"] == got["before"]["sha256"]


DISTURBED = """
async def play():
    async with edges("edge-1", "edge-2", engine="criu-post-copy/criu") as (a, b):
        await a.start_server("50")
        before = await a.ask(60.0)
        move = order(1, a, b, deadlines=Deadlines(pages_s=PATIENCE, restore_s=30.0))
        await carry(move, a, b)
        DISTURBANCE
        try:
            drained = await asyncio.wait_for(a.engine.drain_source(move), PATIENCE)
        except (MigrationError, TimeoutError) as error:
            drained = str(error)
        stopped = a.container.is_stopped(before["pid"])
        await a.engine.give_up_source(move)
        after = await b.ask(2.0)
        return dict(before=before, after=after, drained=drained, streams=TunnelStream.opened,
            stopped=stopped, left=[p.state for p in b.container.processes()])
"""
CUT_AND_MENDED = """
        TunnelStream.broken = True
        await asyncio.sleep(0.3)
        TunnelStream.broken = False
"""


def test_a_link_that_comes_back_is_waited_for(tmp_path):
    got = played(DISTURBED, tmp_path, DISTURBANCE=CUT_AND_MENDED.strip(), PATIENCE="60.0")
    assert got["streams"] >= 3
    assert got["drained"]["pages"] > 50 * 256
    assert got["after"]["sha256"] == got["before"]["sha256"]


def test_without_the_page_server_the_service_is_lost_and_nothing_pretends(tmp_path):
    got = played(DISTURBED, tmp_path, DISTURBANCE="await a.engine._server.kill()", PATIENCE="20.0")
    assert "criu lazy-pages failed" in got["drained"]
    assert got["stopped"], "the source does not serve again: clients have seen what happened since"
    assert got["after"] is None, "a server that lacks memory does not answer with zeros in its place"
    assert got["left"] == [], "and it is ended"


def test_without_the_daemon_the_service_is_lost_and_nothing_pretends(tmp_path):
    got = played(
        DISTURBED, tmp_path, DISTURBANCE="os.kill(b.engine._daemon.pid, signal.SIGKILL)", PATIENCE="20.0"
    )
    assert "criu lazy-pages failed" in got["drained"]
    assert got["after"] is None
    assert got["left"] == []


def test_a_server_without_all_its_memory_dies_with_its_agent(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="criu-post-copy/criu") as (a, b):
        pid = await a.start_server("50")
        move = order(1, a, b)
        await carry(move, a, b)
        TunnelStream.broken = True
        # by its PID: the words of its command line may be among the pages that are missing
        states = [p.state for p in b.container.processes() if p.pid == pid]
        # what the end of the agent closes
        b.engine._finishing.cancel()
        for guard in b.engine._guards:
            guard.stdin.close()
        b.engine._daemon.process.kill()
        await asyncio.sleep(0.5)
        after = await b.ask(1.0)
        b.engine._guards.clear()
        return dict(after=after, states=states, left=[p.state for p in b.container.processes()])
""",
        tmp_path,
    )
    assert len(got["states"]) == 1
    assert got["after"] is None
    assert got["left"] == []
