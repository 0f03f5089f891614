"""A set of pages kept as runs is the set of these pages, whatever is done with it."""

from hypothesis import given
from hypothesis import strategies as st

from quicferry.migration.memory.page_set import PageSet

pages = st.sets(st.integers(0, 60))
a_run = st.tuples(st.integers(0, 60), st.integers(1, 12))


@given(pages, st.lists(a_run), pages)
def test_it_is_a_set_of_numbers(found, runs, single):
    kept, expected = PageSet.of(found), set(found)
    before = kept.copy()
    for first, count in runs:
        these = range(first, first + count)
        assert kept.has_all(first, count) == expected.issuperset(these)
        assert kept.has_any(first, count) == (not expected.isdisjoint(these))
        kept.remove_run(first, count)
        expected.difference_update(these)
        assert kept == expected
        assert len(kept) == len(expected)
    for page in single:
        kept.add(page)
    kept -= {page for page in single if page % 2}
    assert kept == {page for page in expected | single if page not in single or not page % 2}
    assert sorted(kept) == list(kept)
    assert before == found, "a copy has pages of its own"
