"""Patches: what has changed of a base image crosses in words, and the pages are put together to the byte."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicferry.errors import MigrationError
from quicferry.migration.criu.image_stream import RecordKind, Unpacker, record
from quicferry.migration.criu.page_patch import COUNTS, MOST_UNLIKE_WORDS, PATCH_PAGES, Patch, patches
from quicferry.migration.memory.base_image import BaseImage
from quicferry.migration.memory.pagemap import PAGE_BYTES
from quicferry.migration.memory.patched_base import MOST_NEW_PAGES, PatchedBase
from quicferry.migration.memory.process_memory import Snapshot, rows_of
from quicferry.migration.memory.round_pages import LocalPages
from quicferry.migration.order import CHUNK_BYTES

RANDOM = np.random.default_rng(5)


def snapshot(pages: list[int]) -> Snapshot:
    data = RANDOM.integers(0, 256, (len(pages), PAGE_BYTES), np.uint8)
    return Snapshot(np.array(pages, np.int64), data)


def changed(base: Snapshot, *, words: int, new: list[int]) -> Snapshot:
    """The base with so many words of each page changed, and new pages beside it."""
    data = base.data.copy()
    data.view(np.uint64)[:, RANDOM.permutation(PAGE_BYTES // 8)[:words]] ^= np.uint64(1 << 40)
    more = snapshot(new)
    pages = np.concatenate((base.pages, more.pages))
    order = np.argsort(pages)
    return Snapshot(pages[order], np.concatenate((data, more.data))[order])


def records_of(now: Snapshot, base: Snapshot) -> list[bytes]:
    return list(patches(now.pages, now.data, rows_of(now.pages, base.pages), base.data))


def patched(now: Snapshot, base: Snapshot) -> PatchedBase:
    here = PatchedBase(BaseImage("digest", base))
    for data in records_of(now, base):
        here.apply(data)
    return here


@given(
    st.sets(st.integers(0, 300), min_size=1, max_size=200),
    st.sets(st.integers(301, 400), max_size=70),
    st.sampled_from([0, 1, 5, MOST_UNLIKE_WORDS, MOST_UNLIKE_WORDS + 1, 512]),
)
def test_a_patched_base_is_the_memory_to_the_byte(known, new, words):
    base = snapshot(sorted(known))
    before = base.data.copy()
    now = changed(base, words=words, new=sorted(new))
    here = patched(now, base)
    assert (here.original.data == before).all(), "others may use the base image at the same time"
    whole = here.merged()
    assert whole.pages.tolist() == now.pages.tolist()
    assert (whole.data == now.data).all()
    local = LocalPages([], 7, now.pages, *here.parts())
    assert local.held.tolist() == now.pages.tolist()
    for first, content in local.runs():
        rows = content.reshape(-1, PAGE_BYTES)
        row = int(np.searchsorted(now.pages, first))
        assert (rows == now.data[row : row + len(rows)]).all()
        assert (local.page(first) == rows[0]).all()


def test_some_pages_are_chosen():
    base = snapshot(list(range(300)))
    now = changed(base, words=3, new=[400, 401])
    chosen = np.arange(0, len(now.pages), 2)
    rows = rows_of(now.pages, base.pages)
    here = PatchedBase(BaseImage("digest", base))
    for data in patches(now.pages, now.data, rows, base.data, chosen):
        here.apply(data)
    whole = here.merged()
    wanted = base.data.copy()
    wanted[::2] = now.data[:300:2]
    assert whole.pages.tolist() == [*range(300), 400]
    assert (whole.data[:300] == wanted).all()
    assert (whole.data[300] == now.data[300]).all()


def test_what_has_not_changed_does_not_cross():
    base = snapshot(list(range(1000)))
    now = changed(base, words=5, new=[])
    size = sum(map(len, records_of(now, base)))
    assert size < 1000 * 64, "5 words of 10 bytes, and where they belong"


def test_a_record_fits_even_if_no_page_is_alike():
    base, now = snapshot([]), snapshot(list(range(3 * PATCH_PAGES + 1)))
    assert max(map(len, records_of(now, base))) <= CHUNK_BYTES


def test_pages_of_the_image_that_are_all_unlike_it_are_taken_in():
    base = snapshot(list(range(MOST_NEW_PAGES + 5)))
    now = snapshot(list(range(MOST_NEW_PAGES + 5)))
    assert (patched(now, base).merged().data == now.data).all()


def test_more_new_pages_than_are_agreed_upon_are_refused():
    base, now = snapshot([]), snapshot(list(range(MOST_NEW_PAGES + 1)))
    with pytest.raises(MigrationError, match="new pages"):
        patched(now, base)


@pytest.mark.parametrize("cut", [0, 3, 11, 12, 100, -1])
def test_a_patch_that_is_cut_off_is_refused(cut):
    base = snapshot([1, 2])
    (data,) = records_of(changed(base, words=3, new=[9]), base)
    with pytest.raises(MigrationError, match="cut off"):
        Patch(data[:cut])


def test_a_patch_beyond_the_base_or_a_page_is_refused():
    base = snapshot([1, 2])
    (data,) = records_of(changed(base, words=1, new=[]), base)
    with pytest.raises(MigrationError, match="not in the base image"):
        PatchedBase(BaseImage("digest", Snapshot(base.pages[:1], base.data[:1]))).apply(data)
    positions = COUNTS.size + 2 * (4 + 2)
    beyond = data[:positions] + b"\xff\xff" + data[positions + 2 :]
    with pytest.raises(MigrationError, match="where its words are"):
        Patch(beyond)
    counts = COUNTS.size + 2 * 4
    with pytest.raises(MigrationError, match="where its words are"):
        Patch(data[:counts] + b"\x02\x00" + data[counts + 2 :])


def test_a_stream_of_patches_is_taken_in_whatever_its_pieces(tmp_path: Path):
    base = snapshot(list(range(500)))
    now = changed(base, words=9, new=list(range(600, 700)))
    stream = b"".join(record(RecordKind.PATCH, "", data) for data in records_of(now, base))
    here = PatchedBase(BaseImage("digest", base))
    unpacker = Unpacker(tmp_path, tmp_path, None, here.original.data, here.apply)
    for start in range(0, len(stream), 77_777):
        unpacker.feed(stream[start : start + 77_777])
    assert (here.merged().data == now.data).all()
    assert list(tmp_path.iterdir()) == [], "nothing of it is a file"


def test_patches_are_refused_where_none_can_be_taken(tmp_path: Path):
    base = snapshot([1])
    (data,) = records_of(base, base)
    with pytest.raises(MigrationError, match="base image that is not here"):
        Unpacker(tmp_path, tmp_path).feed(record(RecordKind.PATCH, "", data))
    with pytest.raises(MigrationError, match="none can be taken"):
        Unpacker(tmp_path, tmp_path, base=base.data).feed(record(RecordKind.PATCH, "", data))
