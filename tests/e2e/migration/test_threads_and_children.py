"""Processes as they are: a server with threads or a child moves whole with every engine of CRIU's."""

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
        before = await a.ask()
        await whole_move(1, a, b)
        after = await b.ask()
        await asyncio.sleep(0.3)
        later = await b.ask()
        running = len(b.container.processes())
        await whole_move(2, b, a)
        back = await a.ask()
        return dict(before=before, after=after, later=later, back=back, running=running, left=b.running())
"""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("number", [16, 30])
def test_a_server_with_threads(tmp_path, engine, number):
    got = played(MOVED, tmp_path, ENGINE=engine, KIND=f"threads-{number}")
    assert len(got["after"]["threads"]) == number
    for place in range(number):
        counts = [got[when]["threads"][place] for when in ("before", "after", "later", "back")]
        assert counts == sorted(counts), "no thread lost its memory"
        assert counts[1] < counts[2], "each goes on, at the destination"
    assert len({got[when]["sha256"] for when in ("before", "after", "back")}) == 1
    assert got["left"] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_a_server_with_a_child(tmp_path, engine):
    got = played(MOVED, tmp_path, ENGINE=engine, KIND="child")
    told = [got[when]["child"].split() for when in ("before", "after", "later", "back")]
    assert len({pid for pid, _, _ in told}) == 1, "it is the same child"
    asked = [int(times) for _, times, _ in told]
    assert asked == sorted(set(asked)), "it knows how often it was asked"
    assert len({digest for _, _, digest in told}) == 1, "its memory moved, too"
    assert got["running"] == 2
    assert got["left"] == []
