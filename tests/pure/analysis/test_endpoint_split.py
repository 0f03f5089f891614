"""Which place served: told apart by the server's address, by time, and by the client's address."""

from __future__ import annotations

import polars as pl
import pytest

from quicferry.analysis.endpoint_split import NEW, OLD, EndpointSplit
from quicferry.analysis.metrics import measure
from quicferry.capture.quic.table import SCHEMA
from quicferry.events import Event
from quicferry.record import PLACE_BY_CLIENT, PLACE_BY_CLIENT_HOST, PLACE_BY_TIME

SERVICE = "192.0.2.1:4433"
FIRST, SECOND = "10.0.0.2:50000", "10.0.0.3:50001"
MS = 1_000_000
RTT_NS = 18 * MS


def event(t_ms: float, name: str, **detail: object) -> Event:
    return Event(t_ns=round(t_ms * MS), vantage="any", name=name, detail=detail)


def traffic(*rows: tuple[float, str, str]) -> pl.DataFrame:
    """Useful packets to the client: when, from whom, to which of its addresses."""
    made = [
        {
            "t_ns": round(t_ms * MS),
            "connection": 0,
            "source": source,
            "destination": client,
            "direction": "to-client",
            "space": "1-rtt",
            "packet_number": number,
            "frame": "STREAM",
            "new_bytes": 100,
        }
        for number, (t_ms, source, client) in enumerate(rows)
    ]
    return pl.DataFrame(made, schema=SCHEMA)


def test_an_address_that_moves_is_told_apart_by_the_downtime_as_the_client_sees_it() -> None:
    """A short downtime: answers of the old place still arrive after the new one has resumed."""
    events = [event(100, "server.frozen"), event(104, "server.resumed")]
    events += [
        event(t_ms, "client.response.received", server=SERVICE) for t_ms in (98, 104.5, 108.5, 113.2, 123)
    ]
    seen = traffic(*((t_ms, SERVICE, FIRST) for t_ms in (98, 104.5, 108.5, 113.2, 123)))
    places = EndpointSplit(events, SERVICE, SERVICE, PLACE_BY_TIME, RTT_NS)
    # 109 ms is the latest for the old place, 113 ms the earliest for the new one
    assert places.arrivals(seen)["server"].to_list() == [OLD, OLD, OLD, NEW, NEW]
    assert places.logged_arrivals(events)["server"].to_list() == [OLD, OLD, OLD, NEW, NEW]
    metrics = measure(seen, events, SERVICE, SERVICE, places)
    assert metrics.gap is not None
    assert (metrics.gap.last_old_ns, metrics.gap.first_new_ns) == (round(108.5 * MS), round(113.2 * MS))
    assert metrics.logged_gap == metrics.gap
    assert metrics.first_packet_ns == round(113.2 * MS)
    assert metrics.warnings == []


def test_an_aborted_freeze_before_does_not_count() -> None:
    events = [event(50, "server.frozen"), event(100, "server.frozen"), event(300, "server.resumed")]
    places = EndpointSplit(events, SERVICE, SERVICE, PLACE_BY_TIME, RTT_NS)
    seen = traffic((80, SERVICE, FIRST), (208, SERVICE, FIRST), (210, SERVICE, FIRST))
    assert places.arrivals(seen)["server"].to_list() == [OLD, OLD, NEW]


def test_nothing_is_new_when_the_server_never_resumed() -> None:
    places = EndpointSplit([event(100, "server.frozen")], SERVICE, SERVICE, PLACE_BY_TIME, RTT_NS)
    seen = traffic((80, SERVICE, FIRST), (500, SERVICE, FIRST))
    assert places.arrivals(seen)["server"].to_list() == [OLD, OLD]
    assert places.first_packet_ns(seen) is None


def test_a_client_that_moves_is_told_apart_by_its_address() -> None:
    events = [
        event(100, "client.address.changed", old=FIRST, new=SECOND),
        event(118, "client.address.answered", address=SECOND),
        *(event(t_ms, "client.response.received", server=SERVICE) for t_ms in (99, 117.5, 118.1)),
    ]
    places = EndpointSplit(events, SERVICE, SERVICE, PLACE_BY_CLIENT, RTT_NS)
    seen = traffic((99, SERVICE, FIRST), (117.5, SERVICE, FIRST), (118.1, SERVICE, SECOND))
    assert places.arrivals(seen)["server"].to_list() == [OLD, OLD, NEW]
    assert places.logged_arrivals(events)["server"].to_list() == [OLD, OLD, NEW]
    assert places.first_packet_ns(seen) == round(118.1 * MS)


@pytest.mark.parametrize("place_by", [PLACE_BY_TIME, PLACE_BY_CLIENT])
def test_a_capture_of_nothing(place_by: str) -> None:
    places = EndpointSplit([], SERVICE, SERVICE, place_by, RTT_NS)
    assert places.arrivals(traffic()).is_empty()
    assert places.first_packet_ns(traffic()) is None
    assert measure(traffic(), [], SERVICE, SERVICE, places).gap is None


def test_addresses_tell_places_apart_where_they_change() -> None:
    old, new = "10.0.1.2:4433", "10.0.2.2:4433"
    seen = traffic((1, old, FIRST), (9, new, FIRST), (10, "10.0.3.2:4433", FIRST))
    assert EndpointSplit([], old, new).arrivals(seen)["server"].to_list() == [OLD, NEW, "10.0.3.2:4433"]


def test_what_was_on_its_way_to_a_place_that_was_left_is_not_new() -> None:
    """To and fro: the end of the old service comes after its move, from where the next move goes."""
    old, new = "10.0.2.2:4433", "10.0.1.2:4433"
    seen = traffic((1, new, FIRST), (5, old, FIRST), (100, new, FIRST), (101, old, FIRST))
    places = EndpointSplit([event(50, "run.migrate.started")], old, new)
    useful = places.arrivals(seen)
    assert useful.filter(pl.col("server") == NEW)["t_ns"].to_list() == [100 * MS]
    assert places.first_packet_ns(seen) == 100 * MS
    gap = measure(seen, [event(50, "run.migrate.started")], old, new, places).gap
    assert gap is not None
    assert gap.length_ns == 95 * MS


def test_so_it_is_with_the_addresses_of_a_client_that_moves_to_and_fro() -> None:
    moved = [event(50, "client.handover.started"), event(60, "client.handover.complete")]
    hosts = (SECOND.rpartition(":")[0], FIRST.rpartition(":")[0])
    places = EndpointSplit(moved, SERVICE, SERVICE, PLACE_BY_CLIENT_HOST, client_hosts=hosts)
    seen = traffic((1, SERVICE, FIRST), (5, SERVICE, SECOND), (100, SERVICE, FIRST))
    assert places.arrivals(seen)["server"].to_list() == [OLD, OLD, NEW]
    assert places.first_packet_ns(seen) == 100 * MS
    assert measure(seen, moved, SERVICE, SERVICE, places).gap is not None


def test_packets_have_places_also_those_that_leave() -> None:
    old, new, other = "10.0.1.3:4433", "10.0.2.3:4433", "10.0.3.2:4433"
    seen = pl.concat([traffic((1, old, FIRST), (200, new, FIRST)), traffic((201, other, FIRST))])
    sent = seen.with_columns(
        source=pl.col("destination"), destination=pl.col("source"), direction=pl.lit("to-server")
    )
    events = [event(100, "server.frozen"), event(150, "server.resumed")]
    for packets in (seen, sent):
        by_address = EndpointSplit(events, old, new, PLACE_BY_TIME, RTT_NS).labelled(packets)
        assert by_address["side"].to_list() == [OLD, NEW, None]
        by_time = EndpointSplit(events, SERVICE, SERVICE, PLACE_BY_TIME, RTT_NS).labelled(packets)
        assert by_time["side"].to_list() == [OLD, NEW, NEW]
    moved = [event(118, "client.address.answered", address=SECOND)]
    both = traffic((1, SERVICE, FIRST), (120, SERVICE, SECOND))
    assert EndpointSplit(moved, SERVICE, SERVICE, PLACE_BY_CLIENT).labelled(both)["side"].to_list() == [
        OLD,
        NEW,
    ]
