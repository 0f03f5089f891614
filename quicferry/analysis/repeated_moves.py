"""Measures several moves of one run, each by itself, and what its processes held on to meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import polars as pl

from quicferry.analysis.endpoint_split import EndpointSplit, client_hosts
from quicferry.analysis.metrics import Metrics, measure
from quicferry.events import Event
from quicferry.record import PLACE_BY_CLIENT_HOST, Manifest, MoveRecord, RunResult, Usage

#: what Python's allocator and a client's log of its own requests may come to
RSS_NOISE_KIB = 6 * 1024
RSS_NOISE_SHARE = 0.15


class MoveWindow(NamedTuple):
    """One move with the time before and after it that belongs to no other."""

    number: int  # from 1
    traffic: pl.DataFrame
    events: list[Event]


def windows(traffic: pl.DataFrame, events: Sequence[Event]) -> list[MoveWindow]:
    """The moves of a run: from the end of the one before to the beginning of the one after."""
    begun = [event.t_ns for event in events if event.name == "run.migrate.started"]
    ended = [e.t_ns for e in events if e.name in ("run.migrate.complete", "run.migrate.failed")]
    found = []
    for index in range(len(begun)):
        since = ended[index - 1] if index else 0
        until = begun[index + 1] if index + 1 < len(begun) else max((e.t_ns for e in events), default=0) + 1
        found.append(
            MoveWindow(
                index + 1,
                traffic.filter((pl.col("t_ns") >= since) & (pl.col("t_ns") < until)),
                [event for event in events if since <= event.t_ns < until],
            )
        )
    return found


def measure_all(
    traffic: pl.DataFrame, events: Sequence[Event], manifest: Manifest
) -> tuple[Metrics, list[MoveRecord]]:
    """The first move in full, and a record of every one."""
    ends = manifest.source_endpoint, manifest.destination_endpoint
    first: Metrics | None = None
    records = []
    for window in windows(traffic, events):
        if manifest.stop_endpoints:
            old, new = manifest.stop_endpoints[window.number - 1 : window.number + 1]
        else:  # a run of an older version: to and fro
            old, new = ends if window.number % 2 else ends[::-1]
        split = None
        if manifest.place_by == PLACE_BY_CLIENT_HOST:
            hosts = client_hosts(manifest, window.number)
            split = EndpointSplit(window.events, old, new, manifest.place_by, client_hosts=hosts)
        metrics = measure(window.traffic, window.events, old, new, split)
        first = first or metrics
        records.append(
            MoveRecord(
                number=window.number,
                source=old,
                destination=new,
                container_downtime_ms=metrics.downtime_ms,
                service_migration_time_ms=metrics.gap.length_ns / 1e6 if metrics.gap else None,
                connection_overhead_ms=metrics.overhead_ms,
                transferred_bytes=metrics.transferred_bytes,
            )
        )
    return first or measure(traffic, events, *ends), records


def add_moves(result: RunResult, records: list[MoveRecord], events: Sequence[Event]) -> None:
    """Put all moves into the result; its own numbers become the medians."""
    result.moves = records
    for name in ("container_downtime_ms", "service_migration_time_ms", "connection_overhead_ms"):
        values = [value for record in records if (value := getattr(record, name)) is not None]
        setattr(result, name, round(median(values), 6) if values else None)
    result.usage = usage(events, comparable(records))
    result.warnings += usage_growth(result.usage)
    ids = [e.detail.get("connection_ids") for e in events if e.name == "server.resumed"]
    result.connection_ids = next((count for count in reversed(ids) if isinstance(count, int)), None)


def usage_growth(readings: Sequence[Usage]) -> list[str]:
    """A sentence for each process that holds more than it did; empty is as it should be."""
    found = []
    for each in readings:
        if each.fds_after > each.fds_before:
            found.append(f"{each.process} grew from {each.fds_before} to {each.fds_after} file descriptors")
        spare_kib = max(RSS_NOISE_KIB, each.rss_before_kib * RSS_NOISE_SHARE)
        if each.rss_after_kib > each.rss_before_kib + spare_kib:
            found.append(f"{each.process} grew from {each.rss_before_kib} to {each.rss_after_kib} KiB")
    return found


def comparable(records: Sequence[MoveRecord]) -> frozenset[int]:
    """The moves after which everybody is where he was once before, with nothing left that is done first.

    The first of them is the one by which each edge that is ever left has been left, and each that is ever
    reached has been reached: what a process holds for that, it holds from then on. To and fro that is the
    second move, on a chain of edges one that may be the last.
    """
    left, reached = {each.source for each in records}, {each.destination for each in records}
    for index, first in enumerate(records, 1):
        played = records[:index]
        if {r.source for r in played} == left and {r.destination for r in played} == reached:
            return frozenset(r.number for r in records[index - 1 :] if r.destination == first.destination)
    return frozenset()


def usage(events: Sequence[Event], moves: frozenset[int]) -> list[Usage]:
    """What each process held after the first of these moves and after the last of them."""
    readings: dict[str, list[Event]] = {}
    done = 0
    for event in sorted(events, key=lambda each: each.t_ns):
        if event.name == "run.migrate.complete":
            done += 1
        elif event.name == "process.usage" and done in moves:
            readings.setdefault(str(event.detail["process"]), []).append(event)
    return [
        Usage(
            process=process,
            fds_before=int(seen[0].detail["fds"]),
            fds_after=int(seen[-1].detail["fds"]),
            rss_before_kib=int(seen[0].detail["rss_kib"]),
            rss_after_kib=int(seen[-1].detail["rss_kib"]),
        )
        for process, seen in sorted(readings.items())
    ]
