"""A server in a container of Podman's leaves one host and lives on in the other, or stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.migration.criu_scripts import SQUAT, check_there_and_back, played
from tests.pure.migration.test_oci_image import archive, layout

pytestmark = pytest.mark.needs("podman")

#: Beside the server: lines to a log in the layer and to one in a volume. A file of the image is removed.
START = """#!/bin/sh
rm /etc/removed; mkdir -p /var/log
( n=0; exec 3>>/var/log/lines
  while :; do n=$((n+1)); echo "$n" >&3; echo "$n" >>/srv/data/lines; sleep 0.003; done ) &
exec "$@"
"""


def image(directory: Path) -> Path:
    made = directory / "image"
    for name, text in {"app/start.sh": START, "etc/removed": "x", "etc/kept": "kept"}.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    (made / "app/start.sh").chmod(0o755)
    return made


def are_gone(groups: list[str]) -> bool:
    """Whether none of these control groups is left on this machine."""
    there = {path.name for path in Path("/sys/fs/cgroup").glob("**/*quicferry*")}
    return bool(groups) and not there & set(groups)


GROUPS = """
from quicferry.emulation.sandbox import cgroups
def groups_of(*edges):
    return [cgroups.own_group(edge.container.init_pid).name for edge in edges]
"""


SEEN = """
def seen(box):
    pid = box.service_pid
    status = dict(line.split(":", 1) for line in box.path(f"/proc/{pid}/status").read_text().splitlines())
    return dict(
        pids=status["NSpid"].split(), capabilities=int(status["CapEff"], 16), seccomp=int(status["Seccomp"]),
        uids=status["Uid"].split(), limits=box.path(f"/proc/{pid}/limits").read_text(),
        shared=[
            name for name in ("net", "pid", "mnt", "ipc", "uts", "time")
            if box.path(f"/proc/{pid}/ns/{name}").readlink() == box.path(f"/proc/1/ns/{name}").readlink()
        ],
    )
"""


def test_a_container_of_podmans_moves_to_and_fro_with_its_files_and_is_one(tmp_path):
    got = played(
        """
def lines(box, path):
    return [int(line) for line in box.path(f"/proc/{box.service_pid}/root/{path}").read_text().splitlines()]

async def play():
    given = ContainerFiles(image=ARGUMENTS, volumes=[Volume(source="data", target="/srv/data")], disk_mib=3)
    async with edges("edge-1", "edge-2", engine="podman-cold", given=given) as (a, b):
        await a.container.start(["/app/start.sh", sys.executable, str(SERVER), "5"])
        before, first = await a.ask(), seen(a.container)
        move = order(1, a, b)
        resumed = await carry(move, a, b)
        silent = await a.ask(0.3)
        stopped = a.container.is_stopped(a.container.service_pid)
        await a.engine.give_up_source(move)
        await a.engine.give_up_source(move)
        there, second = await b.ask(), seen(b.container)
        count = len(lines(b.container, "var/log/lines"))
        await whole_move(2, b, a)
        back, box = await a.ask(), a.container
        await box.halt(box.service_pid)
        root = box.path(f"/proc/{box.service_pid}/root")
        return dict(
            before=before, first=first, there=there, second=second, back=back, silent=silent, stopped=stopped,
            resumed=resumed, now=time.monotonic_ns(), count=count, etc=sorted(os.listdir(root / "etc")),
            archives=[name for name in a.files() + b.files() if name.endswith(".tar")],
            log=lines(box, "var/log/lines"), volume=lines(box, "srv/data/lines"),
            disk=[file.stat().st_size for file in (root / "var/lib/quicferry-disk").iterdir()],
            groups=groups_of(a, b), detail=a.details("migration.checkpoint")[0],
            restored=b.details("migration.restore")[0],
        )
"""
        + GROUPS
        + SEEN,
        tmp_path,
        arguments=str(image(tmp_path)),
    )
    for where in ("first", "second"):
        seen = got[where]
        assert seen["pids"][-1] == "1", "a PID namespace of its own"
        assert seen["seccomp"] == 2, "Podman's default profile is in force"
        assert seen["capabilities"] == got["first"]["capabilities"] != 0
        assert seen["shared"] == ["net", "time"], "the host's network, and its clock also after the move"
    check_there_and_back(got)
    assert got["log"] == list(range(1, len(got["log"]) + 1))
    assert got["volume"] == list(range(1, len(got["volume"]) + 1))
    assert abs(len(got["volume"]) - len(got["log"])) <= 1
    assert len(got["log"]) > got["count"] > 0, "it goes on writing on each host"
    assert "removed" not in got["etc"] and "kept" in got["etc"]
    assert got["disk"] == [1 << 20] * 3
    assert got["archives"] == []
    assert got["detail"]["method"].startswith("dumped by Podman")
    assert got["restored"]["criu"]["pages_restored"] > 1000
    assert are_gone(got["groups"])


def test_what_fails_at_the_destination_leads_back_and_keeps_nothing_there(tmp_path):
    """The port is taken; the disk is full in mid-copy; the disk is full when Podman unpacks the archive.

    The server is not root's, and beside that has Podman's default seccomp profile and limits.
    """
    passwd = archive({"etc/passwd": "web:x:1000:1001::/:/bin/sh\n"})
    of_a_user = layout(tmp_path / "image", [passwd], config={"User": "web"})
    got = played(
        """
import shutil
async def tried(epoch, a, b):
    move = order(epoch, a, b)
    await prepare(move, a, b)
    return move

async def failed(move, a, b):
    try:
        await b.engine.restore(move, a.engine.checkpoint(move))
    except MigrationError as error:
        said = [str(error), error.hint]
    await b.engine.abandon_destination(move, "it failed")
    left = [b.files(), b.running()]
    await a.engine.resume_source(move, "the destination failed")
    return [*said, left, (await a.ask())["orders"]]

async def play():
    given = ContainerFiles(image=ARGUMENTS)
    async with edges("edge-1", "edge-2", engine="podman-cold", given=given) as (a, b):
        await a.start_server("20")
        before, first = await a.ask(), seen(a.container)
        move = await tried(1, a, b)
        squatter = subprocess.Popen([*b.container.command([sys.executable, "-c", SQUAT])])
        await asyncio.sleep(0.3)
        taken = await failed(move, a, b)
        squatter.kill()
        squatter.wait()
        enter = ["nsenter", f"--mount=/proc/{b.container.init_pid}/ns/mnt", "--"]
        full = []
        for epoch, room in ((2, 4 << 20), (3, 40 << 20)):
            move = await tried(epoch, a, b)
            used = shutil.disk_usage(b.container.path("/run")).used
            subprocess.run([*enter, "mount", "-o", f"remount,size={used + room}", "/run"], check=True)
            full.append(await failed(move, a, b))
            subprocess.run([*enter, "mount", "-o", "remount,size=50%", "/run"], check=True)
        await whole_move(4, a, b)
        return dict(before=before, taken=taken, full=full, moved=await b.ask(), groups=groups_of(a, b),
            first=first, second=seen(b.container))
"""
        + GROUPS
        + SEEN
        + SQUAT,
        tmp_path,
        arguments=str(of_a_user),
    )
    assert got["first"]["uids"] == got["second"]["uids"] == ["1000"] * 4
    assert got["first"]["limits"] == got["second"]["limits"]
    assert got["first"]["seccomp"] == got["second"]["seccomp"] == 2
    assert "podman restore failed" in got["taken"][0]
    assert "another process holds the port" in got["taken"][1]
    assert "no room here for the checkpoint" in got["full"][0][0]
    assert "podman restore failed" in got["full"][1][0]
    assert "there is no room" in got["full"][1][1]
    for number, (_, _, left, orders) in enumerate([got["taken"], *got["full"]], 1):
        assert orders == ["Freeze", "Abort"] * number
        assert left[0] == []
        assert len(left[1]) == (1 if number == 1 else 0), "what holds the port, and nothing of Podman's"
    assert got["moved"]["orders"] == ["Freeze", "Abort"] * 3 + ["Freeze", "Resume"]
    assert got["moved"]["sha256"] == got["before"]["sha256"]
    assert are_gone(got["groups"])
