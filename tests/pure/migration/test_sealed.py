"""What is received into sealed memory is checked when nobody can write it any more."""

from __future__ import annotations

import mmap
import os
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from quicferry.errors import MigrationError
from quicferry.migration.criu.image_stream import RecordKind, Unpacker, record
from quicferry.migration.criu.page_patch import patches
from quicferry.migration.criu.received import BLOCK_BYTES, ReceivedFiles
from quicferry.migration.criu.sealed import SealedMemory
from quicferry.migration.engines.criu import unfinished
from quicferry.migration.engines.criu.agent_copy import CriuHybridEngine
from quicferry.migration.engines.criu.agent_copy_rounds import FIRST_KEPT
from quicferry.migration.engines.criu.rounds import round_records
from quicferry.migration.engines.criu.unfinished import SealedRound, Unfinished
from quicferry.migration.memory.pagemap import PAGE_BYTES, PageMap, encode, entries_of
from quicferry.migration.memory.process_memory import Reading, Snapshot
from quicferry.migration.memory.round_pages import LocalPages, NewestPages, newest_of, snapshot_of

DRAW = random.Random(3)
CONTENTS = {
    "round-0/pages-1.img": DRAW.randbytes(2 * BLOCK_BYTES + 5 * PAGE_BYTES),
    "round-1/pages-1.img": b"",
    "round-2/pages-1.img": DRAW.randbytes(3 * PAGE_BYTES),
}


def received() -> SealedMemory:
    sealed = SealedMemory("rounds")
    for name, content in CONTENTS.items():
        for start in range(0, len(content) or 1, 100_003):
            sealed.append(name, memoryview(content)[start : start + 100_003])
    return sealed


def test_what_came_is_there() -> None:
    sealed = received()
    sealed.seal()
    assert sealed.check() == sum(map(len, CONTENTS.values())) == sealed.size_bytes
    assert {name: bytes(sealed.content(name)) for name in sealed.names} == CONTENTS
    # to come twice to it is no fault
    sealed.seal()
    assert sealed.check() == sealed.size_bytes
    held = sealed.content("round-2/pages-1.img")
    sealed.close()
    sealed.close()
    assert bytes(held) == CONTENTS["round-2/pages-1.img"], "who reads it has a hold of its own"


def test_nobody_writes_what_is_sealed() -> None:
    sealed = received()
    sealed.seal()
    # the way by which root reaches what another process holds
    again = os.open(f"/proc/self/fd/{sealed.descriptor}", os.O_RDWR)
    try:
        for attempt in (
            lambda: os.pwrite(again, b"x", 0),
            lambda: os.ftruncate(again, PAGE_BYTES),
            lambda: os.ftruncate(again, 1 << 24),
            lambda: mmap.mmap(again, PAGE_BYTES, flags=mmap.MAP_SHARED, prot=mmap.PROT_WRITE),
        ):
            with pytest.raises(PermissionError):
                attempt()
    finally:
        os.close(again)
    sealed.check()
    sealed.close()


@pytest.mark.parametrize("place", [0, BLOCK_BYTES, 2 * BLOCK_BYTES + 5 * PAGE_BYTES, -1])
def test_a_bit_that_changed_before_is_found(place: int) -> None:
    sealed = received()
    place %= sealed.size_bytes
    byte = os.pread(sealed.descriptor, 1, place)[0]
    os.pwrite(sealed.descriptor, bytes([byte ^ 4]), place)
    sealed.seal()
    with pytest.raises(MigrationError, match="is not what was received"):
        sealed.check()
    sealed.close()


@pytest.mark.parametrize("size", [PAGE_BYTES, 1 << 24])
def test_another_size_is_found(size: int) -> None:
    sealed = received()
    os.ftruncate(sealed.descriptor, size)
    sealed.seal()
    with pytest.raises(MigrationError, match="another size"):
        sealed.check()
    sealed.close()


def test_nothing_is_checked_or_read_before_it_is_sealed() -> None:
    sealed = received()
    with pytest.raises(MigrationError, match="not sealed"):
        sealed.check()
    with pytest.raises(MigrationError, match="not sealed"):
        sealed.content("round-0/pages-1.img")
    sealed.close()


def test_what_is_over_is_not_gone_back_to() -> None:
    sealed = received()
    with pytest.raises(MigrationError, match="goes back"):
        sealed.append("round-0/pages-1.img", memoryview(b"more"))
    sealed.seal()
    with pytest.raises(MigrationError, match="no room"):
        sealed.append("round-2/pages-1.img", memoryview(b"more"))
    with pytest.raises(MigrationError, match="lacks round-3"):
        sealed.content("round-3/pages-1.img")
    sealed.close()


def test_only_the_memory_of_rounds_is_taken_out_of_a_stream(tmp_path: Path) -> None:
    sealed, files = SealedMemory("rounds"), ReceivedFiles()
    unpacker = Unpacker(tmp_path, tmp_path, files, sealed=sealed)
    names = ["round-0/pages-1.img", "round-0/pagemap-7.img", "pages-1.img", "round-0/core-7.img"]
    for name in names:
        unpacker.feed(record(RecordKind.IMAGE, name, name.encode()))
    assert sealed.names == names[:1]
    assert sorted(str(path.relative_to(tmp_path)) for path in files.paths) == sorted(names[1:])
    assert not (tmp_path / names[0]).exists()
    sealed.seal()
    sealed.check()
    assert bytes(sealed.content(names[0])) == names[0].encode()
    sealed.close()


def test_the_newest_round_of_each_page_counts() -> None:
    def a_round(pages: list[int], value: int) -> Snapshot:
        content = memoryview(bytes([value]) * PAGE_BYTES * len(pages))
        return snapshot_of(np.array(pages, np.int64), content)

    rounds = [a_round([3, 4, 5, 9], 1), a_round([4, 7], 2), a_round([], 3), a_round([5], 4)]
    wanted = np.array([3, 4, 5, 7], np.int64)
    assert newest_of(rounds, wanted).data[:, 0].tolist() == [1, 2, 4, 2]
    local = LocalPages(rounds, 7, wanted)
    assert [int(local.page(page)[0]) for page in wanted] == [1, 2, 4, 2]
    assert not len(local.held), "a successor finds it"
    with pytest.raises(MigrationError, match=r"no round has 1 pages from 0x8 on"):
        newest_of(rounds, np.array([3, 8], np.int64))
    with pytest.raises(MigrationError, match="2 pages has 1 bytes"):
        snapshot_of(np.array([1, 2], np.int64), memoryview(b"x"))


def test_pages_cross_as_the_words_that_differ_from_those_of_earlier_rounds(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)

    def a_round(pages: list[int]) -> Snapshot:
        return Snapshot(np.array(pages, np.int64), draw.integers(0, 256, (len(pages), PAGE_BYTES), np.uint8))

    rounds = [a_round([3, 4, 5, 9]), a_round([4, 11])]
    newest = NewestPages(rounds, np.array([3, 4, 5, 9, 11], np.int64))
    known = newest[np.arange(5)]
    assert (known[1] == rounds[1].data[0]).all() and (known[3] == rounds[0].data[3]).all()
    # one page in a few words, one wholly, one that nobody had, and one that lies between
    now = a_round([4, 5, 7, 11])
    now.data[[0, 3]] = known[[1, 4]]
    now.data[0, 40] ^= 1
    now.data[3, [0, 4095]] ^= 255
    sealed = SealedMemory("rounds")
    unpacker = Unpacker(tmp_path, tmp_path, ReceivedFiles(), newest, newest.patched, sealed)
    reading = Reading(now.pages, now)
    records = list(round_records(2, 7, reading, Snapshot(newest.pages, known), in_words=True))
    for piece in records:
        unpacker.feed(piece)
    assert sum(map(len, records)) < 3 * PAGE_BYTES, "two of four pages are as good as nothing"
    sealed.seal()
    sealed.check()
    assert bytes(sealed.content("round-2/pages-1.img")) == now.data.tobytes()
    assert not (tmp_path / "round-2" / "pages-1.img").exists()
    with pytest.raises(MigrationError, match="not in the base image"):
        NewestPages(rounds, np.array([3], np.int64)).patched(
            next(patches(now.pages, now.data, np.array([1, -1, -1, -1]), known))
        )
    sealed.close()


def test_a_patch_without_a_place_makes_no_file(tmp_path: Path) -> None:
    unpacker = Unpacker(tmp_path, tmp_path, base=np.empty((0, PAGE_BYTES), np.uint8), patch=lambda _: b"page")
    with pytest.raises(MigrationError, match="must not write"):
        unpacker.feed(record(RecordKind.PATCH, "", b"anything"))
    assert list(tmp_path.iterdir()) == []


def test_a_successor_finds_the_rounds_in_what_init_has_kept(tmp_path: Path) -> None:
    """The agent is gone; its lists of pages are files, and the record says where each round is."""
    draw = np.random.default_rng(2)
    memories, places, contents = [], [], []
    for memory, rounds in enumerate(([[3, 4, 9], [4]], [[5, 9]])):
        sealed = SealedMemory(f"rounds-{memory}")
        for pages in rounds:
            number = len(places)
            data = draw.integers(0, 256, (len(pages), PAGE_BYTES), np.uint8)
            name = f"round-{number}/pages-1.img"
            sealed.append(name, memoryview(data.tobytes()))
            places.append(SealedRound(memory, *sealed.place(name)))
            contents.append(data)
            directory = tmp_path / f"round-{number}"
            directory.mkdir()
            pagemap = PageMap(1, entries_of(present=np.array(pages, np.int64)))
            (directory / "pagemap-7.img").write_bytes(encode(pagemap))
        sealed.seal()
        memories.append(os.dup(sealed.descriptor))
        sealed.close()
    lacking = Unfinished(epoch=3, pid=7, rounds=3, missing={}, local={7: [(3, 3), (9, 1)]}, sealed=places)
    lacking.write(tmp_path)
    # as init gives it: what belongs to a process, and the two memories, in no particular order
    ours, theirs = os.pipe()
    left = [(FIRST_KEPT - 1, memories[1]), (7, ours), (FIRST_KEPT, memories[0])]
    engine = CriuHybridEngine.__new__(CriuHybridEngine)
    engine._images, engine._round_pages = tmp_path, []
    engine._container = SimpleNamespace(take_left=lambda: left, path=Path)  # type: ignore[assignment]
    assert engine._take_left(unfinished.read(tmp_path)) == [(7, ours)]
    for descriptor in memories:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    local = LocalPages(engine._rounds_here(3), 7, np.array([3, 4, 5, 9], np.int64))
    for page, number, row in ((3, 0, 0), (4, 1, 0), (5, 2, 0), (9, 2, 1)):
        assert (local.page(page) == contents[number][row]).all()
    os.close(ours)
    os.close(theirs)
