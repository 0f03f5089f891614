"""The stream of a checkpoint: whatever way it is cut, it comes out whole, and it cannot harm the host."""

import contextlib
import itertools
import struct
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicferry.errors import MigrationError
from quicferry.migration.container.beneath import open_beneath
from quicferry.migration.criu import image_stream
from quicferry.migration.criu.image_stream import (
    FORMAT_VERSION,
    LENGTH,
    MAX_HEADER_BYTES,
    CheckpointManifest,
    RecordKind,
    Unpacker,
    record,
)
from quicferry.migration.criu.stats import STATS_MAGIC, read_dump_stats, read_restore_stats

MANIFEST = CheckpointManifest(epoch=3, pid=11_000, files=["/run/service-11000.log"])


def stream(*records: bytes, manifest: CheckpointManifest = MANIFEST) -> bytes:
    end = record(RecordKind.MANIFEST, "", msgspec.json.encode(manifest)) + record(RecordKind.END, "", b"")
    return b"".join(records) + end


def unpacker(tmp_path, name="host"):
    images = tmp_path / name / "run" / "images"
    images.mkdir(parents=True)
    return Unpacker(images, tmp_path / name)


@given(
    pieces=st.lists(st.tuples(st.sampled_from(["pages-1.img", "core-1.img"]), st.binary(max_size=300))),
    cuts=st.lists(st.integers(0, 3000)),
)
def test_any_cutting_gives_the_same_files(tmp_path_factory, pieces, cuts):
    data = stream(*(record(RecordKind.IMAGE, name, piece) for name, piece in pieces))
    directory = tmp_path_factory.mktemp("cut")
    reader = unpacker(directory)
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    for start, end in itertools.pairwise(edges):
        reader.feed(data[start:end])
    assert reader.complete
    assert reader.manifest() == MANIFEST
    assert reader.received_bytes == len(data)
    for name in {name for name, _ in pieces}:
        written = (directory / "host" / "run" / "images" / name).read_bytes()
        assert written == b"".join(piece for other, piece in pieces if other == name)


def held_open(directory):
    """The names of the files below a directory that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the listing itself
            found.append(descriptor.readlink())
    return [path.name for path in found if path.is_relative_to(directory)]


def test_a_file_is_opened_once_for_each_record_and_never_left_open(tmp_path, monkeypatch):
    opened = []

    def counting(root, inside, *arguments):
        opened.append(str(inside))
        return open_beneath(root, inside, *arguments)

    monkeypatch.setattr(image_stream, "open_beneath", counting)
    reader = unpacker(tmp_path)
    data = record(RecordKind.IMAGE, "pages-1.img", bytes(1 << 20))
    data += record(RecordKind.IMAGE, "core-1.img", bytes(1 << 16))
    for start in range(0, len(data), 8192):
        reader.feed(data[start : start + 8192])
    assert opened == ["run/images/pages-1.img", "run/images/core-1.img"]
    assert held_open(tmp_path) == []
    reader.feed(data[:8192])  # cut off in the middle of a record
    assert held_open(tmp_path) == ["pages-1.img"]
    del reader
    assert held_open(tmp_path) == []


def test_an_open_file_gets_its_place_and_mode_and_replaces_what_was_there(tmp_path):
    reader = unpacker(tmp_path)
    log = tmp_path / "host" / "run" / "service.log"
    log.write_text("of an earlier stay")
    reader.feed(stream(record(RecordKind.FILE, "/run/service.log", b"said", 0o640)))
    assert log.read_text() == "said"
    assert log.stat().st_mode & 0o777 == 0o640


def test_an_empty_file_is_made_too(tmp_path):
    reader = unpacker(tmp_path)
    reader.feed(stream(record(RecordKind.FILE, "/run/service.log", b"")))
    assert (tmp_path / "host" / "run" / "service.log").read_bytes() == b""


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (RecordKind.IMAGE, "../core-1.img"),
        (RecordKind.IMAGE, "/etc/passwd"),
        (RecordKind.IMAGE, ".."),
        (RecordKind.IMAGE, ""),
        (RecordKind.FILE, "/etc/passwd"),
        (RecordKind.FILE, "/run/../etc/passwd"),
        (RecordKind.FILE, "/run"),
        (RecordKind.FILE, "/run/"),
        (RecordKind.FILE, "run/service.log"),
    ],
)
def test_a_name_outside_is_refused(tmp_path, kind, name):
    reader = unpacker(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(MigrationError, match="must not write"):
        reader.feed(stream(record(kind, name, b"x")))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_stream_that_is_cut_off_has_no_manifest(tmp_path):
    reader = unpacker(tmp_path)
    reader.feed(stream(record(RecordKind.IMAGE, "core-1.img", b"abc"))[:-1])
    assert not reader.complete
    with pytest.raises(MigrationError, match="cut off"):
        reader.manifest()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (LENGTH.pack(MAX_HEADER_BYTES + 1), "too long"),
        (LENGTH.pack(3) + b"\xc1\xc1\xc1", "damaged"),
        (LENGTH.pack(1) + b"\x05", "damaged"),
        (stream() + b"x", "goes on after its end"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, data, complaint):
    with pytest.raises(MigrationError, match=complaint):
        unpacker(tmp_path).feed(data + b"\0" * 10)


def test_another_format_is_refused_with_what_to_do(tmp_path):
    reader = unpacker(tmp_path)
    reader.feed(
        stream(manifest=CheckpointManifest(format_version=FORMAT_VERSION + 1, epoch=1, pid=1, files=[]))
    )
    with pytest.raises(MigrationError, match="format 2, this host reads 1") as caught:
        reader.manifest()
    assert "same version" in caught.value.hint


def test_a_stream_without_manifest_is_refused(tmp_path):
    reader = unpacker(tmp_path)
    reader.feed(record(RecordKind.END, "", b""))
    with pytest.raises(MigrationError, match="no readable manifest"):
        reader.manifest()


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def stats_image(half: int, values: dict[int, int]) -> bytes:
    entry = b"".join(varint(number << 3) + varint(value) for number, value in values.items())
    message = varint(half << 3 | 2) + varint(len(entry)) + entry
    return STATS_MAGIC + struct.pack("<I", len(message)) + message


def test_dump_stats_are_read():
    stats = read_dump_stats(stats_image(1, {1: 134, 2: 20_422, 3: 12_654, 4: 10_715, 5: 4933, 7: 4816}))
    assert (stats.freezing_time_us, stats.frozen_time_us, stats.memdump_time_us) == (134, 20_422, 12_654)
    assert (stats.memwrite_time_us, stats.pages_scanned, stats.pages_written) == (10_715, 4933, 4816)


def test_restore_stats_are_read_and_missing_values_are_zero():
    stats = read_restore_stats(stats_image(2, {4: 15_761, 5: 4816}))
    assert (stats.forking_time_us, stats.restore_time_us, stats.pages_restored) == (0, 15_761, 4816)


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (b"", "not a stats image"),
        (b"\0" * 40, "not a stats image"),
        (STATS_MAGIC, "not a stats image"),
        (stats_image(2, {4: 1}), "other contents"),
        (stats_image(1, {1: 300})[:-1], "damaged"),
        (STATS_MAGIC + struct.pack("<I", 1) + b"\x0d", "damaged"),
    ],
)
def test_damaged_stats_are_an_error_and_no_crash(image, complaint):
    with pytest.raises(MigrationError, match=complaint):
        read_dump_stats(image)
