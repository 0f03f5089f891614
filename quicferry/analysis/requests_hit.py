"""Finds the requests of one client that a move hit: those under way while the server stood still."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quicferry.record import RequestRecord
from quicferry.units import ns_to_ms


class Hit(NamedTuple):
    """Service times around a move, ms; None when there was no such request, or it was never answered."""

    hit_ms: float | None  # under way at some moment of the downtime; of several the longest
    after_ms: float | None  # the first one sent after the server had resumed
    under_way: int  # how many were under way


def requests_hit(requests: Sequence[RequestRecord], frozen_ns: int, resumed_ns: int) -> Hit:
    """The service times of the requests of a move that froze and resumed the server at these moments.

    A request that was sent before the freeze and whose answer was on its way already counts as under way: its
    answer had not come when the server froze.
    """
    hit = [
        request
        for request in requests
        if request.sent_ns < resumed_ns and (request.received_ns is None or request.received_ns > frozen_ns)
    ]
    times = [time for request in hit if (time := _service_ms(request)) is not None]
    after = min((r for r in requests if r.sent_ns >= resumed_ns), key=lambda r: r.sent_ns, default=None)
    return Hit(
        hit_ms=max(times, default=None) if len(times) == len(hit) else None,
        after_ms=None if after is None else _service_ms(after),
        under_way=len(hit),
    )


def first_open_ns(requests: Sequence[RequestRecord], resumed_ns: int) -> int | None:
    """When the first request was sent that had no answer when the server ran again; None without one."""
    return min(
        (r.sent_ns for r in requests if r.received_ns is None or r.received_ns > resumed_ns), default=None
    )


def _service_ms(request: RequestRecord) -> float | None:
    return None if request.received_ns is None else ns_to_ms(request.received_ns - request.sent_ns)
