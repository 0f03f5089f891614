"""The fork server: what a program gets that was forked and not started, and how it ends."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec
import pytest

from quicferry.paths import CHECKOUT
from quicferry.process import run

pytestmark = pytest.mark.needs("root")

PROGRAM = '''
"""Tells of itself, as JSON."""
import json, os, signal, sys
LOADED_BY = os.getpid()

def main():
    how = sys.argv[1]
    if how == "fail":
        raise ValueError("on purpose")
    if how == "wait":
        sys.stdin.read()
    me = {"argv": sys.argv[1:], "pid": os.getpid(), "ppid": os.getppid(), "sid": os.getsid(0),
          "env": dict(os.environ), "cwd": os.getcwd(), "loaded_by": LOADED_BY,
          "net": os.readlink("/proc/self/ns/net"), "mnt": os.readlink("/proc/self/ns/mnt"),
          "shown": open("/proc/self/cmdline").read(),
          "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd"))[:3]}
    print(json.dumps(me))
'''

ASKING = """
import json, os, signal, sys
from quicferry.fork_server import ForkServer
from quicferry.process import PIPE, spawn, stop
forks = ForkServer.start(["a_program"])
other = spawn(["unshare", "--net", "--mount", "sh", "-c", "echo; exec sleep 60"], stdout=PIPE)
other.stdout.readline()
told = {"me": os.getpid(), "net": os.readlink(f"/proc/{other.pid}/ns/net"),
        "mnt": os.readlink(f"/proc/{other.pid}/ns/mnt")}
def start(how, **streams):
    return forks.spawn("a_program", [how, "b"], namespaces_of=other.pid, env={"ONLY": "this"}, **streams)
with start("tell", stdout=PIPE) as one, start("tell", stdout=PIPE) as two:
    told["one"], told["two"] = json.loads(one.stdout.read()), json.loads(two.stdout.read())
    told["pids"], told["statuses"] = [one.pid, two.pid], [one.wait(10), two.wait(10)]
with start("wait", stdin=PIPE, stdout=PIPE) as waiting:
    told["while it waits"] = waiting.poll()
    waiting.stdin.close()
    told["after"] = waiting.wait(10)
with open("log", "wb") as log:
    told["failed"] = start("fail", stderr=log).wait(10)
with start("wait", stdin=PIPE) as killed:
    told["killed"] = stop(killed)
stop(other); other.stdout.close()
print(json.dumps(told))
"""


def test_a_forked_program_is_as_one_that_was_started(tmp_path: Path) -> None:
    (tmp_path / "a_program.py").write_text(PROGRAM)
    (tmp_path / "asking.py").write_text(ASKING)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHECKOUT), str(tmp_path)])}
    done = run([sys.executable, "-W", "error", tmp_path / "asking.py"], env=env, cwd=tmp_path)
    told = msgspec.json.decode(done.stdout)
    one, two = told["one"], told["two"]
    assert [one["pid"], two["pid"]] == told["pids"]
    assert one["pid"] != two["pid"]
    assert one["ppid"] == told["me"], "it is a child of who asked, who can wait for it"
    assert one["sid"] == one["pid"]
    assert one["argv"] == ["tell", "b"]
    assert one["env"] == {"ONLY": "this"}
    assert one["cwd"] == str(tmp_path)
    shown = "\0".join([sys.executable, "-m", "a_program", "tell", "b"])
    assert one["shown"].rstrip("\0") and shown.startswith(one["shown"].rstrip("\0"))
    assert "a_program" in one["shown"]
    assert (one["net"], one["mnt"]) == (told["net"], told["mnt"])
    assert one["loaded_by"] == two["loaded_by"] == told["me"], "nothing was loaded again"
    assert one["descriptors"] == [0, 1, 2]
    assert told["statuses"] == [0, 0]
    assert told["while it waits"] is None
    assert told["after"] == 0
    assert told["failed"] == 1
    assert "ValueError: on purpose" in (tmp_path / "log").read_text()
    assert told["killed"] == -15
