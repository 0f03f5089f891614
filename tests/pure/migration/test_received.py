"""What was received is checked again when it is about to be read; links of a container are not followed."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import msgspec
import pytest

from quicferry.errors import MigrationError
from quicferry.migration.container.beneath import (
    names_beneath,
    open_beneath,
    read_beneath,
    remove_beneath,
)
from quicferry.migration.container.container import Container
from quicferry.migration.criu.image_stream import (
    CheckpointManifest,
    RecordKind,
    Unpacker,
    memory_of_this_machine,
    record,
)
from quicferry.migration.criu.packing import Packer, unpack
from quicferry.migration.criu.received import BLOCK_BYTES, ReceivedFiles
from quicferry.migration.engines.criu.cold import CriuColdEngine

MANIFEST = CheckpointManifest(epoch=1, pid=10_000, files=[])
NAMES = ("pages-1.img", "core-1.img", "round-0/pages-1.img", "empty.img")


def received(tmp_path: Path) -> tuple[ReceivedFiles, dict[str, Path]]:
    """Files of several sizes, written as a transfer writes them."""
    root = tmp_path / "host"
    images = root / "run" / "images"
    images.mkdir(parents=True)
    draw = random.Random(7)
    contents = dict(zip(NAMES, (2 * BLOCK_BYTES + 4321, 700, BLOCK_BYTES, 0), strict=True))
    records = []
    for name, size in contents.items():
        data = draw.randbytes(size)
        cuts = [data[start : start + 300_000] for start in range(0, size, 300_000)] or [b""]
        records += [record(RecordKind.IMAGE, name, piece) for piece in cuts]
    records += [
        record(RecordKind.MANIFEST, "", msgspec.json.encode(MANIFEST)),
        record(RecordKind.END, "", b""),
    ]
    files = ReceivedFiles()
    reader = Unpacker(images, root, files)
    stream = b"".join(records)
    for start in range(0, len(stream), 100_003):
        reader.feed(stream[start : start + 100_003])
    return files, {name: images / name for name in NAMES}


def test_what_nobody_touched_passes(tmp_path: Path) -> None:
    files, paths = received(tmp_path)
    assert files.check() == sum(path.stat().st_size for path in paths.values())
    assert set(files.paths) == set(paths.values())
    assert files.check([paths["core-1.img"]]) == 700


@pytest.mark.parametrize("name", NAMES[:3])
def test_one_changed_bit_anywhere_is_found(tmp_path: Path, name: str) -> None:
    files, paths = received(tmp_path)
    path = paths[name]
    size = path.stat().st_size
    for place in (0, size // 2, size - 1, min(BLOCK_BYTES, size) - 1):
        with path.open("r+b") as file:
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 0x10]))
        with pytest.raises(MigrationError, match=rf"{path.name} is not what was received"):
            files.check()
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([byte]))
        files.check()


@pytest.mark.parametrize("change", ["shorter", "longer", "gone"])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_another_size_is_found(tmp_path: Path, name: str, change: str) -> None:
    files, paths = received(tmp_path)
    path = paths[name]
    if change == "gone":
        path.unlink()
    elif change == "longer":
        with path.open("ab") as file:
            file.write(b"x")
    elif path.stat().st_size:
        os.truncate(path, path.stat().st_size - 1)
    else:
        return
    with pytest.raises(MigrationError):
        files.check()


# --- links that a container has made ----------------------------------------------------------------


@pytest.mark.parametrize("inside", ["run/link/file", "run/deep/link/file", "run/final"])
def test_no_link_is_followed(tmp_path: Path, inside: str) -> None:
    """The directory, a directory in the middle, or the file itself is a link to somewhere else."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "run" / "deep").mkdir(parents=True)
    elsewhere.mkdir()
    secret = elsewhere / "file"
    secret.write_text("of the host")
    (root / "run" / "link").symlink_to(elsewhere)
    (root / "run" / "deep" / "link").symlink_to(elsewhere)
    (root / "run" / "final").symlink_to(secret)
    with pytest.raises(MigrationError, match="is not followed"):
        os.close(open_beneath(root, PurePosixPath(inside), os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
    assert secret.read_text() == "of the host"
    if inside == "run/final":
        remove_beneath(root, PurePosixPath(inside))  # the link, not what it leads to
        assert not (root / "run" / "final").is_symlink()
    assert secret.read_text() == "of the host"


def test_a_checkpoint_does_not_write_through_links(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    (root / "run").mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "log").write_text("of the host")
    (root / "run" / "state").symlink_to(elsewhere)
    reader = Unpacker(root / "run" / "state" / "criu", root)
    with pytest.raises(MigrationError, match="is not followed"):
        reader.feed(record(RecordKind.IMAGE, "core-1.img", b"data"))
    (root / "run" / "service").symlink_to(elsewhere)
    reader = Unpacker(root / "run" / "images", root)
    with pytest.raises(MigrationError, match="is not followed"):
        reader.feed(record(RecordKind.FILE, "/run/service/log", b"data"))
    assert [path.name for path in elsewhere.iterdir()] == ["log"]
    assert (elsewhere / "log").read_text() == "of the host"


def test_a_path_that_leads_out(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="leads out of the container"):
        open_beneath(tmp_path, PurePosixPath("run/../../etc/passwd"), os.O_RDONLY)


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A container's root with a link to a host's file, a pipe, and a file of its own."""
    root, secret = tmp_path / "root", tmp_path / "secret"
    (root / "run").mkdir(parents=True)
    secret.write_text("of the host")
    (root / "run" / "service-1.log").write_text("of the server")
    (root / "run" / "service-2.log").symlink_to(secret)
    os.mkfifo(root / "run" / "service-3.log")
    (root / "away").symlink_to(tmp_path)
    return root


def test_what_is_collected_is_read_from_the_container_only(box: Path) -> None:
    names = names_beneath(box, PurePosixPath("/run/service-*.log"))
    assert [path.name for path in names] == ["service-1.log", "service-2.log", "service-3.log"]
    assert read_beneath(box, names[0], 100) == b"of the server"
    with pytest.raises(MigrationError, match="is not followed"):
        read_beneath(box, names[1], 100)
    with pytest.raises(MigrationError, match="is no file"):  # and nobody waits for a writer
        read_beneath(box, names[2], 100)
    with pytest.raises(MigrationError, match="longer than 5 bytes"):
        read_beneath(box, names[0], 5)
    assert names_beneath(box, PurePosixPath("/run/none/*.log")) == []
    with pytest.raises(MigrationError, match="is not followed"):
        names_beneath(box, PurePosixPath("/away/*"))


def test_an_open_file_of_the_server_is_no_way_to_the_hosts_files(tmp_path: Path) -> None:
    """A server in a container opens its log and puts a link in its place before it is dumped."""
    (tmp_path / "secret").write_text("of the host")
    (tmp_path / "run/box").mkdir(parents=True)
    (tmp_path / "run/box/log").write_text("of the server")
    (tmp_path / "run/box/link").symlink_to(tmp_path / "secret")
    box = Container.__new__(Container)
    box.path = lambda inside: tmp_path / inside.lstrip("/")  # type: ignore[method-assign]
    context = SimpleNamespace(container=box, edge="edge-1", state_dir=PurePosixPath("/run/state"))
    engine = CriuColdEngine(context)  # type: ignore[arg-type]

    def sent(name: str) -> bytes:
        return b"".join(engine._file_records(1, CheckpointManifest(epoch=1, pid=1, files=[name])))

    assert b"of the server" in sent("/run/box/log")
    with pytest.raises(MigrationError, match="link"):
        sent("/run/box/link")


def test_a_stream_that_unpacks_to_more_than_the_machine_has_is_not_taken(tmp_path: Path) -> None:
    """16 MiB of nothing in some hundred bytes: more than is allowed here, and never all at once."""
    unpacker = Unpacker(tmp_path / "images", tmp_path)
    unpacker.most_bytes = 1 << 20
    largest = 0
    feed = unpacker.feed

    def watched(data: bytes) -> None:
        nonlocal largest
        largest = max(largest, len(data))
        feed(data)

    unpacker.feed = watched  # type: ignore[method-assign]
    packer = Packer("zstd")
    bomb = packer.pack(record(RecordKind.IMAGE, "pages-1.img", bytes(16 << 20)), flush=True)

    async def chunks() -> AsyncIterator[bytes]:
        for chunk in bomb:
            yield chunk

    assert sum(map(len, bomb)) < 16 << 10
    with pytest.raises(MigrationError, match="unpacks to more than 1048576 bytes"):
        asyncio.run(unpack("zstd", unpacker, chunks()))
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.img")) <= 1 << 20
    assert memory_of_this_machine() > 1 << 28
