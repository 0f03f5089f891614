"""CRIU is shown another process's list of pages: the agent's own list is what CRIU's would have been."""

import pytest

from tests.e2e.migration.criu_scripts import played

pytestmark = pytest.mark.needs("criu", "criu-lazy-pages")

HIDE = """
from quicferry.migration.criu.command import Criu
from quicferry.migration.memory.hidden_memory import HiddenMemory, is_hidden
from quicferry.migration.memory.pagemap import decode

def hide(edge):
    pid = edge.container.service_pid
    return HiddenMemory.of(edge.container, pid, edge.container.path(f"/proc/{pid}"))
"""


@pytest.mark.parametrize("obstacles", ["", "threads-16 child"])
def test_the_agent_lists_what_criu_would(tmp_path, obstacles):
    got = played(
        f"""{HIDE}
async def dumped(edge):
    pid, images = edge.container.service_pid, edge.engine._images
    criu = Criu(edge.container)
    await criu.warm_up(images)
    await criu.dump_without_memory(pid, images, timeout_s=20)
    return decode(edge.container.path(f"{{images}}/pagemap-{{pid}}.img").read_bytes())

async def play():
    async with edges("edge-1", engine="criu-post-copy") as (a,):
        await a.start_server("20", "{obstacles}")
        await a.container.halt(a.container.service_pid)
        whole = await dumped(a)
        hidden = await hide(a)
        if hidden is None:
            return None
        held = await hidden.hold()
        found = await dumped(a)
        listed = hidden.completed(found)
        sets = [[pages.tolist() for pages in (each.present, each.absent)] for each in (whole, listed)]
        return dict(held=held, found=len(found.pages), sets=sets)
""",
        tmp_path,
    )
    if got is None:
        return  # a kernel before 6.7: CRIU makes the list
    assert got["held"]
    (present, absent), (listed_present, listed_absent) = got["sets"]
    assert got["found"] < len(absent) / 10, "CRIU finds next to nothing"
    assert len(absent) > 20 * 256
    assert listed_absent == absent
    # what CRIU lists beyond are pages of files that init has as its own and the server does not: dumped, too
    assert set(present) <= set(listed_present)


def test_memory_that_cannot_come_later_is_not_hidden(tmp_path):
    later = tmp_path / "later"  # as a process that locks memory at the last moment
    later.mkdir()
    (later / "status").write_text("VmLck:\t       4 kB\n")
    got = played(
        f"""{HIDE}
async def play():
    async with edges("edge-1", engine="criu-post-copy") as (a,):
        await a.start_server("10", "locked")
        locked = await hide(a)
        await a.container.stop_service()
        await a.start_server("10")
        hidden = await hide(a)
        if hidden is None:
            return None
        hidden._proc = Path("LATER")
        pid = a.container.service_pid
        before = is_hidden(a.container, pid)
        held = await hidden.hold()
        return dict(locked=locked is None, before=before, held=held, after=is_hidden(a.container, pid))
""",
        tmp_path,
        LATER=str(later),
    )
    if got is not None:  # None: a kernel before 6.7
        assert got == {"locked": True, "before": True, "held": False, "after": False}


def test_nothing_stays_hidden_of_a_server_that_goes_on(tmp_path):
    got = played(
        f"""{HIDE}
async def play():
    async with edges("edge-1", "edge-2", engine="criu-post-copy") as (a, b):
        await a.start_server("20")
        pid = a.container.service_pid
        move = order(1, a, b)
        await prepare(move, a, b)
        stream = a.engine.checkpoint(move)
        first = await anext(stream)
        during = is_hidden(a.container, pid)
        await stream.aclose()
        await broken_off(move, a, b, [first[: len(first) // 2]])
        called_off = is_hidden(a.container, pid)
        # as an agent leaves it that is killed before the freeze
        left = await hide(a) is not None and is_hidden(a.container, pid)
        await a.engine.prepare_source(order(2, a, b))
        prepared = is_hidden(a.container, pid)
        await whole_move(3, a, b)
        taken = [detail["listed_by"] for detail in a.details("migration.checkpoint")]
        gone = is_hidden(a.container, pid) or is_hidden(b.container, pid)
        return dict(hidden=[during, called_off, left, prepared, gone], taken=taken)
""",
        tmp_path,
    )
    if got["taken"][-1] == "criu":
        return  # a kernel before 6.7
    assert got["hidden"] == [True, False, True, False, False]
    assert set(got["taken"]) == {"agent"}
