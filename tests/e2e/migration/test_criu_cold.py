"""A process really leaves one host and lives on in the other; and when it cannot, it stays."""

import pytest

from tests.e2e.migration.criu_scripts import SQUAT, check_hops, check_way_back, played

pytestmark = pytest.mark.needs("criu")


def test_the_server_lives_on_at_the_other_host(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2") as (a, b):
        pid = await a.start_server("50")
        before = await a.ask()
        move = order(1, a, b)
        resumed = await carry(move, a, b)
        frozen_silent = await a.ask(0.3)
        await a.engine.give_up_source(move)
        await a.engine.give_up_source(move)
        after = await b.ask()
        await asyncio.sleep(0.5)
        later = await b.ask()
        log = b.container.path(b.container.log_path(pid)).read_text()
        return dict(
            pid=pid, before=before, after=after, later=later, resumed=resumed, frozen_silent=frozen_silent,
            now_ns=time.monotonic_ns(), log=log, service_pid=b.container.service_pid,
            left=a.running(),
            states=[p.state for p in b.container.processes()],
            events=[(e.vantage, e.name, e.t_ns) for e in a.seen + b.seen], details=b.seen[-1].detail,
        )
""",
        tmp_path,
    )
    before, after, later = got["before"], got["after"], got["later"]
    assert after["pid"] == got["pid"] == got["service_pid"], "the PID is the same in both containers"
    assert after["requests"] == before["requests"] + 1, "state lives on"
    assert after["orders"] == ["Freeze", "Resume"]
    assert after["sha256"] == before["sha256"], "50 MiB of memory are intact"
    passed_s = (later["t_ns"] - after["t_ns"]) / 1e9
    assert 1 <= later["ticks"] - after["ticks"] <= 100 * passed_s + 2, "timers go on, at most 100 per second"
    assert before["t_ns"] < got["resumed"]["t_ns"] < after["t_ns"] < got["now_ns"], (
        "the clock is the machine's"
    )
    assert later["loop_s"] - after["loop_s"] == pytest.approx(passed_s, abs=0.5), "the loop has that clock"
    assert got["frozen_silent"] is None, "the source does not answer while it is stopped"
    assert got["left"] == [], "nothing is left at the source"
    assert got["states"] in (["S"], ["R"])
    assert "serving" in got["log"], "the log moved along"
    assert [(vantage, name) for vantage, name, _ in got["events"]] == [
        ("edge-1", "migration.checkpoint.started"),
        ("edge-1", "migration.checkpoint.complete"),
        ("edge-2", "migration.restore.started"),
        ("edge-2", "migration.restore.complete"),
    ]
    assert got["details"]["criu"]["pages_restored"] > 50 * 256


def test_five_hops_back_and_forth(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2") as (a, b):
        await a.start_server("2")
        return await hops(a, b, 5)
""",
        tmp_path,
    )
    check_hops(got, 5)
    assert len({answer["sha256"] for answer in got["seen"]}) == 1


FAILED_RESTORE = (
    SQUAT
    + """
async def play():
    async with edges("edge-1", "edge-2") as (a, b):
        pid = await a.start_server("5")
        before = await a.ask()
        move = order(1, a, b)
        await prepare(move, a, b)
        # somebody at the destination holds the port of the service
        await b.container.run(["true"])
        squatter = await b.container.start([sys.executable, "-c", SQUAT])
        await asyncio.sleep(0.3)
        try:
            await b.engine.restore(move, a.engine.checkpoint(move))
        except MigrationError as error:
            said = [str(error), error.hint]
        await b.engine.abandon_destination(move, "it failed")
        KILL_SOURCE
        answer = await a.engine.resume_source(move, "the destination failed")
        again = await a.engine.resume_source(move, "the destination failed")
        back = await a.ask()
        await b.container.stop_service()
        # and the next try works
        await whole_move(2, a, b)
        return dict(before=before, back=back, said=said, moved=await b.ask(), same=answer == again,
            b=b.running(), failed=[e.name for e in b.seen])
"""
)


@pytest.mark.parametrize("source_died", [False, True], ids=["stopped", "died"])
def test_a_failed_restore_leads_back_to_the_source(tmp_path, source_died):
    kill = "await a.container.stop(pid, grace_s=0)" if source_died else "pass"
    got = played(FAILED_RESTORE.replace("KILL_SOURCE", kill), tmp_path)
    assert "Address already in use" in got["said"][0]
    assert "another process holds the port" in got["said"][1]
    check_way_back(got)
    assert got["same"], "a repeated order is answered again, not obeyed again"
    assert got["failed"][:2] == ["migration.restore.started", "migration.restore.failed"]
    assert len(got["b"]) == 1, "the squatter and what was half restored are gone"


def test_a_transfer_that_breaks_off_leads_back_to_the_source(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2") as (a, b):
        await a.start_server("20")
        move = order(1, a, b)
        await prepare(move, a, b)
        stream = a.engine.checkpoint(move)
        first = await anext(stream)
        await asyncio.sleep(0.5)  # the network stalls until no more can be packed in advance
        await asyncio.wait_for(stream.aclose(), 30)
        said = await broken_off(move, a, b, [first])
        return dict(said=said, after=await a.ask(), left=b.running() + b.files())
""",
        tmp_path,
    )
    assert "cut off" in got["said"]
    assert got["after"]["orders"] == ["Freeze", "Abort"]
    assert got["left"] == []


def test_what_cannot_be_dumped_is_said_and_goes_on_serving(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2") as (a, b):
        await a.start_server("0", "mptcp")
        move = order(1, a, b)
        try:
            await carry(move, a, b)
        except MigrationError as error:
            said = [str(error), error.hint]
        await b.engine.abandon_destination(move, "it failed")
        await a.engine.resume_source(move, "it failed")
        return dict(said=said, after=await a.ask(), events=[e.name for e in a.seen])
""",
        tmp_path,
    )
    assert "criu dump failed" in got["said"][0]
    assert "MPTCP" in got["said"][1]
    assert got["after"]["orders"] == ["Freeze", "Abort"]
    assert got["events"] == ["migration.checkpoint.started", "migration.checkpoint.failed"]


def test_a_destination_past_its_lease_does_not_resume(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2") as (a, b):
        await a.start_server("0")
        move = order(1, a, b, resume_before_ns=time.monotonic_ns())
        try:
            await carry(move, a, b)
        except MigrationError as error:
            said = str(error)
        left = b.running()
        await a.engine.resume_source(move, "late")
        return dict(said=said, left=left, after=await a.ask())
""",
        tmp_path,
    )
    assert "too late" in got["said"]
    assert got["left"] == []
    assert got["after"]["orders"] == ["Freeze", "Abort"]


def test_a_move_called_off_during_the_restore_leaves_no_server(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2") as (a, b):
        await a.start_server("0")
        move = order(1, a, b)
        await prepare(move, a, b)
        chunks = [chunk async for chunk in a.engine.checkpoint(move)]

        async def stream():
            for chunk in chunks:
                yield chunk
        restoring = asyncio.create_task(b.engine.restore(move, stream()))
        while not any(e.name == "migration.restore.started" for e in b.seen):
            await asyncio.sleep(0.001)
        restoring.cancel()
        await b.engine.abandon_destination(move, "called off")
        outcome = (await asyncio.gather(restoring, return_exceptions=True))[0]
        left = b.running()
        await a.engine.resume_source(move, "called off")
        return dict(left=left, after=await a.ask(), outcome=type(outcome).__name__)
""",
        tmp_path,
    )
    assert got["left"] == []
    assert got["outcome"] in ("CancelledError", "MigrationError")
    assert got["after"]["orders"] == ["Freeze", "Abort"]


def test_a_missing_criu_is_said_before_anything_is_frozen(tmp_path):
    got = played(
        """
from quicferry.errors import Unsupported
from quicferry import process
async def play():
    os.environ["QUICFERRY_CRIU_PREFIX"] = "/nowhere"
    os.environ["PATH"] = "/bin:/usr/bin"
    process.SYSTEM_DIRECTORIES = ()
    async with edges("edge-1", "edge-2") as (a, b):
        await a.start_server("0")
        try:
            await carry(order(1, a, b), a, b)
        except Unsupported as error:
            said = [str(error), error.hint]
        return dict(said=said, after=await a.ask())
""",
        tmp_path,
    )
    assert "there is no criu" in got["said"][0]
    assert "provision/criu.sh" in got["said"][1]
    assert got["after"]["orders"] == []


@pytest.mark.parametrize(
    ("program", "network", "said", "meaning"),
    [
        ("real", ["unshare", "--net"], "Network is unreachable", "loopback interface"),
        ("false", [], "criu check failed with status 1", "quicferry doctor"),
    ],
    ids=["loopback-down", "broken-program"],
)
def test_what_cannot_work_is_said_when_the_move_is_prepared(tmp_path, program, network, said, meaning):
    got = played(
        """
from quicferry.migration.criu.command import Criu, find_criu
async def play():
    async with await Container.create("edge-1", enter=ARGUMENTS["network"]) as box:
        program = find_criu() if ARGUMENTS["program"] == "real" else Path("/bin/false")
        try:
            await Criu(box, program).warm_up(Path("/run/images"))
        except MigrationError as error:
            return [str(error), error.hint]
""",
        tmp_path,
        arguments={"program": program, "network": network},
    )
    assert said in got[0]
    assert meaning in got[1]
