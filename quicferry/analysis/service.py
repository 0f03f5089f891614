"""Judges the service that the clients got: whether the path carried it at all, and what of it was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from quicferry.analysis.event_queries import first_event
from quicferry.events import Event
from quicferry.record import ClientSummary, Manifest, RequestRecord, RunResult
from quicferry.spec import RunSpec
from quicferry.units import NS_PER_MS, ns_to_ms

LEAST_REQUESTS = 10  # fewer say nothing of a rate
LATE_SHARE = 0.2
KEPT_UP = 0.9
SETTLED_NS = 200 * NS_PER_MS  # a lost packet, a slow moment of the machine
#: Workloads in which the server speaks as long as the run goes on, whatever the client asks.
PUSHED = frozenset({"push", "game"})
#: Workloads that fill the path, and ask for more when something has come: they offer what it carries.
FILLING = frozenset({"download", "upload"})


class Overload(NamedTuple):
    """Requests that were due before the move, and how many of them had no answer by then."""

    due: int
    late: int
    before_ms: float  # they were sent at least so long before the move

    @property
    def words(self) -> str:
        """What is wrong, in a sentence."""
        return (
            f"the path carried less than was offered already before the move: {self.late} of {self.due} "
            f"requests had no answer {self.before_ms:.0f} ms after they were sent"
        )

    @property
    def hint(self) -> str:
        """What to do about it."""
        return "offer less (--interval-ms, --response-bytes), or let the path carry more (--rate-mbps)"


class TooMuch(Protocol):
    """More was asked for than could be done already before the move, by whomever."""

    @property
    def words(self) -> str:
        """What is wrong, in a sentence."""

    @property
    def hint(self) -> str:
        """What to do about it."""


def overload(
    requests: Sequence[RequestRecord], events: Sequence[Event], manifest: Manifest
) -> Overload | None:
    """Whether more was offered than carried already before the move; None when it was not, or is not known.

    Two things are asked for, as each alone may be chance: requests that should have been answered long since
    were not, and in the second half of the time before the move fewer answers came than requests were sent,
    so that the queue was still growing. A connection that starts slowly and catches up does the first only.
    Where clients fill the path, how long an exchange takes says how wide it is.
    """
    if not FILLING.isdisjoint(manifest.spec.workload.split("+")):
        return None
    began = first_event(events, "run.migrate.started")
    sent_before = [r for r in requests if began is not None and r.sent_ns < began.t_ns]
    if began is None or len(sent_before) < LEAST_REQUESTS:
        return None
    answered = [r for r in sent_before if r.received_ns is not None and r.received_ns <= began.t_ns]
    spec = manifest.spec
    rtt_ns = round((spec.source_rtt_ms or spec.rtt_ms) * NS_PER_MS)
    usual_ns = max(rtt_ns, min((_service_ns(r) for r in answered), default=2 * rtt_ns))
    patience_ns = 2 * usual_ns + SETTLED_NS
    due = [r for r in sent_before if r.sent_ns <= began.t_ns - patience_ns]
    late = [r for r in due if r.received_ns is None or r.received_ns > began.t_ns]
    if len(due) < LEAST_REQUESTS or len(late) <= LATE_SHARE * len(due):
        return None
    middle_ns = (min(r.sent_ns for r in sent_before) + began.t_ns) // 2
    offered = sum(middle_ns <= r.sent_ns + usual_ns < began.t_ns for r in sent_before)
    carried = sum(r.received_ns is not None and r.received_ns >= middle_ns for r in answered)
    if carried >= KEPT_UP * offered:
        return None
    return Overload(len(due), len(late), ns_to_ms(patience_ns))


def nothing_left_to_serve(summary: ClientSummary, spec: RunSpec) -> bool:
    """Whether all that the clients asked was answered, of a server that says nothing unasked.

    Then it is no fault when nothing useful came after a move: nothing was missing.
    """
    asks = PUSHED.isdisjoint(spec.workload.split("+"))
    return asks and not summary.requests_lost and all(transfer.verified for transfer in summary.transfers)


def _service_ns(request: RequestRecord) -> int:
    assert request.received_ns is not None
    return request.received_ns - request.sent_ns


def without_migration_time(result: RunResult) -> None:
    """Take the times out of a result that say nothing, as the clients waited before the move as well."""
    result.service_migration_time_ms = result.log_service_migration_time_ms = None
    result.connection_overhead_ms = None
    result.breakdown_ms = {}
    result.moves = [
        msgspec.structs.replace(move, service_migration_time_ms=None, connection_overhead_ms=None)
        for move in result.moves
    ]


def judge_service(result: RunResult, summary: ClientSummary | None, too_much: TooMuch | None) -> None:
    """Say of a run that succeeded so far what the clients got: nothing wrong, or the outcome that names it.

    Of an overloaded path or client the times are taken out, whatever the outcome.
    """
    if too_much is not None:
        without_migration_time(result)
    if result.outcome != "succeeded":
        result.warnings += [too_much.words] if too_much is not None else []
        return
    if too_much is not None:
        result.outcome, result.error = "overloaded", too_much.words
        result.hint = too_much.hint
        return
    wrong = []
    if result.requests_lost:
        wrong.append(f"{result.requests_lost} of {result.requests_sent} requests were lost")
    if result.requests_duplicated:
        wrong.append(f"{result.requests_duplicated} requests were executed twice")
    if summary is not None and not summary.state_ok:
        wrong.append(f"the service's state did not survive: {summary.state_detail or 'no detail'}")
    if wrong:
        result.outcome, result.error = "degraded", "the service suffered: " + "; ".join(wrong)
        result.hint = "the times are those of the move; what was lost and when is in client.json"
