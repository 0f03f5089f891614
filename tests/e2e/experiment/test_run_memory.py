"""``quicferry run`` with engines that move the memory before or after the downtime, and a busy server."""

from __future__ import annotations

from pathlib import Path

import pytest

from quicferry.events import read_events
from quicferry.record import RunPaths, read_manifest
from quicferry.units import BYTES_PER_MIB
from tests.e2e.experiment.test_run import assert_sound, run

pytestmark = pytest.mark.needs("mininet", "tcpdump", "tshark", "criu", "criu-lazy-pages")

#: engine, another axis, a part of what the result says of the memory's way
TRACKS = pytest.mark.needs("criu-tracking")
SERVES = pytest.mark.needs("criu-page-server")
BY_CRIU = ("--memory-by", "criu")
RUNS = [
    ("criu-pre-copy", ("--dirty-mib-s", "5"), "rounds, ended by the rule"),
    ("criu-post-copy", ("--compression", "none"), "pages afterwards"),
    # how many of these are still missing when it resumes depends on how long the dump takes
    ("criu-hybrid", ("--dirty-mib-s", "40"), "the changed pages served from the stopped process"),
    pytest.param("criu-post-copy", BY_CRIU, "CRIU's page server", marks=SERVES),
    pytest.param("criu-pre-copy", BY_CRIU, "CRIU's pre-dumps", marks=TRACKS),
    pytest.param("criu-hybrid", BY_CRIU, "CRIU's pre-dumps", marks=(TRACKS, SERVES)),
]


@pytest.mark.parametrize(("engine", "more", "said"), RUNS)
def test_the_server_moves_with_its_memory(
    tmp_path: Path, engine: str, more: tuple[str, ...], said: str
) -> None:
    result = run(tmp_path, "--strategy", "symmetric", "--engine", engine, "--memory-mib", "10", *more)
    assert_sound(result)
    assert said in result["memory_path"]
    assert result["transferred_bytes"] > 10 * BYTES_PER_MIB, "all of it, whenever it crossed"
    assert result["inter_edge_bytes"] > result["transferred_bytes"], "and on the link between the edges"
    manifest = read_manifest(Path(result["run_dir"]))
    assert manifest.memory_by == ("criu" if more == BY_CRIU else "agents")
    names = [event.name for event in read_events(RunPaths(Path(result["run_dir"])).events)]
    if engine != "criu-post-copy":
        assert names.index("migration.precopy.complete") < names.index("server.frozen")
    if engine != "criu-pre-copy":
        assert names.index("server.resumed") < names.index("migration.pages.complete")


@pytest.mark.needs("oci", "criu-page-server")
def test_a_container_whose_memory_criu_brings_moves_there_and_back(tmp_path: Path) -> None:
    more = ("--engine", "runc-post-copy", "--memory-by", "criu", "--moves", "2", "--before-s", "0.5")
    result = run(tmp_path, "--strategy", "symmetric", "--disk-mib", "20", "--compression", "none", *more)
    assert_sound(result)
    events = read_events(RunPaths(Path(result["run_dir"])).events)
    moved = [event.detail["forwarded_datagrams"] for event in events if event.name == "migration.finished"]
    assert len(moved) == 2
    # two hosts that forwarded to each other sent 150,000 while the restored server lacked its first pages
    assert sum(moved) < 10 * result["requests_sent"]
    ahead = [event.detail["bytes"] for event in events if event.name == "migration.precopy.complete"]
    within = [event.detail["bytes"] for event in events if event.name == "migration.transfer.complete"]
    assert min(ahead) > 20 * BYTES_PER_MIB, "its files"
    assert max(within) < 10 * BYTES_PER_MIB, "and they do not cross once more while it stands still"
