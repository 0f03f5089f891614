"""Processes as they are: a server with threads moves whole with every engine of CRIU's."""

import pytest

from tests.e2e.migration.criu_scripts import played

MEMORY = pytest.mark.needs("criu", "criu-lazy-pages")
ENGINES = [
    pytest.param("criu-cold", marks=pytest.mark.needs("criu")),
    pytest.param("criu-pre-copy", marks=MEMORY),
    pytest.param("criu-post-copy", marks=MEMORY),
    pytest.param("criu-hybrid", marks=MEMORY),
]

MOVED = """
async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        await a.start_server("8", "KIND")
        # each thread is stopped and read in turn: on a busy machine that takes its time
        patience = Deadlines(checkpoint_s=90.0, restore_s=90.0, pages_s=120.0)
        async def moved(epoch, here, there):
            move = order(epoch, here, there, deadlines=patience)
            await carry(move, here, there)
            await settle(move, here)
        before = await a.ask()
        await moved(1, a, b)
        after = await b.ask()
        await asyncio.sleep(0.5)
        later = await b.ask()
        running = len(b.container.processes())
        await moved(2, b, a)
        back = await a.ask()
        return dict(before=before, after=after, later=later, back=back, running=running, left=b.running())
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_with_threads(tmp_path, engine):
    number = 30
    got = played(MOVED, tmp_path, ENGINE=engine, KIND=f"threads-{number}")
    assert len(got["after"]["threads"]) == number
    for place in range(number):
        counts = [got[when]["threads"][place] for when in ("before", "after", "later", "back")]
        assert counts == sorted(counts), "no thread lost its memory"
        assert counts[1] < counts[2], "each goes on, at the destination"
    assert len({got[when]["sha256"] for when in ("before", "after", "back")}) == 1
    assert got["left"] == []
