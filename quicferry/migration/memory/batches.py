"""In which order, and how many at a time, pages are sent and put in place."""

from __future__ import annotations

from collections.abc import Iterable

from quicferry.migration.memory.pagemap import Pages, runs_of

#: Sent at once without being asked: 512 KiB, at most 4 ms at 1 Gbit/s, which is what an urgent page waits
#: for. In one message, of however many short runs: each message costs about a millisecond at both ends.
BATCH_PAGES = 128


def small_first(pages: Pages, batch_pages: int = BATCH_PAGES) -> list[tuple[int, int]]:
    """Sorted pages as runs of at most a batch, those of short stretches of memory before those of long ones.

    A process works in many small stretches (stacks, tables, arenas of small objects); a long one is bulk
    data as a rule. Where that is wrong, what the process waits for corrects it.
    """
    return _cut(sorted(runs_of(pages), key=lambda run: (run[1], run[0])), batch_pages)


def batches_of(pages: Pages, batch_pages: int) -> list[tuple[int, int]]:
    """Sorted pages as runs of at most a batch, in their order."""
    return _cut(runs_of(pages), batch_pages)


def _cut(runs: Iterable[tuple[int, int]], batch_pages: int) -> list[tuple[int, int]]:
    """Cut runs into batches."""
    return [
        (start, min(batch_pages, first + count - start))
        for first, count in runs
        for start in range(first, first + count, batch_pages)
    ]
