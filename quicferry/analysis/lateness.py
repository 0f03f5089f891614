"""Judges the client's machine: whether the load generator kept to its own schedule.

A client that is not given the processor sends later than its workload wants. What is missing then is no
service, and a time without service is the client's own. How late it may be: by its interval, within which
nothing that was asked for is missing, or by ``SETTLED_NS``, a slow moment that every machine has, whichever
is longer. More than that at the moment of the move, and for a fifth of the time before it, is a machine that
cannot keep up: a single slow moment is caught up with at once. In the move itself the run is marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from quicferry.analysis.event_queries import first_event
from quicferry.analysis.service import LATE_SHARE, SETTLED_NS
from quicferry.events import Event
from quicferry.record import LateRecord, Manifest, RunResult
from quicferry.units import NS_PER_MS, NS_PER_S, ns_to_ms

AFTER_NS = NS_PER_S  # after a move its clients are still finding their server


class Lag(NamedTuple):
    """By how much the client was late when the move began, and in how much of the time before."""

    behind_ms: float
    share: float

    @property
    def words(self) -> str:
        """What is wrong, in a sentence."""
        return (
            "the client fell behind its own schedule already before the move: it was "
            f"{self.behind_ms:.0f} ms late when that began, and too late {100 * self.share:.0f} % of the "
            "time before"
        )

    @property
    def hint(self) -> str:
        """What to do about it."""
        return "the machine is too slow for it: offer less (--interval-ms, --clients), or free the machine"


def bound_ns(manifest: Manifest) -> int:
    """How late the client may send."""
    return max(round(manifest.spec.interval_ms * NS_PER_MS), SETTLED_NS)


def lagging(late: Sequence[LateRecord], events: Sequence[Event], manifest: Manifest) -> Lag | None:
    """Whether the client could not offer its load before the move; None: it could, or nobody knows."""
    began = first_event(events, "run.migrate.started")
    loading = first_event(events, "run.load.started")
    if began is None or loading is None or began.t_ns <= loading.t_ns:
        return None
    spans = [
        (max(loading.t_ns, record.due_ns), min(began.t_ns, record.due_ns + record.late_ns))
        for record in late
        if record.late_ns > bound_ns(manifest) and record.due_ns < began.t_ns
    ]
    behind = [record for record in late if record.due_ns < began.t_ns <= record.due_ns + record.late_ns]
    worst_ns = max((record.late_ns for record in behind), default=0)
    share = sum(end - begin for begin, end in _united(spans)) / (began.t_ns - loading.t_ns)
    if worst_ns <= bound_ns(manifest) or share < LATE_SHARE:
        return None
    return Lag(ns_to_ms(worst_ns), share)


def mark_late_moves(
    result: RunResult, late: Sequence[LateRecord], events: Sequence[Event], manifest: Manifest
) -> None:
    """Mark a run as disturbed whose client was behind its schedule while the server moved, or directly after.

    Not one with faults, of which some stop the client.
    """
    if manifest.spec.faults:
        return
    ends = [event.t_ns for event in events if event.name in ("run.migrate.complete", "run.migrate.failed")]
    begins = [event.t_ns for event in events if event.name == "run.migrate.started"]
    within = [
        record.late_ns
        for record in late
        if record.late_ns > bound_ns(manifest)
        for begin, end in zip(begins, ends, strict=False)
        if record.due_ns <= end + AFTER_NS and record.due_ns + record.late_ns >= begin
    ]
    if within:
        result.disturbed = True
        result.warnings.append(
            f"disturbed: the client was up to {ns_to_ms(max(within)):.0f} ms behind its own schedule in the "
            "move: a time without service may be its machine's"
        )


def _united(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same spans without overlaps."""
    reached = 0
    for begin, end in sorted(spans):
        if end > max(begin, reached):
            yield max(begin, reached), end
            reached = end
