"""The files of a container's layer: what is sent of them, move by move."""

from __future__ import annotations

import asyncio
import tarfile
from pathlib import Path, PurePosixPath

import pytest

from quicferry import process
from quicferry.migration.container.layer import UPPER, Layer
from quicferry.migration.container.processes import Completed


class Box:
    """A host's container whose ``/run`` is a directory of the test."""

    edge = "edge-1"

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, inside: str) -> Path:
        return self.directory / inside.lstrip("/")

    async def run(self, argv: list[str], *, timeout_s: float) -> Completed:
        here = [word.replace("/run/", f"{self.directory}/run/") for word in argv]
        done = process.run(here, check=False, timeout_s=timeout_s)
        return Completed(argv, done.status, done.stdout, done.stderr)


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """Where the container's files are."""
    upper = tmp_path / str(UPPER).lstrip("/")
    upper.mkdir(parents=True)
    return upper


def packed(layer: Layer, box: Box, number: int, *, quiet: bool) -> list[str]:
    images = PurePosixPath("/run/images")
    box.path(str(images)).mkdir(exist_ok=True)
    names = asyncio.run(layer.pack(images, number, quiet=quiet))
    found: list[str] = []
    for name in names:
        if name.endswith(".tar"):
            with tarfile.open(box.path(str(images / name))) as archive:
                found += archive.getnames()
    return sorted(found)


def test_after_a_move_that_was_called_off_all_files_are_sent_again(tmp_path: Path, written: Path) -> None:
    box = Box(tmp_path)
    layer = Layer(box, UPPER, "/nothing", [])  # type: ignore[arg-type] # what it needs of one
    (written / "old").write_text("1")
    (written / "log").write_text("1\n")
    assert packed(layer, box, 0, quiet=False) == ["log", "old"]
    with (written / "log").open("a") as log:
        log.write("2\n")
    assert packed(layer, box, 1, quiet=True) == ["log"], "what differs by then"
    # called off: the next destination has an empty layer, and so has this one
    assert packed(layer, box, 0, quiet=False) == ["log", "old"]
    assert packed(layer, box, 1, quiet=True) == []
