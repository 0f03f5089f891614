"""Breaks down the service-migration time of a client that reconnects by itself.

Each part ends at an event of a process or at a packet in the client's capture. The parts are measured
independently, so their sum is a check: the remainder is the client's own work between them.

    in-flight   from the last useful byte from the old endpoint to the freeze; negative when answers were
                still on their way
    downtime    from server.frozen to server.resumed
    detection   from then until the client gives its first connection up; none when it did before
    dns         until the client has the new address: the rest of the old record's life, attempts at the
                old address meanwhile, and the question
    tcp         from the SYN to its SYN-ACK
    tls         from then to the client's Finished
    quic        from the decision to connect to the first request that the server can read, which is in
                the first flight when it is early data
    request     from then to the first useful byte of the answer
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import polars as pl

from quicferry.analysis.event_queries import last_event
from quicferry.analysis.metrics import Metrics
from quicferry.analysis.timeline import USEFUL_FRAMES, earliest_ns
from quicferry.capture.quic.packets import Direction
from quicferry.events import Event
from quicferry.model import host_of
from quicferry.units import ns_to_ms

#: How well the parts must explain the whole.
TOLERANCE_MS = 5.0
ORDER = ("in-flight", "downtime", "detection", "dns", "tcp", "tls", "quic", "request")


def breakdown_ms(
    traffic: pl.DataFrame, events: Sequence[Event], metrics: Metrics, new: str
) -> dict[str, float]:
    """The parts in order of time, in milliseconds; empty when the client did not reconnect by itself."""
    gap, frozen, resumed = metrics.gap, metrics.frozen_ns, metrics.resumed_ns
    if gap is None or frozen is None or resumed is None:
        return {}
    noticed = min((t for t in _times(events, "client.connection.lost") if t >= frozen), default=None)
    carrier = _carrier(traffic, new, gap.first_new_ns)
    if noticed is None or carrier is None:
        return {}
    begun = earliest_ns(carrier.filter(pl.col("direction") == Direction.TO_SERVER.value))
    resolved = max((t for t in _resolved(events, host_of(new)) if begun is None or t <= begun), default=None)
    if begun is None or resolved is None:
        return {}
    found = {
        "in-flight": frozen - gap.last_old_ns,
        "downtime": resumed - frozen,
        "detection": max(0, noticed - resumed),
        "dns": resolved - max(noticed, resumed),
        **_connection(carrier, gap.first_new_ns, last_event(events, "client.quic.connecting", begun)),
    }
    return {name: round(ns_to_ms(found[name]), 6) for name in ORDER if name in found}


def unexplained_ms(breakdown: dict[str, float], service_migration_time_ms: float) -> float:
    """The part of the service-migration time that the breakdown does not cover."""
    return service_migration_time_ms - sum(breakdown.values())


def _times(events: Iterable[Event], name: str) -> list[int]:
    return [event.t_ns for event in events if event.name == name]


def _resolved(events: Iterable[Event], address: str) -> list[int]:
    return [e.t_ns for e in events if e.name == "client.resolved" and e.detail.get("address") == address]


def _carrier(traffic: pl.DataFrame, new: str, first_new_ns: int) -> pl.DataFrame | None:
    """The packets of the connection that carried the first useful byte from the new endpoint."""
    useful = traffic.filter(
        (pl.col("source") == new)
        & (pl.col("t_ns") == first_new_ns)
        & pl.col("frame").is_in(USEFUL_FRAMES)
        & (pl.col("new_bytes") > 0)
    )
    if useful.is_empty():
        return None
    row = useful.row(0, named=True)
    return traffic.filter((pl.col("connection") == row["connection"]) & (pl.col("space") != "retry"))


def _connection(carrier: pl.DataFrame, first_new_ns: int, connecting: Event | None) -> dict[str, int]:
    """The parts of the new connection, for TCP from the capture alone."""
    to_server = carrier.filter(pl.col("direction") == Direction.TO_SERVER.value)
    requested = earliest_ns(to_server.filter(pl.col("frame").is_in(USEFUL_FRAMES)))
    if requested is None:
        return {}
    found = {"request": first_new_ns - requested}
    begun = earliest_ns(to_server)
    assert begun is not None
    if carrier["space"][0] != "tcp":
        return {"quic": requested - (begun if connecting is None else connecting.t_ns), **found}
    accepted = earliest_ns(carrier.filter(pl.col("frame") == "SYN-ACK"))
    finished = earliest_ns(to_server.filter(pl.col("frame") == "FINISHED"))
    if accepted is not None:
        found["tcp"] = accepted - begun
    if accepted is not None and finished is not None:
        found["tls"] = finished - accepted
        found["request"] = first_new_ns - finished
    return found
