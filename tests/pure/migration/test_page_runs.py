"""Sets of pages by their runs are the sets that they are page by page."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quicferry.migration.memory.page_runs import (
    both,
    bounds_of,
    bounds_of_areas,
    bounds_of_runs,
    either,
    minus,
    pages_of,
    without,
)

page_sets = st.sets(st.integers(1, 40)).map(lambda found: np.array(sorted(found), np.int64))
runs = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), max_size=8).map(sorted)


def numbers_of(bounds):
    """Page by page; bounds ascend, and no run touches the next."""
    assert (np.diff(bounds) > 0).all()
    return set(pages_of(bounds).tolist())


@given(page_sets)
def test_a_set_is_the_same_by_its_runs(pages):
    assert pages_of(bounds_of(pages)).tolist() == pages.tolist()


@given(runs)
def test_runs_may_touch_and_overlap(found):
    expected = {page for first, count in found for page in range(first, first + count)}
    assert numbers_of(bounds_of_areas(found)) == expected
    firsts, counts = np.array(found, np.int64).reshape(-1, 2).T
    assert numbers_of(bounds_of_runs(firsts, counts)) == expected


@given(page_sets, page_sets)
def test_sets_are_joined_cut_and_shared(one, other):
    a, b = bounds_of(one), bounds_of(other)
    assert numbers_of(both(a, b)) == set(one.tolist()) & set(other.tolist())
    assert numbers_of(either(a, b)) == set(one.tolist()) | set(other.tolist())
    assert numbers_of(minus(a, b)) == set(one.tolist()) - set(other.tolist())
    assert without(one, other).tolist() == sorted(set(one.tolist()) - set(other.tolist()))
