"""Measures one move: every number with the event or packet at either end.

Zero of all moments is ``server.frozen``. What cannot be measured is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import polars as pl

from quicferry.analysis import timeline
from quicferry.analysis.endpoint_split import NEW, OLD, EndpointSplit
from quicferry.analysis.event_queries import first_event, last_event
from quicferry.analysis.timeline import Moment, RoundTrip, ServiceGap
from quicferry.capture.pcap import Datagram
from quicferry.events import Event
from quicferry.model import host_of
from quicferry.units import NS_PER_MS, ns_to_ms

LOG_TOLERANCE_NS = 1 * NS_PER_MS
#: events of the parts in which a server's state crosses the network; each has ``bytes``
TRANSFERS = tuple(f"migration.{phase}.complete" for phase in ("precopy", "transfer", "rsync", "pages"))
PHASES = ("notice", "checkpoint", "transfer", "restore", "commit")


class Span(NamedTuple):
    """A phase of the move."""

    name: str
    vantage: str
    begin_ns: int
    end_ns: int
    complete: bool


class Metrics(NamedTuple):
    """What was measured of one move."""

    frozen_ns: int | None
    resumed_ns: int | None
    gap: ServiceGap | None
    logged_gap: ServiceGap | None
    round_trip: RoundTrip | None
    first_packet_ns: int | None
    validated_ns: int | None
    pto_ms: float | None
    transferred_bytes: int | None
    memory_path: str | None
    spans: list[Span]
    warnings: list[str]
    signals: tuple[Moment, ...] = ()  # of MPTCP's path managers, the first of each at the client

    @property
    def downtime_ms(self) -> float | None:
        """From ``server.frozen`` to ``server.resumed``."""
        return _ms_between(self.frozen_ns, self.resumed_ns)

    @property
    def overhead_ms(self) -> float | None:
        """From ``server.resumed`` to the first useful packet from the new address at the client."""
        return _ms_between(self.resumed_ns, self.gap.first_new_ns if self.gap else None)

    def moments(self) -> list[Moment]:
        """The turning points of the move in order of time."""
        found: list[tuple[int | None, str, str, str]] = [
            (self.frozen_ns, "source", "frozen", "event"),
            (self.resumed_ns, "destination", "resumed", "event"),
            (self.first_packet_ns, "client", "first_packet", "capture"),
            (self.validated_ns, "client", "validated", "capture"),
        ]
        if self.gap is not None:
            found.append((self.gap.last_old_ns, "client", "last_useful_old", "capture"))
            found.append((self.gap.first_new_ns, "client", "useful", "capture"))
        found += self.signals
        for span in self.spans:
            found.append((span.begin_ns, span.vantage, f"{span.name}.started", "event"))
            end = "complete" if span.complete else "failed"
            found.append((span.end_ns, span.vantage, f"{span.name}.{end}", "event"))
        return sorted(Moment(t, where, what, how) for t, where, what, how in found if t is not None)

    def moments_ms(self) -> dict[str, float]:
        """Moments relative to ``server.frozen``, in milliseconds; empty when it never froze."""
        if self.frozen_ns is None:
            return {}
        return {m.name: round(ns_to_ms(m.t_ns - self.frozen_ns), 6) for m in self.moments()}

    def phases_ms(self) -> dict[str, float]:
        """Durations of the phases; first_packet, validated and useful as moments after the freeze."""
        lengths = {span.name: round(ns_to_ms(span.end_ns - span.begin_ns), 6) for span in self.spans}
        moments = self.moments_ms()
        points = ("first_packet", "validated", "useful")
        return lengths | {name: moments[name] for name in points if name in moments}


def _ms_between(begin_ns: int | None, end_ns: int | None) -> float | None:
    return None if begin_ns is None or end_ns is None else ns_to_ms(end_ns - begin_ns)


def measure(
    traffic: pl.DataFrame, events: Sequence[Event], old: str, new: str, split: EndpointSplit | None = None
) -> Metrics:
    """All numbers of one move from ``old`` to ``new`` (endpoints like ``10.0.1.2:4433``).

    ``traffic`` is the decrypted capture of the client. Of several moves in one run the first is
    measured, an aborted attempt before it does not count. Without ``split``, the server's address
    decides which endpoint a packet belongs to.
    """
    if split is None:
        split = EndpointSplit(events, old, new)
    warnings: list[str] = []
    resumed = first_event(events, "server.resumed")
    frozen = last_event(events, "server.frozen", resumed.t_ns if resumed else None)
    gap = timeline.service_gap(split.arrivals(traffic), OLD, NEW)
    logged = timeline.service_gap(split.logged_arrivals(events), OLD, NEW)
    warnings += _disagreement(gap, logged)
    first_packet = split.first_packet_ns(traffic)
    loss = first_event(events, "client.loss.noticed")
    after = max((t for t in (resumed and resumed.t_ns, gap and gap.first_new_ns) if t), default=0)
    trip = timeline.round_trip(traffic, new, after)
    if trip is None and resumed is not None:
        trip = timeline.round_trip(traffic, new, resumed.t_ns)
    if trip is None:
        trip = timeline.tcp_round_trip(traffic, new)
    return Metrics(
        frozen_ns=frozen.t_ns if frozen else None,
        resumed_ns=resumed.t_ns if resumed else None,
        gap=gap,
        logged_gap=logged,
        round_trip=trip,
        first_packet_ns=first_packet,
        validated_ns=timeline.path_validated(traffic, new),
        pto_ms=_number(loss, "pto_ms"),
        transferred_bytes=_transferred(events),
        memory_path=memory_path(events),
        spans=phase_spans(events),
        warnings=warnings,
        signals=tuple(timeline.multipath_signals(traffic)),
    )


def phase_spans(events: Iterable[Event]) -> list[Span]:
    """The phases of the move that have both ends, in order of their beginning.

    A phase that is entered more than once (rounds of pre-copy) gives one span each time.
    """
    open_since: dict[str, Event] = {}
    spans: list[Span] = []
    for event in sorted(events, key=lambda each: each.t_ns):
        phase, _, end = event.name.rpartition(".")
        name = phase.removeprefix("migration.")
        if not phase.startswith("migration.") or name not in PHASES:
            continue
        if end == "started":
            open_since[name] = event
        elif name in open_since:
            begun = open_since.pop(name)
            spans.append(Span(name, begun.vantage, begun.t_ns, event.t_ns, end == "complete"))
    return sorted(spans, key=lambda span: span.begin_ns)


def inter_edge_bytes(datagrams: Iterable[Datagram], source: Iterable[str], destination: Iterable[str]) -> int:
    """Bytes on the wire from one set of hosts to another, in the capture of either."""
    senders, receivers = set(source), set(destination)
    return sum(
        datagram.wire_bytes
        for datagram in datagrams
        if host_of(datagram.source) in senders and host_of(datagram.destination) in receivers
    )


def _disagreement(gap: ServiceGap | None, logged: ServiceGap | None) -> list[str]:
    warnings = []
    if gap is not None and logged is not None:
        difference = logged.length_ns - gap.length_ns
        if abs(difference) > LOG_TOLERANCE_NS:
            warnings.append(
                f"the client's log says {ns_to_ms(logged.length_ns):.3f} ms, its capture "
                f"{ns_to_ms(gap.length_ns):.3f} ms: they differ by {ns_to_ms(abs(difference)):.3f} ms, "
                f"as {_why(gap, logged)}"
            )
    if gap is not None and gap.late_old_bytes:
        warnings.append(
            f"{gap.late_old_bytes} useful bytes came from the old address after service from the new one "
            "had begun: they were still on their way"
        )
    return warnings


def _why(gap: ServiceGap, logged: ServiceGap) -> str:
    """At which end of the interruption the client's log and its capture differ, and what that means."""
    ends = (
        ("the last service from the old address", logged.last_old_ns - gap.last_old_ns),
        ("the first service from the new address", logged.first_new_ns - gap.first_new_ns),
    )
    what, later_ns = max(ends, key=lambda end: abs(end[1]))
    if later_ns > 0:
        # the machine was busy, or bytes before it were missing: a capture does not wait for them
        return f"the client could use {what} {ns_to_ms(later_ns):.3f} ms after its packet had come"
    return f"the client's log has {what} {ns_to_ms(-later_ns):.3f} ms before the packet that completes it"


def _number(event: Event | None, key: str) -> float | None:
    value = event.detail.get(key) if event is not None else None
    return float(value) if isinstance(value, int | float) else None


def memory_path(events: Sequence[Event]) -> str | None:
    """How the server's memory got across, in words; None when no engine says."""
    taken = first_event(events, "migration.checkpoint.complete")
    method = taken.detail.get("method") if taken is not None else None
    if method is None:
        return None
    words = [str(method)]
    rounds = [event for event in events if event.name == "migration.precopy.round.complete"]
    if rounds:
        last = max(rounds, key=lambda event: event.t_ns).detail
        words.append(f"{len(rounds)} rounds, ended by the rule {last.get('stop')}")
    if rounds and taken is not None and "tracked" in taken.detail:
        tracked = taken.detail["tracked"]
        words.append("the kernel named the written pages" if tracked else "all pages were compared")
    restored = first_event(events, "migration.restore.complete")
    if restored is not None and "lazily" in restored.detail:
        words.append("restored lazily" if restored.detail["lazily"] else "restored at once")
    pages = first_event(events, "migration.pages.complete")
    if pages is not None and pages.detail.get("pages"):
        detail = pages.detail
        words.append(f"{detail['pages']} pages afterwards")
        if "waited_for" in detail:  # CRIU's daemon does not say
            words[-1] += f", {detail['waited_for']} times waited for one"
    return "; ".join(words)


def _transferred(events: Sequence[Event]) -> int | None:
    """Bytes of all that was moved, before, in and after the downtime; else what was said at the end."""
    sizes = [
        event.detail["bytes"]
        for event in events
        if event.name in TRANSFERS and isinstance(event.detail.get("bytes"), int)
    ]
    if sizes:
        return int(sum(sizes))
    total = _number(first_event(events, "migration.finished"), "transferred_bytes")
    return None if total is None else int(total)
