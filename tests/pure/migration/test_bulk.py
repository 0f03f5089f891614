"""Bulk data is told from what a server works with, and is left out of the last look at its memory."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quicferry.migration.memory.bulk import LONG_PAGES, MARGIN_PAGES, bulk_of
from quicferry.migration.memory.page_runs import pages_of
from quicferry.migration.memory.page_scan import REGION
from quicferry.migration.memory.pagemap import NO_PAGES, PAGE_BYTES, numbers, runs_of
from quicferry.migration.memory.process_memory import Snapshot
from quicferry.migration.memory.write_tracking import unwritten

RANDOM = np.random.default_rng(7)


def bulk_data(count):
    return RANDOM.integers(0, 256, (count, PAGE_BYTES), np.uint8)


def objects(count):
    """Pointers into a process's memory, three words of four."""
    words = RANDOM.integers(0, 2**47, (count, PAGE_BYTES // 8), np.uint64)
    words[:, ::4] = np.iinfo(np.uint64).max
    return words.view(np.uint8)


def test_a_heap_that_grew_around_bulk_data_is_told_from_it():
    data = np.concatenate((objects(20), bulk_data(1000), objects(3), bulk_data(400), objects(1)))
    pages = np.arange(5000, 5000 + len(data))
    found = bulk_of(Snapshot(pages, data), NO_PAGES)
    expected = [
        (5000 + 20 + MARGIN_PAGES, 1000 - 2 * MARGIN_PAGES),
        (5000 + 1023 + MARGIN_PAGES, 400 - 2 * MARGIN_PAGES),
    ]
    assert runs_of(found) == expected


def test_short_stretches_and_known_pages_are_no_bulk_data():
    short = Snapshot(np.arange(100, 100 + LONG_PAGES - 1), bulk_data(LONG_PAGES - 1))
    assert not len(bulk_of(short, NO_PAGES))
    known = Snapshot(np.arange(100, 100 + LONG_PAGES), bulk_data(LONG_PAGES))
    assert len(bulk_of(known, NO_PAGES)) == LONG_PAGES
    assert not len(bulk_of(known, known.pages))
    assert not len(bulk_of(known, np.array([200])))


def test_a_long_stretch_of_objects_is_bulk_data_as_well():
    data = Snapshot(np.arange(100, 100 + LONG_PAGES), objects(LONG_PAGES))
    assert len(bulk_of(data, NO_PAGES)) == LONG_PAGES


runs = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 9)), max_size=12)


def spaced(found):
    """Runs that do not overlap, from gaps and lengths; some of them are neighbours."""
    page, placed = 16, []
    for gap, length in found:
        placed.append((page + gap, length))
        page += gap + length
    return placed


@given(runs, runs)
def test_what_is_set_aside_is_left_out_and_nothing_else(found, aside):
    regions = np.zeros(len(found), REGION)
    for region, (first, count) in zip(regions, spaced(found), strict=True):
        region["start"], region["end"] = first * PAGE_BYTES, (first + count) * PAGE_BYTES
    left_out = set(numbers(spaced(aside)).tolist())
    expected = [page for page in numbers(spaced(found)).tolist() if page not in left_out]
    assert pages_of(unwritten(regions, spaced(aside))).tolist() == expected
