"""The files that a container has written move with it: none of their lines is lost or doubled."""

from pathlib import Path

import pytest

from tests.e2e.migration.criu_scripts import played

pytestmark = pytest.mark.needs("oci", "criu-lazy-pages")

#: Beside the server: lines to a log in the layer and to one in a volume. Files of the image are replaced.
START = """#!/bin/sh
rm /etc/removed; rm -r /opt/replaced; mkdir -p /opt/replaced /var/log; echo new >/opt/replaced/new
chmod 751 /opt/replaced/new; ln -s new /opt/replaced/link
( n=0; exec 3>>/var/log/lines
  while :; do
    n=$((n+1)); echo "$n" >&3; echo "$n" >>/srv/data/lines; echo "$n" >/tmp/f$((n%5)); sleep 0.003
  done ) &
exec "$@"
"""

HOPS = """
from quicferry.migration.container import oci_bundle

def tree(box):
    root = box.inside(oci_bundle.ROOTFS)
    found = {}
    for name in ("etc/removed", "etc/kept", "opt/replaced/old", "opt/replaced/new", "opt/replaced/link"):
        path = root / name
        if path.is_symlink():
            found[name] = str(path.readlink())
        elif path.exists():
            status = path.stat()
            found[name] = [oct(status.st_mode & 0o777), status.st_uid, status.st_gid, path.read_text()]
    return found

def lines(box, path):
    return [int(line) for line in box.path(path).read_text().splitlines()]

async def play():
    given = ContainerFiles(image=ARGUMENTS, volumes=[Volume(source="data", target="/srv/data")], disk_mib=3)
    async with edges("edge-1", "edge-2", engine="ENGINE", given=given) as (a, b):
        pid = await a.container.start(["/app/start.sh", sys.executable, str(SERVER), "5"])
        before = await a.ask()
        first = tree(a.container)
        counts = []
        for epoch, (here, there) in enumerate([(a, b), (b, a)], 1):
            await asyncio.sleep(0.2)
            await whole_move(epoch, here, there)
            counts.append(len(lines(there.container, "/run/oci/bundle/rootfs/var/log/lines")))
        after = await a.ask()
        await asyncio.sleep(0.3)
        box = a.container
        await box.halt(box.service_pid)
        disk = sorted((box.inside(oci_bundle.ROOTFS) / "var/lib/quicferry-disk").iterdir())
        return dict(
            before=before, after=after, first=first, last=tree(box), counts=counts,
            log=lines(box, "/run/oci/bundle/rootfs/var/log/lines"),
            volume=lines(box, "/run/oci/layer/volumes/data/lines"), disk=[p.stat().st_size for p in disk],
        )
"""


FAILS = """
from quicferry.migration.container.layer import UPPER, VOLUMES

def written(edge):
    found = [p for part in (UPPER, VOLUMES) for p in edge.container.path(str(part)).rglob("*") if p.is_file()]
    return sorted(str(path.relative_to(edge.container.path("/run/oci/layer"))) for path in found)

async def play():
    given = ContainerFiles(image=ARGUMENTS, volumes=[Volume(source="data", target="/srv/data")])
    async with edges("edge-1", "edge-2", engine="ENGINE", given=given) as (a, b):
        await a.container.start(["/app/start.sh", sys.executable, str(SERVER), "5"])
        before = await a.ask()
        move = order(1, a, b)
        await prepare(move, a, b)
        came = written(b)
        stream = a.engine.checkpoint(move)
        first = await anext(stream)
        await stream.aclose()
        said = await broken_off(move, a, b, [first[: len(first) // 2]])
        left, kept = written(b), written(a)
        await b.engine.abandon_destination(move, "told twice")
        try:  # a move to where the server runs is refused, and takes none of its files
            await a.engine.prepare_destination(order(2, b, a))
        except MigrationError as error:
            refused = str(error)
        await a.engine.abandon_destination(order(2, b, a), "refused")
        still = written(a)
        await whole_move(3, a, b)
        return dict(
            said=said, came=came, left=left, kept=kept, still=still, refused=refused,
            before=before, after=await b.ask(), moved=written(b),
        )
"""


def test_a_move_that_fails_leaves_no_files_of_the_container(tmp_path):
    got = played(FAILS, tmp_path, arguments=str(image(tmp_path)), ENGINE="runc-cold")
    assert "cut off" in got["said"]
    assert {"upper/var/log/lines", "volumes/data/lines", "upper/opt/replaced/new"} <= set(got["came"])
    assert got["left"] == []
    assert set(got["came"]) <= set(got["kept"]), "the source has them all"
    assert "already runs" in got["refused"]
    assert set(got["kept"]) <= set(got["still"])
    assert {"upper/var/log/lines", "volumes/data/lines", "upper/opt/replaced/new"} <= set(got["moved"])
    assert got["after"]["sha256"] == got["before"]["sha256"]


def image(directory: Path) -> Path:
    made = directory / "image"
    for name, text in {
        "app/start.sh": START, "etc/removed": "x", "etc/kept": "kept", "opt/replaced/old": "x",
    }.items():  # fmt: skip
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(text)
    (made / "app/start.sh").chmod(0o755)
    (made / "tmp").mkdir()
    return made


@pytest.mark.parametrize("engine", ["runc-cold", "runc-pre-copy", "runc-post-copy", "runc-hybrid"])
def test_no_line_is_lost_or_doubled_and_files_are_as_they_were(tmp_path, engine):
    got = played(HOPS, tmp_path, arguments=str(image(tmp_path)), ENGINE=engine)
    assert got["log"] == list(range(1, len(got["log"]) + 1))
    assert abs(len(got["volume"]) - len(got["log"])) <= 1
    assert got["volume"] == list(range(1, len(got["volume"]) + 1))
    assert sorted(set(got["counts"])) == got["counts"], "it goes on writing on each host"
    assert len(got["log"]) > got["counts"][-1]
    assert got["first"] == got["last"]
    assert set(got["last"]) == {"etc/kept", "opt/replaced/new", "opt/replaced/link"}
    assert got["last"]["opt/replaced/new"] == ["0o751", 0, 0, "new\n"]
    assert got["last"]["opt/replaced/link"] == "new"
    assert got["disk"] == [1 << 20] * 3
    assert got["after"]["orders"] == ["Freeze", "Resume"] * 2
    assert got["after"]["sha256"] == got["before"]["sha256"]
    assert (tmp_path / "image/etc/removed").exists(), "the image itself stays as it is"
