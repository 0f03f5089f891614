"""Pre-copy, post-copy and hybrid by CRIU's own machinery. Rounds need a kernel that tracks written pages."""

from functools import partial

import pytest

from tests.e2e.migration import criu_scripts
from tests.e2e.migration.criu_scripts import check_hops, check_way_back

TRACKS = pytest.mark.needs("criu-tracking")
ENGINES = [
    "criu-post-copy/criu",
    pytest.param("criu-pre-copy/criu", marks=TRACKS),
    pytest.param("criu-hybrid/criu", marks=TRACKS),
]

pytestmark = pytest.mark.needs("criu", "criu-lazy-pages", "criu-page-server")


#: A machine whose kernel tracks written pages may be an emulated one, and slow.
played = partial(criu_scripts.played, timeout_s=600)


@pytest.mark.parametrize("engine", ENGINES)
def test_memory_is_whole_after_there_and_back(tmp_path, engine):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        await a.start_server("50", "writes")
        return await hops(a, b, 2)
""",
        tmp_path,
        ENGINE=engine,
    )
    check_hops(got, 2)
    written = [answer["written"] for answer in got["seen"]]
    assert written == sorted(written)
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
        before = await a.ask()
        await whole_move(1, a, b)
        return dict(before=before, after=await b.ask())
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
        before = await a.ask()
        move = order(1, a, b)
        await prepare(move, a, b)
        chunks = [chunk async for chunk in a.engine.checkpoint(move)]
        said = await broken_off(move, a, b, chunks[:-1])
        back = await a.ask()
        left = [argv for argv in a.running() if "criu" in " ".join(argv[:1])]
        await whole_move(2, a, b)
        return dict(said=said, before=before, back=back, left=left, moved=await b.ask())
""",
        tmp_path,
        ENGINE=engine,
    )
    assert "cut off" in got["said"]
    assert got["left"] == [], "CRIU's page server has gone"
    check_way_back(got)


DISTURBED = """
async def play():
    async with edges("edge-1", "edge-2", engine="criu-post-copy/criu") as (a, b):
        await a.start_server("50")
        before = await a.ask()
        move = order(1, a, b, deadlines=Deadlines(pages_s=PATIENCE, restore_s=30.0))
        await carry(move, a, b)
        DISTURBANCE
        end = await end_in_doubt(move, a, b)
        return dict(end, before=before, streams=TunnelStream.opened, left=b.running())
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
    assert "criu lazy-pages failed" in got["error"]
    assert got["stopped"], "the source does not serve again: clients have seen what happened since"
    assert got["after"] is None, "a server that lacks memory does not answer with zeros in its place"
    assert got["left"] == [], "and it is ended"


def test_without_the_daemon_the_service_is_lost_and_nothing_pretends(tmp_path):
    got = played(
        DISTURBED, tmp_path, DISTURBANCE="os.kill(b.engine._daemon.pid, signal.SIGKILL)", PATIENCE="20.0"
    )
    assert "criu lazy-pages failed" in got["error"]
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
        return dict(after=after, states=states, left=b.running())
""",
        tmp_path,
    )
    assert len(got["states"]) == 1
    assert got["after"] is None
    assert got["left"] == []
