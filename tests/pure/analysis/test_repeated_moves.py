"""Several moves in one run, and who serves at the end: from tables that were made by hand."""

from __future__ import annotations

import itertools

import polars as pl
import pytest

import topologies
from quicferry.analysis.repeated_moves import comparable, usage, usage_growth, windows
from quicferry.analysis.verdict import overlap, served_by, where_packets_were_sent
from quicferry.capture.quic.table import SCHEMA
from quicferry.events import Event
from quicferry.record import Manifest, MoveRecord, Usage
from quicferry.spec import RunSpec
from quicferry.units import NS_PER_MS

SOURCE, DESTINATION = "10.0.1.2:4433", "10.0.2.2:4433"


def event(name: str, t_ms: float, **detail: object) -> Event:
    return Event(t_ns=round(t_ms * NS_PER_MS), vantage="run", name=name, detail=dict(detail))


def packets(*sent: tuple[float, str], repeated: bool = False) -> pl.DataFrame:
    rows = [
        {
            "t_ns": round(t_ms * NS_PER_MS),
            "source": source,
            "direction": "to-client",
            "space": "1-rtt",
            "repeated": repeated,
            "new_bytes": 10,
        }
        for t_ms, source in sent
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


MANIFEST = Manifest(
    id="x",
    created="",
    spec=RunSpec(rtt_ms=18.0),
    topology=topologies.get("two_edges").build_from_axes({}, {}),
    source_endpoint=SOURCE,
    destination_endpoint=DESTINATION,
)
ENDED = [event("run.migrate.started", 0), event("run.migrate.complete", 100)]


@pytest.mark.parametrize(
    ("captures", "expected"),
    [
        ([packets((50, SOURCE), (150, DESTINATION))], "destination"),
        ([packets((150, SOURCE))], "source"),
        ([packets((150, SOURCE), (151, DESTINATION))], "both"),
        # seen at an edge only: its packets never arrived, but it sends
        ([packets((150, DESTINATION)), packets((150, SOURCE))], "both"),
        ([packets((99, SOURCE), (110, SOURCE))], "none"),  # was on its way
        ([packets((150, "10.9.9.9:4433"))], "none"),
        ([packets((150, DESTINATION)), packets((150, SOURCE), repeated=True)], "destination"),
    ],
)
def test_who_serves_at_the_end(captures: list[pl.DataFrame], expected: str) -> None:
    assert served_by(captures, ENDED, MANIFEST) == expected


def test_what_an_edge_sent_needs_no_time_to_arrive() -> None:
    """A path of some seconds is longer than the load after a move."""
    captures = [packets((90, SOURCE)), packets((110, DESTINATION))]
    assert served_by(captures, ENDED, MANIFEST) == "none"
    assert served_by(captures, ENDED, MANIFEST, by_edges=True) == "destination"


def test_nobody_can_tell_without_a_move() -> None:
    assert served_by([packets((1, SOURCE))], [], MANIFEST) is None


def test_windows_share_nothing_but_the_pauses() -> None:
    events = [
        *(event("run.migrate.started", 100), event("run.migrate.complete", 150)),
        *(event("run.migrate.started", 200), event("run.migrate.complete", 250)),
        event("run.collect.started", 300),
    ]
    traffic = packets((90, SOURCE), (120, SOURCE), (180, DESTINATION), (220, DESTINATION), (280, SOURCE))
    found = windows(traffic, events)
    assert [window.number for window in found] == [1, 2]
    times = [[t // NS_PER_MS for t in window.traffic["t_ns"]] for window in found]
    assert times == [[90, 120, 180], [180, 220, 280]]
    assert found[1].events[0].name == "run.migrate.complete"


def reading(t_ms: float, fds: int, rss_kib: int) -> Event:
    return event("process.usage", t_ms, process="server", fds=fds, rss_kib=rss_kib)


def route(edges: list[int]) -> list[MoveRecord]:
    ends = [f"10.0.{edge}.2:4433" for edge in edges]
    return [
        MoveRecord(
            number=number,
            source=source,
            destination=destination,
            container_downtime_ms=None,
            service_migration_time_ms=None,
            connection_overhead_ms=None,
            transferred_bytes=None,
        )
        for number, (source, destination) in enumerate(itertools.pairwise(ends), 1)
    ]


@pytest.mark.parametrize(
    ("edges", "moves"),
    [
        ([1, 2], {1}),
        ([1, 2, 1], {2}),
        ([1, 2, 3, 4, 3, 2], {4}),  # what edge 4 holds after the fourth it did not hold after the second
        ([1, 2, 3, 4, 3, 2, 1, 2, 3, 4, 3], {6}),
        ([1, 2, 3, 2, 1, 2, 3, 2, 1], {4, 8}),
        ([1, 2, 3, 1, 2, 3, 1], {3, 6}),
        ([1, 2, 1, 2, 3], {4}),
        ([], set()),
    ],
)
def test_what_may_be_compared_is_where_nothing_is_done_for_the_first_time(
    edges: list[int], moves: set[int]
) -> None:
    assert comparable(route(edges)) == moves


def test_usage_compares_where_everybody_is_at_home() -> None:
    events = []
    for number, (fds, rss) in enumerate([(9, 100), (5, 200), (9, 300), (6, 400), (9, 500)], 1):
        events += [event("run.migrate.complete", number * 10), reading(number * 10 + 1, fds, rss)]
    moves = comparable(route([1, 2, 1, 2, 1, 2]))
    assert moves == {2, 4}
    assert usage(events, moves) == [
        Usage(process="server", fds_before=5, fds_after=6, rss_before_kib=200, rss_after_kib=400)
    ]


@pytest.mark.parametrize(
    ("after", "words"),
    [((5, 40_000), []), ((6, 40_000), ["file descriptors"]), ((5, 47_000), ["KiB"]), ((4, 30_000), [])],
)
def test_what_grew(after: tuple[int, int], words: list[str]) -> None:
    held = Usage(
        process="server", fds_before=5, fds_after=after[0], rss_before_kib=40_000, rss_after_kib=after[1]
    )
    found = usage_growth([held])
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_what_stood_in_a_queue_is_no_second_server() -> None:
    """A slow link gives the source's last packets to the client when the destination serves already."""

    def judged(*edges: pl.DataFrame) -> str | None:
        client = packets((150, DESTINATION), (151, SOURCE))
        return served_by(where_packets_were_sent(client, list(edges)), ENDED, MANIFEST)

    # the client's capture is read first: what it has shown counts as repeated in the others
    before, after = packets((60, SOURCE), repeated=True), packets((150, SOURCE), repeated=True)
    destination = packets((150, DESTINATION), repeated=True)
    assert judged(before, destination) == "destination"
    assert judged(after, destination) == "both"
    assert judged(destination) == "both"  # the source's capture is missing: the client's decides


def at_edge(edge: str, name: str, t_ms: float) -> Event:
    return Event(t_ns=round(t_ms * NS_PER_MS), vantage=edge, name=name)


BEGUN = [at_edge("edge-1", "server.started", 0), at_edge("edge-2", "server.resumed", 100)]
BACK = [*BEGUN, at_edge("edge-1", "server.aborted", 200)]
TO_AND_FRO = [*BEGUN, at_edge("edge-1", "server.resumed", 200), at_edge("edge-2", "server.resumed", 300)]


@pytest.mark.parametrize(
    ("events", "source_ms", "destination_ms", "overlaps"),
    [
        (BEGUN, (10, 90), (101, 150), False),
        # after the move had ended only the destination sends: what was before counts, too
        (BEGUN, (10, 120), (101, 150), True),
        (BEGUN, (10, 101.5), (101, 150), True),
        # within the lease the destination served; then the source took it back
        (BACK, (10, 90, 201, 250), (101, 199), False),
        (BACK, (10, 90, 201, 250), (101, 202), True),
        (TO_AND_FRO, (10, 90, 201, 290), (101, 199, 301, 400), False),
        (TO_AND_FRO, (10, 90, 201, 310), (101, 199, 301, 400), True),
        # who serves again without having been told so
        (BEGUN, (10, 90, 160), (101, 150), True),
    ],
)
def test_two_servers_are_seen_anywhere_in_the_run(
    events: list[Event], source_ms: tuple[float, ...], destination_ms: tuple[float, ...], overlaps: bool
) -> None:
    def of(connection: int) -> list[pl.DataFrame]:
        return [
            packets(*((t_ms, endpoint) for t_ms in times)).with_columns(
                connection=pl.lit(connection, dtype=pl.Int32)
            )
            for times, endpoint in ((source_ms, SOURCE), (destination_ms, DESTINATION))
        ]

    assert (overlap(of(1), events, MANIFEST) is not None) is overlaps
    # one connection that stayed and another that moved are no two servers of one
    apart = [of(1)[0], of(2)[1]]
    assert overlap(apart, events, MANIFEST) is None
    assert overlap(of(1)[:1], events, MANIFEST) is None
