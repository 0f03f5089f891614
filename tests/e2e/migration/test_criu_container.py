"""The container: what runs in it, what it shows, and that it leaves nothing behind."""

import pytest

from tests.e2e.support import in_private_root

PRELUDE = """
import asyncio, os, signal, sys, time
from pathlib import Path
from quicferry.errors import MigrationError
from quicferry.migration.container.container import Container
"""


def played(script, tmp_path):
    return in_private_root(PRELUDE + script + "\nreport(asyncio.run(play()))\n", tmp_path)


def test_a_service_has_its_own_pid_run_and_stdio(tmp_path):
    got = played(
        """
async def play():
    async with await Container.create("edge-3") as box:
        env = {"WORD": "word", "PATH": os.environ["PATH"]}
        pid = await box.start(["sh", "-c", "echo $$ $WORD; echo bad >&2; exec sleep 60"], env=env)
        log = box.path(box.log_path(pid))
        while log.read_text().count("\\n") < 2:
            await asyncio.sleep(0.01)
        stdio = [os.readlink(f"/proc/{box.init_pid}/root/proc/{pid}/fd/{n}") for n in range(3)]
        session = (await box.run(["ps", "-o", "sid=", "-p", str(pid)])).stdout.strip()
        mount = (await box.run(["stat", "-f", "-c", "%T", "/run"])).stdout.strip()
        outside = os.path.exists(f"/run/service-{pid}.log")
        processes = [list(p) for p in box.processes()]
        files = box.open_files(pid)
        second = await box.start(["sleep", "60"])
        await box.stop(pid)
        await box.stop_service(grace_s=0.2)
        return dict(pid=pid, log=log.read_text(), stdio=stdio, session=session, mount=mount, outside=outside,
            processes=processes, files=files, second=second,
            left=len(box.processes()), service=box.service_pid)
""",
        tmp_path,
    )
    pid = got["pid"]
    assert pid == 13_000
    assert got["log"] == f"{pid} word\nbad\n"
    assert got["stdio"] == ["/dev/null", f"/run/service-{pid}.log", f"/run/service-{pid}.log"]
    assert got["session"] == str(pid), "it leads a session of its own"
    assert (got["mount"], got["outside"]) == ("tmpfs", False)
    assert got["processes"] == [[pid, "S", ["sleep", "60"]]]
    assert got["files"] == [f"/run/service-{pid}.log"]
    assert got["second"] == pid + 50
    assert (got["left"], got["service"]) == (0, None)


def test_what_runs_inside_gives_its_status_and_words(tmp_path):
    got = played(
        """
async def play():
    async with await Container.create("edge-1") as box:
        done = await box.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
        try:
            await box.run(["sleep", "30"], timeout_s=0.3)
        except MigrationError as error:
            late = str(error)
        await asyncio.sleep(0.1)
        return dict(done=list(done), late=late, left=[p.argv for p in box.processes()])
""",
        tmp_path,
    )
    assert got["done"][1:] == [3, "out\n", "err\n"]
    assert got["late"] == "sleep on edge-1 still ran after 0.3 s"
    assert got["left"] == [], "what took too long does not go on in the container"


def test_a_service_that_cannot_start_says_why_and_a_taken_pid_is_refused(tmp_path):
    got = played(
        """
async def play():
    said = []
    async with await Container.create("edge-1") as box:
        try:
            await box.start(["/no/such/program"])
        except MigrationError as error:
            said.append(str(error))
        await box.start(["sleep", "60"])
        box._next_pid = 11_050
        try:
            await box.start(["sleep", "60"])
        except MigrationError as error:
            said.append(str(error))
        await asyncio.sleep(0.05)
        return dict(said=said, running=[p.pid for p in box.processes()], service=box.service_pid)
""",
        tmp_path,
    )
    assert got["said"] == [
        "the container on edge-1: cannot start /no/such/program: No such file or directory",
        "the container on edge-1: cannot start sleep: PID 11050 is taken",
    ]
    assert (got["running"], got["service"]) == ([11_050], 11_050)


def test_many_children_leave_no_zombie(tmp_path):
    got = played(
        """
async def play():
    async with await Container.create("edge-1") as box:
        # children whose parent ends first fall to init
        await box.run(["sh", "-c", "for n in 1 2 3 4 5; do setsid sh -c 'sleep 0.05' & done"])
        await asyncio.sleep(0.3)
        return [p.state for p in box.processes()]
""",
        tmp_path,
    )
    assert got == []


@pytest.mark.parametrize("end", ["close", "exit", "kill"])
def test_nothing_outlives_the_agent(tmp_path, end):
    """Whichever way the agent ends, the service goes with it, and with the last process its mounts."""
    got = in_private_root(
        """
import signal, subprocess, time
AGENT = '''
import asyncio, sys
from quicferry.migration.container.container import Container
async def main():
    box = await Container.create("edge-1")
    await box.start(["sleep", "4242"])
    sys.stdout.write(f"{box.init_pid}\\\\n"); sys.stdout.flush()
    if sys.argv[1] == "close":
        await box.close()
    elif sys.argv[1] == "kill":
        await asyncio.sleep(60)
asyncio.run(main())
'''
def sleepers():
    found = []
    for path in os.listdir("/proc"):
        if path.isdigit():
            try:
                if b"4242" in open(f"/proc/{path}/cmdline", "rb").read().split(b"\\0")[1:2]:
                    found.append(path)
            except OSError:
                pass
    return found
agent = subprocess.Popen([sys.executable, "-c", AGENT, ARGUMENTS], stdout=subprocess.PIPE)
init = int(agent.stdout.readline())
during = len(sleepers())
if ARGUMENTS == "kill":
    agent.send_signal(signal.SIGKILL)
agent.wait()
agent.stdout.close()
deadline = time.monotonic() + 5
while (sleepers() or os.path.exists(f"/proc/{init}")) and time.monotonic() < deadline:
    time.sleep(0.01)
report(dict(during=during, after=len(sleepers()), init=os.path.exists(f"/proc/{init}")))
""",
        tmp_path,
        arguments=end,
    )
    assert got["after"] == 0
    assert got["init"] is False
    if end != "close":
        assert got["during"] == 1


def test_what_came_from_outside_ends_although_its_parent_stands_still(tmp_path):
    """``nsenter`` stops itself with its child, and reaps it no more: a killed agent leaves it so."""
    got = played(
        """
async def play():
    async with await Container.create("edge-1") as box:
        outside = await box.begin(["sleep", "60"])
        while not (found := [each.pid for each in box.processes() if each.argv[:1] == ["sleep"]]):
            await asyncio.sleep(0.01)
        [pid] = found
        await box.signal(pid, signal.SIGSTOP)
        while "T" not in Path(f"/proc/{outside.pid}/stat").read_text().rpartition(")")[2].split()[0]:
            await asyncio.sleep(0.01)
        await box.stop(pid, grace_s=0)
        got = dict(state=box.state(pid), is_over=box.is_over(pid))
        outside.send_signal(signal.SIGCONT)
        await outside.wait()
        return got | dict(left=len(box.processes()))
""",
        tmp_path,
    )
    assert got == {"state": "Z", "is_over": True, "left": 0}
