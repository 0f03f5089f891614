"""The control groups of a run go with it, also when the tool or whoever made them was killed."""

import os
import signal
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.clean import clean as clean_command
from quicferry.emulation.sandbox import cgroups
from tests.e2e.emulation.test_ownership import start_tool
from tests.waiting import eventually

pytestmark = pytest.mark.needs("root")

#: Makes a group with a process in it, which is in a group within; says so and waits to be killed.
INSIDE = """
import subprocess, sys, time
from pathlib import Path
from quicferry.emulation.sandbox import cgroups
group = cgroups.make("edge 1")
for path in (group, group / "server"):
    if path != group:
        with cgroups._tree() as root:
            __import__("os").mkdir(str(path)[1:], dir_fd=root)
    procs = cgroups.open_procs(path)
    words = ["sh", "-c", 'echo 0 >"$0" && exec sleep 600', f"/proc/self/fd/{procs}"]
    sleeper = subprocess.Popen(words, pass_fds=[procs])
    while cgroups.own_group(sleeper.pid) != path:
        time.sleep(0.005)
Path(sys.argv[1], "made").write_text(group.name)
time.sleep(600)
"""


@pytest.mark.parametrize("victim", ["the tool", "the private root"])
def test_the_groups_of_a_run_that_was_killed_are_removed(victim: str, tmp_path: Path) -> None:
    tool, root_pid = start_tool(tmp_path, f"groups-{tmp_path.name}", INSIDE)
    try:
        assert eventually((tmp_path / "made").exists)
        name = (tmp_path / "made").read_text()
        assert ".edge-1." in name and name in cgroups._names()
        gone, stuck = cgroups.remove_orphans()
        assert name not in gone + stuck, "its tool lives"
        if victim == "the tool":
            tool.kill()
            tool.wait()
            said = CliRunner().invoke(clean_command, ["--runs", str(tmp_path)]).output
            assert f"removed the control group {name}" in said
        else:
            os.kill(root_pid, signal.SIGKILL)
            assert eventually(lambda: cgroups.remove(cgroups.own_group() / name, 0.0))
        assert name not in cgroups._names()
    finally:
        tool.kill()
        tool.wait()


def test_nothing_but_groups_of_ours_is_removed() -> None:
    assert not cgroups.remove(cgroups.own_group() / "system.slice")
    assert cgroups.NAME.fullmatch("quicferry.1.2.3.run-1.edge-1.0a1b")
    assert cgroups.NAME.fullmatch("quicferry") is None
    assert cgroups.NAME.fullmatch("quicferry.1.2.3.run.edge.0a1b/..") is None
