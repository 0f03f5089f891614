"""Processes as they are: a server with threads and children moves whole with every engine of CRIU's."""

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
def test_a_server_with_threads_and_a_child_process(tmp_path, engine):
    number = 30
    got = played(MOVED, tmp_path, ENGINE=engine, KIND=f"threads-{number} child")
    assert len(got["after"]["threads"]) == number
    for place in range(number):
        counts = [got[when]["threads"][place] for when in ("before", "after", "later", "back")]
        assert counts == sorted(counts), "no thread lost its memory"
        assert counts[1] < counts[2], "each goes on, at the destination"
    assert len({got[when]["sha256"] for when in ("before", "after", "back")}) == 1
    check_child(got)


@pytest.mark.needs("oci")
def test_a_child_process_in_a_container(tmp_path):
    check_child(played(MOVED, tmp_path, ENGINE="runc-pre-copy", KIND="child"))


def check_child(got):
    """The server's child process has moved with it, there and back."""
    asked = [got[when]["child"].split() for when in ("before", "after", "later", "back")]
    assert [int(count) for _, count, _ in asked] == sorted({int(count) for _, count, _ in asked})
    assert len({pid for pid, _, _ in asked}) == 1, "it is the same process"
    assert len({digest for _, _, digest in asked}) == 1, "with the same memory"
    assert got["running"] == 2, "the server and its child"
    assert got["left"] == []


CALLED_OFF = """
async def play():
    async with edges("edge-1", "edge-2", engine="criu-cold") as (a, b):
        pid = await a.start_server("1", "child")
        before = await a.ask()
        move = order(1, a, b)
        await prepare(move, a, b)
        async for chunk in a.engine.checkpoint(move):
            pass
        KILL
        await b.engine.abandon_destination(move, "called off")
        await a.engine.resume_source(move, "called off")
        return dict(before=before, after=await a.ask(), running=len(a.running()))
"""


@pytest.mark.needs("criu")
@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_a_child_goes_on_with_its_parent_after_a_move_that_was_called_off(tmp_path, killed):
    kill = "await a.container.signal(pid, signal.SIGKILL)" if killed else ""
    got = played(CALLED_OFF, tmp_path, KILL=kill)
    (pid, one, digest), (same, two, other) = (got[when]["child"].split() for when in ("before", "after"))
    assert (pid, digest) == (same, other)
    assert int(two) > int(one)
    assert got["running"] == 2


@pytest.mark.needs("criu")
def test_a_server_with_a_daemon_is_refused_before_it_is_frozen(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="criu-cold") as (a, b):
        await a.start_server("1", "daemon")
        try:
            await a.engine.prepare_source(order(1, a, b))
        except MigrationError as error:
            return dict(said=str(error), hint=error.hint, after=await a.ask())
""",
        tmp_path,
    )
    assert "(sleep 600) belongs to the server, but is no descendant of it" in got["said"]
    assert "runc" in got["hint"]
    assert got["after"]["orders"] == [], "it was not frozen"
