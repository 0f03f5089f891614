"""Nothing is left behind: after the end, after SIGKILL of the tool, and after ``clean``."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.clean import clean as clean_command
from quicferry.emulation.sandbox import ownership, private_root
from quicferry.emulation.sandbox.ownership import RUN_TAG, TOOL_TAG, TaggedProcess
from quicferry.paths import CHECKOUT
from quicferry.process import PIPE, Popen, TimeoutExpired, run, spawn
from tests.e2e.support import InPrivateRoot
from tests.waiting import eventually

KINDS = ("net", "mnt", "pid")

#: A tool that starts a private root, in which a network is built and programs do their worst to stay.
TOOL = """
import sys, time
from quicferry.emulation.sandbox import private_root
root = private_root.start([sys.executable, sys.argv[1], *sys.argv[3:]], run_id=sys.argv[2])
print(root.pid, flush=True)
time.sleep(600)
"""
INSIDE = """
import sys, time
from pathlib import Path
import topologies
from quicferry.emulation.mininet.emulator import MininetEmulator
emulator = MininetEmulator(Path(sys.argv[1]))
emulator.deploy(topologies.get("two_edges").build())
emulator.spawn("edge-1", ["sh", "-c", "trap '' TERM HUP INT; setsid sleep 600 & setsid sleep 600"])
emulator.spawn("edge-1", ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "sleep", "600"])
emulator.spawn("edge-2", ["sh", "-c", "mount -t tmpfs none /mnt && sleep 600"])
emulator.spawn("client", ["setsid", "setsid", "sleep", "600"])
time.sleep(0.3)
Path(sys.argv[1], "deployed").touch()
time.sleep(600)
"""


def of_run(run_id: str) -> list[TaggedProcess]:
    return [process for process in ownership.tagged_processes() if process.run_id == run_id]


def namespaces(pids: list[int]) -> set[str]:
    """What namespaces these processes are in, those of this process left out."""
    found = set()
    for pid in pids:
        for kind in KINDS:
            try:
                found.add(str(Path(f"/proc/{pid}/ns/{kind}").readlink()))
            except OSError:
                continue
    return found - {str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in KINDS}


def all_pids() -> list[int]:
    """Everybody here. Of younger processes a namespace's number says nothing: the kernel gives it again."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def interfaces_and_mounts() -> tuple[set[str], set[str]]:
    links = {line.split(":")[1].strip() for line in run(["ip", "-o", "link"]).stdout.splitlines()}
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return links, {line.partition(" - ")[2] + line.split()[4] for line in mounts}


def start_tool(directory: Path, run_id: str, inside: str) -> tuple[Popen[bytes], int]:
    """The tool's process and the process id of its private root."""
    (directory / "tool.py").write_text(TOOL)
    (directory / "inside.py").write_text(inside)
    words = [directory / "tool.py", directory / "inside.py", run_id, directory]
    tool = spawn(
        [sys.executable, *words], stdout=PIPE, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, cwd=CHECKOUT
    )
    assert tool.stdout is not None
    line = tool.stdout.readline()
    tool.stdout.close()
    return tool, int(line)


def is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


@pytest.mark.needs("mininet")
@pytest.mark.parametrize("victim", ["the tool", "the private root"])
def test_sigkill_leaves_no_process_no_namespace_no_interface_and_no_mount(
    victim: str, tmp_path: Path
) -> None:
    before = interfaces_and_mounts()
    run_id = f"kill-{os.getpid()}-{tmp_path.name}"
    tool, root_pid = start_tool(tmp_path, run_id, INSIDE)
    try:
        assert eventually((tmp_path / "deployed").exists)
        living = [process.pid for process in of_run(run_id)]
        made = namespaces(living)
        assert len(living) > 15  # the nodes' shells and the programs in them
        assert sum(name.startswith("net:") for name in made) >= 8
        living_then = all_pids()
        os.kill(tool.pid if victim == "the tool" else root_pid, signal.SIGKILL)
        if victim == "the tool":
            tool.wait()
        assert eventually(lambda: not of_run(run_id)), of_run(run_id)
        assert eventually(lambda: not namespaces(living_then) & made)
        if victim == "the tool":
            assert eventually(lambda: not Path(f"/proc/{root_pid}").exists())
        # The outermost process is a child of the tool, which in one case still sleeps.
        assert not [pid for pid in living if is_zombie(pid) and pid != root_pid]
    finally:
        tool.kill()
        tool.wait()
    pinned = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "nsfs" in line]
    numbers = {name.partition("[")[2].rstrip("]") for name in made}
    assert not [line for line in pinned if any(number in line for number in numbers)]
    assert interfaces_and_mounts() == before


@pytest.mark.needs("mininet", "shaped-link", "criu", "tshark")
@pytest.mark.parametrize("action", ["dump", "restore"])
def test_sigkill_of_the_tool_in_mid_migration_leaves_nothing(action: str, tmp_path: Path) -> None:
    """The tool dies while CRIU has the server stopped: at its beginning, and after it has crossed over."""
    before = interfaces_and_mounts()
    words = ["run", "--strategy", "symmetric", "--engine", "criu-cold", "--memory-mib", "50", "--json"]
    with (tmp_path / "log").open("wb") as log:
        tool = spawn(
            [sys.executable, "-m", "cli.main", *words, "--runs", tmp_path / "runs"],
            stdout=log,
            stderr=log,
            cwd=CHECKOUT,
        )
    tag = ownership.tool_tag(tool.pid)

    def mine() -> list[TaggedProcess]:
        return [process for process in ownership.tagged_processes() if process.tool == tag]

    def criu_acts() -> bool:
        assert tool.poll() is None, (tmp_path / "log").read_text()
        if not (tmp_path / "runs").is_dir():  # CRIU acts in the probes before the run as well
            return False
        commands = (process.command.split() for process in mine())
        return any(
            "criu" in Path(word).name for c in commands if action in c for word in c[: c.index(action)]
        )

    try:
        assert eventually(criu_acts, 180), (tmp_path / "log").read_text()
        living = [process.pid for process in mine()]
        made = namespaces(living)
        assert sum(name.startswith("pid:") for name in made) >= 2  # the run's, and the container's
        living_then = all_pids()
        tool.kill()
        tool.wait()
        assert eventually(lambda: not mine()), mine()
        assert eventually(lambda: not namespaces(living_then) & made)
        assert eventually(lambda: not [pid for pid in living if is_zombie(pid)])
    finally:
        tool.kill()
        tool.wait()
    assert interfaces_and_mounts() == before
    left = list((tmp_path / "runs").iterdir())
    assert [path.suffix for path in left] == [".partial"]  # raw data of a run that did not get done
    assert left[0].stem not in ownership.clean(tmp_path / "runs", dry_run=True).living_runs


def test_the_tool_may_be_killed_at_any_moment_of_the_beginning(tmp_path: Path) -> None:
    """Also before PID 1 of the private root has come to read its lifeline."""
    roots = []
    for number in range(12):
        run_id = f"early-{os.getpid()}-{number}"
        tool, root_pid = start_tool(tmp_path, run_id, "import time; time.sleep(600)")
        time.sleep(number * 0.004)
        tool.kill()
        tool.wait()
        assert eventually(lambda run_id=run_id: not of_run(run_id)), number
        roots.append(root_pid)
    assert eventually(lambda: not [pid for pid in roots if Path(f"/proc/{pid}").exists()])


def test_a_private_root_from_another_thread_outlives_the_thread_but_not_the_tool(tmp_path: Path) -> None:
    script = """
import threading, time, sys
from quicferry.emulation.sandbox import private_root
made = []
def begin():
    made.append(private_root.start(["sleep", "600"], run_id=sys.argv[1]))
thread = threading.Thread(target=begin)
thread.start()
thread.join()
time.sleep(0.3)
print(made[0].poll(), made[0].pid, flush=True)
time.sleep(600)
"""
    run_id = f"thread-{os.getpid()}"
    tool = spawn(
        [sys.executable, "-c", script, run_id],
        stdout=PIPE,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        cwd=CHECKOUT,
    )
    try:
        assert tool.stdout is not None
        words = tool.stdout.readline().split()
        assert words[0] == b"None"
        assert of_run(run_id)
    finally:
        tool.kill()
        tool.wait()
        assert tool.stdout is not None
        tool.stdout.close()
    assert eventually(lambda: not of_run(run_id))


def test_the_exit_code_and_the_streams_are_those_of_the_command(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with out.open("wb") as stdout:
        root = private_root.start(["sh", "-c", "read x; echo got $x; exit 7"], stdin=PIPE, stdout=stdout)
        assert root.process.stdin is not None
        root.process.stdin.write(b"this\n")
        root.process.stdin.close()
        assert root.wait(10) == 7
    assert out.read_text() == "got this\n"
    with private_root.start(["sh", "-c", "kill -9 $$"]) as root:
        assert root.wait(10) == 128 + 9
    assert private_root.enter(["true"]) == 0


def test_a_private_root_can_be_had_from_the_command_line() -> None:
    words = [sys.executable, "-m", "quicferry.emulation.sandbox.private_root"]
    inside = run([*words, "sh", "-c", "ls /sys/class/net; exit 4"], check=False)
    assert (inside.status, inside.stdout) == (4, "lo\n")
    assert "usage" in run(words, check=False).stderr


def test_a_command_that_is_not_there_is_told(tmp_path: Path) -> None:
    with (tmp_path / "err").open("wb") as stderr:
        assert private_root.start(["no-such-program"], stderr=stderr).wait(10) == 127
    assert "no-such-program" in (tmp_path / "err").read_text()


def test_stop_asks_first_and_then_ends() -> None:
    with private_root.start(["sh", "-c", "trap 'exit 5' TERM; echo; while :; do sleep 0.01; done"]) as root:
        time.sleep(0.3)
        assert root.stop() == 5
    with private_root.start(["sh", "-c", "trap '' TERM; sleep 600 & sleep 600"]) as root:
        time.sleep(0.3)
        begun = time.monotonic()
        assert root.stop(grace_s=0.2) == 128 + 9
        assert time.monotonic() - begun < 60
    assert root.stop() == 128 + 9  # the end does not change


def test_a_timeout_leaves_nothing() -> None:
    run_id = f"timeout-{os.getpid()}"
    with pytest.raises(TimeoutExpired):
        private_root.enter(["sleep", "600"], run_id=run_id, timeout_s=0.3)
    assert not of_run(run_id)


def test_inside_it_is_another_world(tmp_path: Path) -> None:
    script = """
    report({"run": os.listdir("/run"), "nets": os.listdir("/sys/class/net"),
            "pids": sorted(int(p) for p in os.listdir("/proc") if p.isdigit())[0],
            "ns": [os.readlink(f"/proc/self/ns/{k}") for k in ("net", "mnt", "pid")],
            "lo": open("/sys/class/net/lo/operstate").read().strip(),
            "run_id": os.environ["QUICFERRY_RUN"]})
    """
    with InPrivateRoot(script, tmp_path) as inside:
        seen = inside.result()
        assert inside.root.run_id == seen["run_id"]
    assert seen["run"] == []
    assert seen["nets"] == ["lo"]
    assert seen["lo"] == "unknown"  # an "up" loopback has no carrier to tell of
    assert seen["pids"] == 1
    assert not set(seen["ns"]) & {str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in KINDS}


def orphan(run_id: str, tool: str) -> Popen[bytes]:
    return spawn(["sleep", "600"], env={**os.environ, RUN_TAG: run_id, TOOL_TAG: tool})


def dead_tool() -> str:
    tool = spawn(["sleep", "600"])
    assert eventually(lambda: ownership.start_ticks(tool.pid))
    tag = ownership.tool_tag(tool.pid)
    assert not ownership.tool_is_gone(tag)
    tool.kill()
    tool.wait()
    return tag


def test_clean_ends_what_a_dead_tool_left_and_nothing_else(tmp_path: Path) -> None:
    tag = dead_tool()
    assert ownership.tool_is_gone(tag)
    mine = f"clean-{os.getpid()}"
    dead = orphan(f"{mine}-dead", tag)
    elsewhere = ":".join([*tag.split(":")[:2], "1"])  # a tool in a process namespace that is not ours
    spared = [
        orphan(f"{mine}-living", ownership.tool_tag()),
        orphan(f"{mine}-elsewhere", elsewhere),
        orphan(f"{mine}-unreadable", "who knows"),
        spawn(["sleep", "600"]),
    ]
    runs = tmp_path / "runs"
    for name in (f"{mine}-dead", f"{mine}-living", f"{mine}-young", f"{mine}-older"):
        (runs / f"{name}.partial").mkdir(parents=True)
        (runs / f"{name}.partial" / "events.jsonl").touch()
    (runs / f"{mine}-complete").mkdir()
    for path in runs.iterdir():
        if "young" not in path.name:
            os.utime(path, (0, 0))
    try:
        assert eventually(lambda: len([p for p in ownership.tagged_processes() if mine in p.run_id]) == 4)
        runner = CliRunner()
        looked = runner.invoke(clean_command, ["--dry-run", "--partial", "--runs", str(runs)])
        assert looked.exit_code == 0
        assert f"would end process {dead.pid} of run {mine}-dead" in looked.stdout
        assert dead.poll() is None
        assert len(list(runs.iterdir())) == 5

        kept = runner.invoke(clean_command, ["--runs", str(runs)])
        assert kept.exit_code == 0
        assert dead.wait(5) == -signal.SIGKILL
        assert [process.poll() for process in spared] == [None] * 4
        assert len(list(runs.iterdir())) == 5

        removed = runner.invoke(clean_command, ["--partial", "--json", "--runs", str(runs)])
        assert removed.exit_code == 0
        assert removed.stdout.count("\n") == 1
        left = {path.name.removeprefix(f"{mine}-") for path in runs.iterdir()}
        assert left == {"living.partial", "young.partial", "complete"}
    finally:
        for process in [dead, *spared]:
            process.kill()
            process.wait()


def test_a_process_id_that_was_given_out_again_is_not_ended() -> None:
    with_tag = orphan(f"reuse-{os.getpid()}", dead_tool())
    try:
        assert eventually(lambda: of_run(f"reuse-{os.getpid()}"))
        (seen,) = of_run(f"reuse-{os.getpid()}")
        earlier = TaggedProcess(
            pid=seen.pid, run_id=seen.run_id, tool=seen.tool, command="", tool_is_gone=True, start_ticks=1
        )
        assert ownership.end(earlier)
        assert with_tag.poll() is None
        assert ownership.end(seen, wait_s=0.1) or with_tag.wait(2) is not None
    finally:
        with_tag.kill()
        assert with_tag.wait() == -signal.SIGKILL


def test_clean_sees_nothing_where_there_is_nothing(tmp_path: Path) -> None:
    report = ownership.clean(tmp_path / "no-such-directory", partial=True, dry_run=True)
    assert report.removed == report.kept == report.failed == ()
