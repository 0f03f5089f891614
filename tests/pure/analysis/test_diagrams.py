"""The sequence diagram that stands under a run's timeline."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cli import main
from quicferry.analysis.diagrams import MOST_DIAGRAMS, migration_diagram
from quicferry.paths import CHECKOUT


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    (recorded,) = (path for path in (CHECKOUT / "runs" / "golden").iterdir() if path.is_dir())
    return Path(shutil.copytree(recorded, tmp_path / recorded.name))


def test_it_has_the_hosts_and_the_frames_of_the_migration(golden: Path) -> None:
    drawn = migration_diagram(golden)
    assert drawn is not None
    words = " ".join(ElementTree.fromstring(drawn).itertext())
    assert "edge-1" in words and "edge-2" in words and "client" in words
    assert "SM_PREPARE" in words and "PATH_CHALLENGE" in words


def test_without_captures_or_with_damaged_ones_there_is_none(golden: Path) -> None:
    for capture in (golden / "captures").glob("*.pcapng"):
        capture.write_bytes(b"no capture at all")
    assert migration_diagram(golden) is None
    shutil.rmtree(golden / "captures")
    assert migration_diagram(golden) is None


def test_the_report_has_it_while_the_runs_are_few(golden: Path, tmp_path: Path) -> None:
    few, many = tmp_path / "few.html", tmp_path / "many.html"
    assert main.call(["report", str(golden), "-o", str(few)]) == 0
    copies = [shutil.copytree(golden, tmp_path / f"run-{number}") for number in range(MOST_DIAGRAMS + 1)]
    assert main.call(["report", *map(str, copies), "-o", str(many)]) == 0
    assert few.read_text().count('<div class="card scroll diagram">') == 1
    assert '<div class="card scroll diagram">' not in many.read_text()
