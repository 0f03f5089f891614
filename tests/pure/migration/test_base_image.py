"""Base images: what both edges know need not cross, and what crosses is restored to the byte."""

from pathlib import Path

import numpy as np
import pytest

from quicferry.errors import MigrationError
from quicferry.migration.criu.image_stream import RecordKind, Unpacker, record
from quicferry.migration.criu.page_delta import COUNT, DELTA_PAGES, MOST_UNLIKE_WORDS, delta, restored
from quicferry.migration.engines.criu.rounds import BULK_PAGES, bulk_round, of_pages
from quicferry.migration.memory import base_image
from quicferry.migration.memory.pagemap import NO_PAGES, PAGE_BYTES, Pages, decode, numbers
from quicferry.migration.memory.process_memory import ProcessMemory, Snapshot, rows_of
from quicferry.migration.order import CHUNK_BYTES

RANDOM = np.random.default_rng(1)


def snapshot(*pages: int) -> Snapshot:
    data = RANDOM.integers(0, 256, (len(pages), PAGE_BYTES), np.uint8)
    return Snapshot(np.array(pages, np.int64), data)


def test_pages_are_restored_from_their_differences():
    base, now = snapshot(1, 2, 3, 8), snapshot(2, 3, 5)
    now.data[0] = base.data[1]
    now.data[0, 8:16] += 1  # a reference count
    rows = rows_of(now.pages, base.pages)
    assert rows.tolist() == [1, 2, -1]
    data = delta(rows, now.data, base.data)
    assert restored(data, base.data) == now.data.tobytes()
    first = np.frombuffer(data, np.uint8, PAGE_BYTES, COUNT.size + 3 * 8)
    assert np.count_nonzero(first) == 8, "what is alike crosses as zeros"


def test_a_page_that_has_little_in_common_with_the_base_crosses_as_it_is():
    base, now = snapshot(1, 2), snapshot(1, 2)
    now.data[1] = base.data[1]
    now.data[1, : MOST_UNLIKE_WORDS * 8] ^= 1
    data = delta(np.array([0, 1]), now.data, base.data)
    assert data.count(now.data[0].tobytes()) == 1
    assert np.frombuffer(data, "<i8", 2, COUNT.size).tolist() == [-1, 1]
    assert restored(data, base.data) == now.data.tobytes()


@pytest.mark.parametrize("cut", [0, 3, 4, 11, 4107, -1])
def test_differences_that_are_cut_off_are_refused(cut):
    base = snapshot(1)
    data = delta(np.array([0]), base.data, base.data)
    with pytest.raises(MigrationError, match="cut off"):
        restored(data[:cut], base.data)


def test_differences_from_a_page_beyond_the_base_are_refused():
    base = snapshot(1, 2)
    data = delta(np.array([1]), base.data[1:], base.data)
    with pytest.raises(MigrationError, match="not in the base image"):
        restored(data, base.data[:1])


def test_a_stream_of_differences_makes_the_file_whatever_its_pieces(tmp_path: Path):
    base = snapshot(*range(DELTA_PAGES + 20))
    now = Snapshot(base.pages, base.data.copy())
    now.data[:, 100] += 1
    records = list(of_pages("pages-1.img", now, base))
    assert [len(each) <= CHUNK_BYTES + 100 for each in records] == [True, True]
    stream = b"".join(records)
    unpacker = Unpacker(tmp_path, tmp_path, base=base.data)
    for start in range(0, len(stream), 99_991):
        unpacker.feed(stream[start : start + 99_991])
    assert (tmp_path / "pages-1.img").read_bytes() == now.data.tobytes()


def test_differences_are_refused_where_there_is_no_base_image(tmp_path: Path):
    base = snapshot(1)
    with pytest.raises(MigrationError, match="base image that is not here") as refused:
        Unpacker(tmp_path, tmp_path).feed(next(of_pages("pages-1.img", base, base)))
    assert "--no-base-image" in refused.value.hint
    with pytest.raises(MigrationError, match="base image that is not here"):
        large = record(RecordKind.DELTA, "pages-1.img", b"\0" * (CHUNK_BYTES + 1))
        Unpacker(tmp_path, tmp_path, base=base.data).feed(large)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("QUICFERRY_BASE_IMAGES", str(tmp_path / "images"))
    return tmp_path / "images"


def test_an_image_is_read_as_it_was_written(store: Path):
    memory = snapshot(3, 4, 9)
    with base_image.held("a") as directory:
        assert base_image.read(directory) is None
        written = base_image.write(directory, memory)
        found = base_image.read(directory)
    assert found is not None
    assert found.sha256 == written.sha256
    assert found.snapshot.pages.tolist() == [3, 4, 9]
    assert (found.snapshot.data == memory.data).all()
    assert (store / "a").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("name", [base_image.PAGES, base_image.PAGEMAP, base_image.DIGEST])
def test_a_damaged_image_is_none(store: Path, name: str):
    with base_image.held("a") as directory:
        base_image.write(directory, snapshot(3, 4, 9))
    file = store / "a" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert base_image.read(store / "a") is None


def test_images_of_old_versions_are_removed(store: Path):
    for number in range(base_image.KEPT + 4):
        with base_image.held(f"v{number}") as directory:
            base_image.write(directory, snapshot(number))
    kept = sorted(path.name for path in store.iterdir() if path.is_dir())
    assert len(kept) == base_image.KEPT + 1
    assert f"v{base_image.KEPT + 3}" in kept


def test_a_version_is_that_of_program_arguments_and_environment():
    version = base_image.version_of(["python"], {"A": "1"})
    assert version == base_image.version_of(["python"], {"A": "1"})
    assert version != base_image.version_of(["python", "-v"], {"A": "1"})
    assert version != base_image.version_of(["python"], {"A": "2"})


def test_a_server_is_given_nothing_of_the_environment_that_differs_from_run_to_run():
    given = base_image.environment({"PATH": "/bin", "OLDPWD": "/somewhere", "PYTHONHASHSEED": "7"})
    assert given == {"PATH": "/bin", "PYTHONHASHSEED": "0"}


def test_asking_whether_servers_can_be_started_alike_changes_nothing():
    before = Path("/proc/self/personality").read_text()
    base_image.is_possible()
    assert Path("/proc/self/personality").read_text() == before


def test_a_sandbox_that_forbids_it_is_noticed(monkeypatch: pytest.MonkeyPatch):
    class Libc:
        def personality(self, persona: int) -> int:
            return 0 if persona == base_image.ASK_PERSONALITY else -1

    monkeypatch.setattr("ctypes.CDLL", lambda _: Libc())
    assert not base_image.is_possible()


def test_a_store_that_cannot_be_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUICFERRY_BASE_IMAGES", str(tmp_path / "file"))
    with pytest.raises(MigrationError, match="cannot be kept") as refused, base_image.held("a"):
        pass
    assert "--no-base-image" in refused.value.hint


class _Stopped(ProcessMemory):
    """The memory of a stopped process: each page is full of its own number."""

    def __init__(self, missing: int | None = None) -> None:
        self._missing = missing
        self.read_pages = 0

    def read(self, pages: Pages) -> Snapshot:
        there = pages[pages != self._missing]
        self.read_pages += len(there)
        return Snapshot(there, np.repeat((there % 251).astype(np.uint8), PAGE_BYTES).reshape(-1, PAGE_BYTES))


def test_bulk_data_is_read_as_it_is_sent(tmp_path: Path) -> None:
    memory = _Stopped()
    pages = numbers([(16, 300), (1000, 700)])
    same = np.array([3, 900], np.int64)
    unpacker = Unpacker(tmp_path, tmp_path)
    for piece in bulk_round(1, 7, pages, same, memory):
        written = sum(path.stat().st_size for path in tmp_path.rglob("pages-*.img"))
        assert memory.read_pages <= written // PAGE_BYTES + BULK_PAGES
        unpacker.feed(piece)
    assert memory.read_pages == len(pages)
    pagemap = decode((tmp_path / "round-1" / "pagemap-7.img").read_bytes())
    assert pagemap.present.tolist() == pages.tolist()
    assert pagemap.inherited.tolist() == same.tolist()
    content = np.fromfile(tmp_path / "round-1" / f"pages-{pagemap.pages_id}.img", np.uint8)
    assert (content.reshape(-1, PAGE_BYTES) == (pages % 251)[:, None]).all()
    assert (tmp_path / "round-1" / "parent").readlink() == Path("../round-0")


def test_bulk_data_that_is_gone_is_missed() -> None:
    pages = numbers([(16, 300)])
    with pytest.raises(MigrationError, match="memory of the stopped server is gone"):
        list(bulk_round(1, 7, pages, NO_PAGES, _Stopped(missing=300)))
