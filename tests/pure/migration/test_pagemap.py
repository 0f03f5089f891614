"""Page lists and memory images: what was written is read, and no page is lost or doubled on the way."""

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicferry.errors import MigrationError
from quicferry.migration.criu.image_stream import CheckpointManifest, RecordKind, Unpacker, record
from quicferry.migration.engines.criu.rounds import (
    FEW_PAGES,
    MAX_ROUNDS,
    plan_of,
    portions_of,
    round_records,
    why_stop,
)
from quicferry.migration.memory.batches import BATCH_PAGES, small_first
from quicferry.migration.memory.pagemap import (
    PAGE_BYTES,
    Flag,
    PageMap,
    PagemapEntry,
    decode,
    encode,
    entries_of,
    joined,
    numbers,
    runs_of,
    spread,
)
from quicferry.migration.memory.process_memory import (
    Reading,
    Snapshot,
    merged,
    private_areas,
    unchanged,
    within,
)
from quicferry.migration.memory.round_pages import LocalPages
from quicferry.migration.memory.uffd_events import Target

page_sets = st.sets(st.integers(16, 400)).map(lambda found: np.array(sorted(found), np.int64))
flags = st.sampled_from([Flag.PARENT, Flag.LAZY, Flag.PRESENT, Flag.PRESENT | Flag.LAZY])


@st.composite
def pagemaps(draw):
    entries, page = [], 16
    for gap, length, flag in draw(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 9), flags))):
        entries.append(PagemapEntry(page + gap, length, flag))
        page += gap + length
    return PageMap(draw(st.integers(1, 1000)), entries)


@given(pagemaps())
def test_a_pagemap_is_read_as_it_was_written(pagemap):
    assert decode(encode(pagemap)) == pagemap


def test_a_pagemap_of_criu():
    # from CRIU 4.2.1: the number of pages is in a field of its own, the old one is 0
    image = bytes.fromhex(
        "19435654 25400856 02000000 0801 0b000000 0880e08702 1000 2004 2801"
        "0b000000 0880a0d104 1000 2004 2862 0b000000 088080ea04 1000 2004 284b"
    )
    assert decode(image) == PageMap(
        1,
        [
            PagemapEntry(0x41F, 1, Flag.PRESENT),
            PagemapEntry(0x945, 98, Flag.PRESENT),
            PagemapEntry(0x9A8, 75, Flag.PRESENT),
        ],
    )


@given(pagemaps(), st.data())
def test_a_damaged_pagemap_is_refused_or_read_but_never_crashes(pagemap, data):
    image = bytearray(encode(pagemap))
    image[data.draw(st.integers(0, len(image) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(image)))
    for damaged in (bytes(image), bytes(image[:cut])):
        with contextlib.suppress(MigrationError):
            decode(damaged)


@given(page_sets)
def test_runs_and_numbers_are_each_others_reverse(pages):
    assert numbers(runs_of(pages)).tolist() == pages.tolist()


@given(pagemaps(), page_sets, page_sets, st.booleans())
def test_a_plan_has_every_page_once(pagemap, same, sent, lazily):
    plan = plan_of(pagemap, same, sent, lazily=lazily)
    parts = [plan.parent, plan.parent_lazy, plan.dumped, plan.fetched, plan.lazy]
    planned = [page for part in parts for page in part.tolist()]
    assert len(planned) == len(set(planned))
    assert set(planned) == set(pagemap.present.tolist()) | set(pagemap.absent.tolist())
    assert set(plan.parent.tolist()) <= set(same.tolist())
    assert set(plan.parent_lazy.tolist()) <= set(same.tolist()) | set(sent.tolist())
    assert not set(plan.fetched.tolist() if lazily else plan.lazy.tolist())
    entries = entries_of(
        present=plan.dumped, parent=plan.parent, parent_lazy=plan.parent_lazy, lazy=plan.lazy
    )
    back = decode(encode(PageMap(1, entries)))
    assert back.present.tolist() == plan.dumped.tolist()
    assert back.optional.tolist() == plan.parent_lazy.tolist()
    assert back.absent.tolist() == plan.lazy.tolist()


def contents(pages, seed):
    """One distinct row for each page."""
    rows = np.zeros((len(pages), PAGE_BYTES), np.uint8)
    rows[:, :8] = pages.reshape(-1, 1).view(np.uint8)
    rows[:, 8] = seed
    return rows


@given(st.lists(st.tuples(page_sets, page_sets), min_size=1, max_size=4))
def test_rounds_add_up_to_the_memory(tmp_path_factory, rounds):
    images = tmp_path_factory.mktemp("images")
    unpacker = Unpacker(images, images)
    known = Snapshot.empty()
    for number, (pages, touched) in enumerate(rounds):
        new = np.setdiff1d(pages, known.pages)
        changed = np.union1d(new, np.intersect1d(pages, touched))
        reading = Reading(pages, Snapshot(changed, contents(changed, number)))
        known = merged(known, reading)
        assert known.pages.tolist() == pages.tolist()
        assert np.union1d(unchanged(reading), changed).tolist() == pages.tolist()
        for piece in round_records(number, 7, reading):
            unpacker.feed(piece)
    manifest = CheckpointManifest(epoch=1, pid=7, files=[], rounds=len(rounds))
    unpacker.feed(
        record(RecordKind.MANIFEST, "", msgspec.json.encode(manifest)) + record(RecordKind.END, "", b"")
    )
    directories = [images / f"round-{number}" for number in range(len(rounds))]
    local = LocalPages(directories, 7, known.pages)
    seen = []
    for first, content in local.runs():
        got = content.reshape(-1, PAGE_BYTES)
        seen += range(first, first + len(got))
        row = int(np.searchsorted(known.pages, first))
        assert (got == known.data[row : row + len(got)]).all()
        assert (local.page(first) == got[0]).all()
    assert sorted(seen) == known.pages.tolist()
    if len(rounds) > 1:
        assert (directories[-1] / "parent").resolve() == directories[-2].resolve()


def test_a_page_that_no_round_has_is_told(tmp_path):
    unpacker = Unpacker(tmp_path, tmp_path)
    pages = np.array([20], np.int64)
    for piece in round_records(0, 7, Reading(pages, Snapshot(pages, contents(pages, 0)))):
        unpacker.feed(piece)
    with pytest.raises(MigrationError, match="no round"):
        LocalPages([tmp_path / "round-0"], 7, np.array([20, 21], np.int64)).runs()
    with pytest.raises(MigrationError, match="no round"):
        LocalPages([tmp_path / "round-0"], 7, pages).page(21)


@given(page_sets)
def test_portions_lose_no_page(pages):
    chosen = [page for portion in portions_of(pages) for page in portion.tolist()]
    assert sorted(chosen) == pages.tolist()


def test_areas_of_files_and_what_lies_within_others():
    maps = (
        "10000-12000 rw-p 00000000 00:00 0 [heap]\n"
        "12000-13000 rw-p 00000000 fe:00 77 /usr/lib/libc.so.6\n"
        "20000-21000 rw-s 00000000 00:00 0\n"
        "30000-33000 rw-p 00000000 00:00 0\n"
    )
    assert private_areas(maps) == [(16, 2), (18, 1), (48, 3)]
    areas = private_areas(maps, of_files=False)
    assert areas == [(16, 2), (48, 3)]
    pages = np.array([15, 16, 17, 18, 47, 48, 50, 51], np.int64)
    assert within(pages, areas).tolist() == [16, 17, 48, 50]
    assert within(pages, []).tolist() == []


@given(page_sets)
def test_every_page_is_asked_for_once_in_small_runs(pages):
    runs = small_first(pages)
    assert sorted(numbers(runs).tolist()) == pages.tolist()
    assert all(0 < count <= BATCH_PAGES for _, count in runs)


def test_short_stretches_go_before_long_ones():
    pages = numbers([(16, 2), (30, 1), (1000, BATCH_PAGES + 1), (5000, 3)])
    expected = [(30, 1), (16, 2), (5000, 3), (1000, BATCH_PAGES), (1000 + BATCH_PAGES, 1)]
    assert small_first(pages) == expected


@pytest.mark.parametrize(
    ("rounds", "pages", "before", "rule"),
    [
        (1, 30_000, None, None),
        (1, FEW_PAGES, None, "few-pages"),
        (2, FEW_PAGES + 1, 30_000, None),
        (2, 28_000, 30_000, "no-progress"),
        (2, FEW_PAGES, FEW_PAGES, "few-pages"),
        (MAX_ROUNDS, 1_000, 30_000, "max-rounds"),
    ],
)
def test_rounds_end_by_named_rules(rounds, pages, before, rule):
    assert why_stop(rounds, pages, before) == rule


def test_private_areas_of_a_maps_file():
    maps = """\
00400000-00401000 r--p 00000000 08:01 1 /usr/bin/python3.11
00a00000-00a80000 rw-p 00000000 00:00 0 [heap]
7f0000000000-7f0000002000 rw-s 00000000 00:01 9 /dev/zero (deleted)
7f0000010000-7f0000011000 ---p 00000000 00:00 0
7ffd00000000-7ffd00001000 rw-p 00000000 00:00 0 [stack]
7ffd00010000-7ffd00014000 r--p 00000000 00:00 0 [vvar]
7ffd00014000-7ffd00016000 r-xp 00000000 00:00 0 [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
"""
    assert private_areas(maps) == [(0x400, 1), (0xA00, 0x80), (0x7FFD00000, 1)]


def test_a_process_that_moves_and_drops_its_memory():
    target = Target(-1, 7, {10, 11, 12, 13, 20})
    target.moved(11, 111, 2)
    assert [target.where(page) for page in (10, 11, 12, 13)] == [10, 111, 112, 13]
    assert [target.which(place) for place in (10, 111, 112, 13)] == [10, 11, 12, 13]
    assert list(target.runs(10, 4)) == [(10, 10, 1), (11, 111, 2), (13, 13, 1)]
    child = target.child(-1)
    target.dropped(112, 1)
    assert target.unplaced == {10, 11, 13, 20}
    assert child.unplaced == {10, 11, 12, 13, 20}, "a child has memory of its own"
    target.dropped(0, 1_000_000)
    assert target.unplaced == set()


names = st.sampled_from(["../x=round-0", "round-0=round-1/..", "round-0", "=round-0", "a=round-0", ".=."])


@given(names)
def test_links_lead_to_rounds_only(tmp_path_factory, name):
    directory = tmp_path_factory.mktemp("images")
    with pytest.raises(MigrationError, match="must not link"):
        Unpacker(directory, directory).feed(record(RecordKind.PARENT, name, b""))


@given(st.lists(page_sets, max_size=4))
def test_sets_are_joined(sets):
    assert joined(*sets).tolist() == sorted({page for pages in sets for page in pages.tolist()})


@given(page_sets)
def test_runs_are_spread_again(pages):
    firsts, counts = np.array(runs_of(pages), np.int64).reshape(-1, 2).T
    assert spread(firsts, counts).tolist() == pages.tolist()
