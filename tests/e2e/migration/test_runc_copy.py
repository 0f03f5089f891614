"""Pre-copy, post-copy and hybrid of a container that runc runs: what holds for a process holds for it."""

import pytest

from tests.e2e.migration.criu_scripts import check_called_off, check_hops, played

ENGINES = ["runc-pre-copy", "runc-post-copy", "runc-hybrid"]

pytestmark = pytest.mark.needs("oci", "criu-lazy-pages")


def test_a_container_that_writes_moves_there_and_back(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        await a.start_server("30", "writes")
        stopped = []
        first = await a.ask()
        for epoch, (here, there) in enumerate([(a, b), (b, a), (a, b)], 1):
            move = order(epoch, here, there)
            pid = here.container.service_pid
            await carry(move, here, there)
            stopped.append(here.container.is_stopped(pid))
            await settle(move, here)
        last = await b.ask()
        await asyncio.sleep(0.1)
        return dict(first=first, last=last, later=await b.ask(), stopped=stopped, left=a.running())
""",
        tmp_path,
        ENGINE="runc-hybrid",
    )
    assert got["last"]["orders"] == ["Freeze", "Resume"] * 3
    assert got["last"]["requests"] == got["first"]["requests"] + 1
    assert got["first"]["written"] < got["last"]["written"] < got["later"]["written"], "it goes on writing"
    assert got["stopped"] == [True] * 3, "until it is decided the source's container stands still"
    assert got["left"] == []


@pytest.mark.parametrize("engine", ENGINES)
def test_what_is_in_memory_is_the_same_after_three_moves(tmp_path, engine):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        await a.start_server("30")
        return await hops(a, b, 3)
""",
        tmp_path,
        ENGINE=engine,
    )
    check_hops(got, 3)
    assert len({answer["sha256"] for answer in got["seen"]}) == 1
    pages = [drained["pages"] for drained in got["drained"]]
    if engine == "runc-post-copy":
        assert min(pages) > 30 * 256
    else:
        assert max(pages) < 5 * 256, "what changed after the last round, and nothing else"
    assert all(detail["criu"]["pages_restored"] < 10 * 256 for detail in got["restored"])
    assert all(detail["rounds"] == 0 or detail["tracked"] for detail in got["taken"]), "the kernel tells"


@pytest.mark.needs("criu-page-server")
def test_criu_itself_brings_the_memory_of_a_container_afterwards(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="runc-post-copy/criu") as (a, b):
        await a.start_server("20", "writes")
        return await hops(a, b, 2)
""",
        tmp_path,
    )
    check_hops(got, 2)
    written = [answer["written"] for answer in got["seen"]]
    assert written == sorted(set(written)), "it goes on writing"
    assert min(drained["pages"] for drained in got["drained"]) > 20 * 256
    assert all(drained["bytes"] > 20 * 2**20 for drained in got["drained"]), "it crossed by the tunnel"
    assert all(detail["criu"]["pages_restored"] < 10 * 256 for detail in got["restored"])
    assert {detail["memory_by"] for detail in got["taken"]} == {"criu"}


@pytest.mark.parametrize("engine", ["runc-pre-copy", "runc-post-copy"])
def test_a_move_of_a_container_that_is_called_off_leads_back(tmp_path, engine):
    check_called_off(tmp_path, engine)


@pytest.mark.parametrize("engine", ["runc-cold"])
def test_a_container_moves_while_its_processes_start_children(tmp_path, engine):
    """dash starts each command by vfork, in which a process can be frozen, but not be dumped."""
    got = played(
        """
from quicferry.migration.container.volumes import ContainerFiles

LOOPS = "for i in 1 2 3; do (while :; do /bin/true; done) & done; exec \\"$@\\""

def uninterruptible(box):
    group = box.path("/sys/fs/cgroup/server")
    states = []
    for thread in (group / "cgroup.threads").read_text().split():
        try:
            states.append(Path(f"/proc/{thread}/stat").read_text().rpartition(")")[2].split()[0])
        except OSError:
            pass
    return states.count("D")

async def play():
    async with edges("edge-1", "edge-2", engine="ENGINE") as (a, b):
        pid = await a.container.start(["/bin/dash", "-c", LOOPS, "dash", sys.executable, str(SERVER), "5"])
        before = await a.ask()
        seen = []
        for _ in range(40):
            await a.container.halt(pid)
            seen.append(uninterruptible(a.container))
            await a.container.unhalt(pid)
            await asyncio.sleep(0.005)
        await whole_move(1, a, b)
        return dict(seen=seen, before=before, after=await b.ask())
""",
        tmp_path,
        ENGINE=engine,
    )
    assert got["seen"] == [0] * 40
    assert got["after"]["orders"] == ["Freeze", "Resume"]
    assert got["after"]["sha256"] == got["before"]["sha256"]
