"""The parts of a service-migration time: each found, and together the whole."""

from __future__ import annotations

import itertools
from typing import Any

import polars as pl
import pytest

from quicferry.analysis.breakdown import breakdown_ms, unexplained_ms
from quicferry.analysis.figures.breakdown_bars import intervals_ms
from quicferry.analysis.metrics import measure
from quicferry.analysis.timeline import without_unknown_servers
from quicferry.capture.quic.table import SCHEMA
from quicferry.events import Event

CLIENT, OLD, NEW = "10.0.0.2:50000", "10.0.1.2:4433", "10.0.2.2:4433"
MS = 1_000_000


def row(
    t_ms: float, connection: int, source: str, destination: str, frame: str, **more: Any
) -> dict[str, Any]:
    to_server = source == CLIENT
    return {
        "t_ns": round(t_ms * MS),
        "connection": connection,
        "source": source,
        "destination": destination,
        "direction": "to-server" if to_server else "to-client",
        "space": "tcp",
        "packet_number": 1,
        "frame": frame,
        "repeated": False,
        **more,
    }


def table(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(list(rows), schema=SCHEMA)


def event(t_ms: float, vantage: str, name: str, **detail: Any) -> Event:
    return Event(t_ns=round(t_ms * MS), vantage=vantage, name=name, detail=detail)


EVENTS = [
    event(100, "edge-1", "server.frozen", epoch=1),
    event(130, "edge-2", "server.resumed", epoch=1),
    event(145, "client", "client.connection.lost", address=OLD, reason="reset", open=1),
    event(150, "client", "client.resolved", address="10.0.1.2", cached=True, ttl_left_s=0.2),
    event(351, "client", "client.resolved", address="10.0.2.2", cached=False, ttl_left_s=1.0),
]
TCP_ROWS = [
    row(96, 0, OLD, CLIENT, "APPLICATION_DATA", new_bytes=256),
    row(150.2, 1, CLIENT, OLD, "SYN"),
    row(168.2, 1, OLD, CLIENT, "RST"),
    row(351.5, 2, CLIENT, NEW, "SYN"),
    row(369.5, 2, NEW, CLIENT, "SYN-ACK"),
    row(370, 2, CLIENT, NEW, "CLIENT_HELLO"),
    row(390, 2, NEW, CLIENT, "FINISHED"),
    row(391, 2, CLIENT, NEW, "FINISHED"),
    row(392, 2, CLIENT, NEW, "APPLICATION_DATA", new_bytes=100),
    row(409, 2, NEW, CLIENT, "NEW_SESSION_TICKET"),
    row(410, 2, NEW, CLIENT, "APPLICATION_DATA", new_bytes=256),
]


def parts_of(rows: list[dict[str, Any]], events: list[Event]) -> tuple[dict[str, float], float]:
    traffic = table(*rows)
    metrics = measure(traffic, events, OLD, NEW)
    assert metrics.gap is not None
    return breakdown_ms(traffic, events, metrics, NEW), metrics.gap.length_ns / MS


def test_tcp_with_dns_is_explained() -> None:
    parts, whole = parts_of(TCP_ROWS, EVENTS)
    assert parts == {
        "in-flight": 4.0,
        "downtime": 30.0,
        "detection": 15.0,
        "dns": 206.0,  # the old record's life and the vain attempt at the old address
        "tcp": 18.0,
        "tls": 21.5,  # with what the client thought before its ClientHello
        "request": 19.0,
    }
    assert whole == 314.0
    assert unexplained_ms(parts, whole) == pytest.approx(0.5)


def test_a_client_that_gives_up_before_the_server_runs_again_has_no_detection() -> None:
    early = [
        e if e.name != "client.connection.lost" else event(110, "client", e.name, **e.detail) for e in EVENTS
    ]
    parts, whole = parts_of(TCP_ROWS, early)
    assert parts["detection"] == 0
    assert parts["dns"] == 221.0
    assert unexplained_ms(parts, whole) == pytest.approx(0.5)


def test_answers_that_were_on_their_way_are_a_negative_part() -> None:
    rows = [row(107, 0, OLD, CLIENT, "APPLICATION_DATA", new_bytes=256), *TCP_ROWS]
    parts, whole = parts_of(rows, EVENTS)
    assert parts["in-flight"] == -7.0
    assert unexplained_ms(parts, whole) == pytest.approx(0.5)


def test_quic_counts_from_the_decision_to_the_first_request() -> None:
    quic = {"space": "1-rtt"}
    rows = [
        row(96, 0, CLIENT, OLD, "STREAM", new_bytes=100, **quic),
        row(96, 0, OLD, CLIENT, "STREAM", new_bytes=256, **quic),
        row(353, 1, CLIENT, NEW, "CRYPTO", space="initial"),
        row(371, 1, NEW, CLIENT, "CRYPTO", space="handshake"),
        row(373, 1, CLIENT, NEW, "STREAM", new_bytes=100, **quic),
        row(392, 1, NEW, CLIENT, "STREAM", new_bytes=256, **quic),
    ]
    events = [*EVENTS, event(351, "client", "client.quic.connecting", address=NEW, early_data=False)]
    parts, whole = parts_of(rows, events)
    assert (parts["quic"], parts["request"]) == (22.0, 19.0)
    assert "tcp" not in parts
    assert unexplained_ms(parts, whole) == pytest.approx(0.0)


@pytest.mark.parametrize("missing", ["server.frozen", "client.connection.lost", "client.resolved"])
def test_what_is_not_known_is_not_guessed(missing: str) -> None:
    assert parts_of(TCP_ROWS, [e for e in EVENTS if e.name != missing])[0] == {}


def test_the_strip_covers_the_gap_without_overlap() -> None:
    traffic = table(*TCP_ROWS)
    metrics = measure(traffic, EVENTS, OLD, NEW)
    intervals = intervals_ms(breakdown_ms(traffic, EVENTS, metrics, NEW), metrics, 100 * MS)
    assert [name for name, _, _ in intervals] == [
        *("in-flight", "downtime", "detection", "dns", "tcp", "tls", "request"),
    ]
    assert intervals[0][1] == -4.0
    assert intervals[-1][2] == 310.0
    for (_, _, end), (_, begin, _) in itertools.pairwise(intervals):
        assert begin >= end


def test_a_stock_client_hears_nothing_from_where_it_has_not_sent() -> None:
    quic = {"space": "1-rtt", "new_bytes": 256}
    rows = [
        row(1, 0, CLIENT, OLD, "STREAM", **quic),
        row(2, 0, OLD, CLIENT, "STREAM", **quic),
        row(3, 0, NEW, CLIENT, "STREAM", **quic),  # the moved server, to a connection it still has
        row(4, 1, CLIENT, NEW, "STREAM", **quic),
        row(5, 1, NEW, CLIENT, "STREAM", **quic),
        row(6, 0, NEW, CLIENT, "STREAM", **quic),
    ]
    heard = without_unknown_servers(table(*rows))
    assert heard.columns == list(SCHEMA)
    assert heard["new_bytes"].to_list() == [256, 256, None, 256, 256, None]
    assert heard["t_ns"].to_list() == [n * MS for n in range(1, 7)]
