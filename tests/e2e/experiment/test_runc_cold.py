"""A server that runc runs as an OCI container leaves one host and lives on in the other, or stays."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from quicferry.experiment.store import ROOT_VARIABLE
from quicferry.paths import CHECKOUT
from quicferry.process import run
from tests.e2e.migration.criu_scripts import SQUAT, check_there_and_back, check_way_back, played
from tests.pure.migration.test_oci_image import archive, layout

pytestmark = pytest.mark.needs("oci")


def cgroups_made():
    """Cgroups of ours on this machine, in any hierarchy."""
    return [str(path) for path in Path("/sys/fs/cgroup").glob("**/*quicferry*")]


def test_a_container_moves_to_and_fro_and_is_one(tmp_path):
    got = played(
        """
from quicferry.emulation.sandbox import cgroups
def seen(box, pid):
    status = dict(line.split(":", 1) for line in box.path(f"/proc/{pid}/status").read_text().splitlines())
    mounts = [line.split() for line in box.path(f"/proc/{pid}/mountinfo").read_text().splitlines()]
    return dict(
        pids=status["NSpid"].split(), capabilities=int(status["CapEff"], 16),
        writable=sorted(m[4] for m in mounts if "rw" in m[5].split(",")),
        group=str(cgroups.own_group(box.outside_pid(pid))),
        shared=[
            name for name in ("net", "pid", "mnt", "ipc", "uts", "time")
            if box.path(f"/proc/{pid}/ns/{name}").readlink() == box.path(f"/proc/1/ns/{name}").readlink()
        ],
    )

async def play():
    async with edges("edge-1", "edge-2", engine="runc-cold") as (a, b):
        pid = await a.start_server("20")
        before, first = await a.ask(), seen(a.container, pid)
        move = order(1, a, b)
        resumed = await carry(move, a, b)
        silent = await a.ask(0.3)
        stopped = a.container.is_stopped(pid)
        await a.engine.give_up_source(move)
        await a.engine.give_up_source(move)
        there, second = await b.ask(), seen(b.container, b.container.service_pid)
        left = a.running()
        await whole_move(2, b, a)
        back = await a.ask()
        return dict(
            before=before, first=first, there=there, second=second, back=back, silent=silent, stopped=stopped,
            left=[left, b.running()], resumed=resumed, now=time.monotonic_ns(),
            images=[name for name in a.files() + b.files() if name.endswith(".img")],
            log=a.container.path(a.container.log_path(0)).read_text(),
            detail=a.details("migration.checkpoint")[0],
        )
""",
        tmp_path,
    )
    for where in ("first", "second"):
        seen = got[where]
        assert seen["pids"][-1] == "1", "a PID namespace of its own"
        assert seen["capabilities"] == 0
        assert seen["writable"] == ["/proc", "/run"]
        host, name = seen["group"].split("/")[-2:]
        assert name == "server", "a group of its own"
        assert {"first": ".edge-1.", "second": ".edge-2."}[where] in host, "on the host where it runs"
        assert seen["shared"] == ["net", "time"], "the host's network, and its clock also after the move"
    check_there_and_back(got)
    assert got["left"] == [[], []]
    assert got["images"] == []
    assert "serving" in got["log"], "the log moved along"
    assert got["detail"]["method"] == "dumped by runc with CRIU"
    assert cgroups_made() == []


@pytest.mark.parametrize("source_died", [False, True], ids=["stopped", "died"])
def test_a_failed_restore_leads_back_to_the_source(tmp_path, source_died):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="runc-cold") as (a, b):
        pid = await a.start_server("5")
        before = await a.ask()
        move = order(1, a, b)
        await prepare(move, a, b)
        squatter = subprocess.Popen([*b.container.command([sys.executable, "-c", SQUAT])])
        await asyncio.sleep(0.3)
        try:
            await b.engine.restore(move, a.engine.checkpoint(move))
        except MigrationError as error:
            said = [str(error), error.hint]
        await b.engine.abandon_destination(move, "it failed")
        if ARGUMENTS:
            await a.container.stop(pid, grace_s=0)
        answer = await a.engine.resume_source(move, "the destination failed")
        again = await a.engine.resume_source(move, "the destination failed")
        back = await a.ask()
        squatter.kill()
        squatter.wait()
        # and the next try works
        await whole_move(2, a, b)
        return dict(before=before, back=back, said=said, moved=await b.ask(), same=answer == again)
"""
        + SQUAT,
        tmp_path,
        arguments=source_died,
    )
    assert "runc restore failed" in got["said"][0]
    assert "another process holds the port" in got["said"][1]
    check_way_back(got)
    assert got["same"], "a repeated order is answered again, not obeyed again"


@pytest.mark.parametrize("late", [True, False], ids=["past-its-lease", "called-off"])
def test_a_destination_that_may_not_resume_leaves_no_container(tmp_path, late):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="runc-cold") as (a, b):
        await a.start_server("0")
        move = order(1, a, b, resume_before_ns=time.monotonic_ns() if ARGUMENTS else 0)
        await prepare(move, a, b)
        restoring = asyncio.create_task(b.engine.restore(move, a.engine.checkpoint(move)))
        while not any(e.name == "migration.restore.started" for e in b.seen):
            await asyncio.sleep(0.001)
        if not ARGUMENTS:
            restoring.cancel()
        await b.engine.abandon_destination(move, "too late")
        outcome = (await asyncio.gather(restoring, return_exceptions=True))[0]
        left = b.running()
        await a.engine.resume_source(move, "too late")
        return dict(left=left, after=await a.ask(), outcome=type(outcome).__name__)
""",
        tmp_path,
        arguments=late,
    )
    assert got["left"] == []
    assert got["outcome"] in ("CancelledError", "MigrationError")
    assert got["after"]["orders"] == ["Freeze", "Abort"]


def test_a_container_outlives_its_agent_and_nothing_outlives_the_end(tmp_path):
    got = played(
        """
from quicferry.migration.container.oci_container import OciContainer
RECORD = Path(ARGUMENTS)
FIRST_AGENT = '''
import asyncio, sys
from pathlib import Path
from quicferry.migration.container.oci_container import OciContainer
async def play():
    box = await OciContainer.make("edge-1", record=Path(sys.argv[1]))
    await box.start(["sleep", "4242"])
    print(box.service_pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(play())
'''
async def play():
    agent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FIRST_AGENT, str(RECORD), stdout=asyncio.subprocess.PIPE
    )
    pid = int(await agent.stdout.readline())
    agent.kill()
    await agent.wait()
    box = await OciContainer.make("edge-1", record=RECORD)
    found = [p.argv for p in box.processes()]
    try:
        await box.start(["sleep", "60"])
    except MigrationError as error:
        said = str(error)
    same = box.service_pid == pid
    await box.end_processes()
    second = await box.start(["sleep", "60"])
    running = [p.argv for p in box.processes()]
    await box.close()
    await asyncio.sleep(0.2)
    left = [str(p) for p in Path("/proc").glob("[0-9]*/cmdline") if b"sleep" in p.read_bytes()]
    return dict(found=found, said=said, same=same, running=running, left=left, record=RECORD.exists())
""",
        tmp_path,
        arguments=str(tmp_path / "record"),
    )
    assert got["found"] == [["sleep", "4242"]] and got["same"]
    assert "already runs" in got["said"]
    assert got["running"] == [["sleep", "60"]]
    assert (got["left"], got["record"]) == ([], False)
    assert cgroups_made() == []


@pytest.mark.needs("mininet", "tcpdump", "tshark")
def test_a_user_of_an_image_serves_and_moves_though_the_run_directory_lies_in_the_checkout(tmp_path):
    """In the usual place the container sees the checkout's packages, and the keys in the run directory."""
    passwd = archive({"etc/passwd": "web:x:1000:1001::/:/bin/sh\n"})
    image = layout(tmp_path / "image", [passwd], config={"User": "web", "Env": ["WHO=web"]})
    usual = {name: value for name, value in os.environ.items() if name != ROOT_VARIABLE}
    quicferry = [CHECKOUT / "bin" / "quicferry", "run", "--engine", "runc-cold", "--json"]
    done = run(
        [*quicferry, "--image", image, "--before-s", "0.3", "--after-s", "0.3"],
        check=False,
        env=usual,
        timeout_s=240.0,
    )
    result = json.loads(done.stdout)
    try:
        assert (result["outcome"], result["served_by"]) == ("succeeded", "destination"), result["error"]
        assert Path(result["run_dir"]).is_relative_to(CHECKOUT / "runs")
        assert (result["requests_lost"], result["state_ok"]) == (0, True)
    finally:
        shutil.rmtree(result["run_dir"])


def test_a_destination_that_is_full_in_mid_copy_says_so_and_keeps_nothing(tmp_path):
    got = played(
        """
import shutil
async def play():
    async with edges("edge-1", "edge-2", engine="runc-cold") as (a, b):
        await a.start_server("20")
        before = await a.ask()
        move = order(1, a, b)
        await prepare(move, a, b)
        enter = ["nsenter", f"--mount=/proc/{b.container.init_pid}/ns/mnt", "--"]
        used = shutil.disk_usage(b.container.path("/run")).used
        subprocess.run([*enter, "mount", "-o", f"remount,size={used + (4 << 20)}", "/run"], check=True)
        try:
            await b.engine.restore(move, a.engine.checkpoint(move))
        except Exception as error:
            said = [type(error).__name__, str(error), getattr(error, "hint", None)]
        await b.engine.abandon_destination(move, "full")
        left = [b.files(), b.running()]
        await a.engine.resume_source(move, "the destination failed")
        back = await a.ask()
        subprocess.run([*enter, "mount", "-o", "remount,size=50%", "/run"], check=True)
        await whole_move(2, a, b)
        return dict(said=said, left=left, before=before, back=back, moved=await b.ask())
""",
        tmp_path,
    )
    assert got["said"][0] == "MigrationError"
    assert "no room here for the checkpoint" in got["said"][1]
    assert "/run" in got["said"][2]
    assert got["left"] == [[], []]
    check_way_back(got)


def test_without_a_runc_a_run_is_unsupported_and_says_why(tmp_path):
    """Where runc is, something that is no program lies in this test's own mount namespace."""
    hide = 'mount --bind /dev/null "$0" && exec "$@"'
    where = run(["sh", "-c", "PATH=$PATH:/usr/sbin; command -v runc"]).stdout.strip()
    quicferry = [CHECKOUT / "bin" / "quicferry", "run", "--engine", "runc-cold", "--json", "--runs", tmp_path]
    done = run(["unshare", "--mount", "sh", "-c", hide, where, *quicferry], check=False)
    assert done.status == 127
    result = json.loads(done.stdout)
    assert (result["outcome"], result["engine"]) == ("unsupported", "runc-cold")
    assert "there is no runc" in result["error"]
    assert "apt-get install runc" in result["hint"]


def test_an_agent_that_comes_back_in_the_middle_of_a_dump_waits_for_its_end(tmp_path):
    got = played(
        """
async def play():
    async with edges("edge-1", "edge-2", engine="runc-cold") as (a, b):
        await a.start_server("100")  # whose dump takes a while
        move = order(1, a, b)
        await prepare(move, a, b)
        stream = a.engine.checkpoint(move)
        await anext(stream)
        # as after a restart: what knew of the dump is gone
        a.engine._dumping, a.engine._held, dumping = None, None, a.engine._dumping
        during = len(a.container.processes())
        await a.engine.resume_source(move, "its agent was killed")
        afterwards = len(a.container.processes())
        await asyncio.wait([dumping])  # whatever it says: its images have gone
        return dict(during=during, afterwards=afterwards, after=await a.ask())
""",
        tmp_path,
    )
    assert got["during"] > got["afterwards"], "CRIU was at work"
    assert got["afterwards"] == 1, "the server"
    assert got["after"]["orders"] == ["Freeze", "Abort"]
