"""Splits the client's capture and log into service from the old and from the new endpoint.

For the extension and for clients that reconnect, the server's address decides. Where it does not
change, or where both addresses serve for a while (an address that moves, MPTCP), the time decides: the
boundary is the middle of the server's downtime, later by half a round trip. Packets of the old endpoint
have arrived by then, and none of the new endpoint can have. Where the client moves and the server stays,
the client's address decides.

Nothing is new before the move begins: what comes then to an endpoint that had been left was on its way.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from quicferry.analysis import timeline
from quicferry.analysis.event_queries import first_event, last_event
from quicferry.capture.quic.packets import Direction
from quicferry.events import Event
from quicferry.record import (
    PLACE_BY_CLIENT,
    PLACE_BY_CLIENT_HOST,
    PLACE_BY_SERVER,
    PLACE_BY_TIME,
    Manifest,
)
from quicferry.units import NS_PER_MS

OLD, NEW = "old", "new"
_BY_CLIENT = (PLACE_BY_CLIENT, PLACE_BY_CLIENT_HOST)


def client_hosts(manifest: Manifest, move: int) -> tuple[str, str] | None:
    """The client's addresses before and after a move, counted from 1, if it moves as well."""
    stops = manifest.client_stops[move - 1 : move + 1]
    return (stops[0], stops[1]) if len(stops) > 1 else None


class EndpointSplit:
    """Labels packets and arrivals of one run OLD or NEW.

    ``old`` and ``new`` are the server's endpoints, ``round_trip_ns`` the mean of the round-trip times to
    both as asked for.
    """

    def __init__(
        self,
        events: Sequence[Event],
        old: str,
        new: str,
        place_by: str = PLACE_BY_SERVER,
        round_trip_ns: int = 0,
        client_hosts: tuple[str, str] | None = None,
    ) -> None:
        self._old, self._new = old, new
        self._client_hosts = client_hosts
        self._by = place_by
        self._client = ""
        self._boundary_ns: int | None = None
        began = first_event(events, "client.handover.started") or first_event(events, "run.migrate.started")
        self._began_ns = began.t_ns if began is not None else 0
        if place_by == PLACE_BY_TIME:
            self._boundary_ns = _downtime_seen_ns(events, round_trip_ns)
        elif place_by == PLACE_BY_CLIENT_HOST:
            changed = first_event(events, "client.handover.complete")
            self._boundary_ns = changed.t_ns if changed is not None else None
        elif place_by == PLACE_BY_CLIENT:
            answered = first_event(events, "client.address.answered")
            if answered is not None:
                self._client = str(answered.detail.get("address", ""))
                # for the log, which does not know addresses: what was sent to the old one came before
                self._boundary_ns = answered.t_ns

    @classmethod
    def of_run(cls, manifest: Manifest, events: Sequence[Event]) -> EndpointSplit:
        """The split of the run with that manifest."""
        spec = manifest.spec
        # both ways to the client count by half: from the source the last, from the destination the first
        source_rtt_ms = spec.rtt_ms if spec.source_rtt_ms is None else spec.source_rtt_ms
        round_trip_ns = round((source_rtt_ms + spec.rtt_ms) / 2 * NS_PER_MS)
        return cls(
            events,
            manifest.source_endpoint,
            manifest.destination_endpoint,
            manifest.place_by,
            round_trip_ns,
            client_hosts(manifest, 1),
        )

    def labelled(self, packets: pl.DataFrame) -> pl.DataFrame:
        """Packets with a column ``side``: OLD, NEW or null, by the address, else by the time."""
        address = (
            pl.when(pl.col("direction") == Direction.TO_CLIENT.value)
            .then(pl.col("destination" if self._by in _BY_CLIENT else "source"))
            .otherwise(pl.col("source" if self._by in _BY_CLIENT else "destination"))
        )
        if self._by == PLACE_BY_CLIENT_HOST:
            is_new, is_old = self._at_new_client(address), self._at_host(address, 0)
        elif self._by == PLACE_BY_CLIENT:
            is_new, is_old = self._at_new_client(address), address != self._client
        elif self._old != self._new:
            is_new, is_old = address == self._new, address == self._old
        else:
            boundary_ns = self._boundary_ns
            is_new = pl.lit(False) if boundary_ns is None else pl.col("t_ns") >= boundary_ns
            is_old = ~is_new
        is_new &= self._may_be_new()
        side = pl.when(is_new).then(pl.lit(NEW)).when(is_old).then(pl.lit(OLD)).otherwise(None)
        return packets.with_columns(side=side)

    def _may_be_new(self) -> pl.Expr:
        return pl.col("t_ns") >= self._began_ns

    def arrivals(self, traffic: pl.DataFrame) -> pl.DataFrame:
        """As ``timeline.arrivals``; ``server`` is OLD, NEW, or another endpoint."""
        useful = timeline.arrivals(traffic)
        if self._by not in _BY_CLIENT:
            return self._label_servers(useful)
        is_new = self._at_new_client(pl.col("destination")) & self._may_be_new()
        on_new = timeline.arrivals(traffic.filter(is_new))
        on_old = timeline.arrivals(traffic.filter(~is_new))
        return pl.concat(
            [on_old.with_columns(server=pl.lit(OLD)), on_new.with_columns(server=pl.lit(NEW))]
        ).sort("t_ns")

    def _at_host(self, address: pl.Expr, place: int) -> pl.Expr:
        """Whether an endpoint is at the client's old (0) or new (1) address, whatever its port."""
        host = self._client_hosts[place] if self._client_hosts is not None else ""
        return address.str.starts_with(f"[{host}]:" if ":" in host else f"{host}:")

    def _at_new_client(self, address: pl.Expr) -> pl.Expr:
        """Whether an endpoint is the client's new one, where the client's address decides."""
        return self._at_host(address, 1) if self._by == PLACE_BY_CLIENT_HOST else address == self._client

    def logged_arrivals(self, events: Sequence[Event]) -> pl.DataFrame:
        """As ``timeline.logged_arrivals``, labelled in the same way."""
        return self._label_servers(timeline.logged_arrivals(events))

    def _label_servers(self, useful: pl.DataFrame) -> pl.DataFrame:
        if self._by == PLACE_BY_SERVER:
            places = useful.with_columns(pl.col("server").replace({self._old: OLD, self._new: NEW}))
            return places.filter((pl.col("server") != NEW) | self._may_be_new())
        later = pl.lit(False) if self._boundary_ns is None else pl.col("t_ns") >= self._boundary_ns
        return useful.with_columns(server=pl.when(later).then(pl.lit(NEW)).otherwise(pl.lit(OLD)))

    def first_packet_ns(self, traffic: pl.DataFrame) -> int | None:
        """When the first authentic packet from the new endpoint came to the client."""
        if self._by == PLACE_BY_SERVER:
            return timeline.first_packet_from(traffic.filter(self._may_be_new()), self._new)
        if self._boundary_ns is None:
            return None
        found = traffic.filter(
            (pl.col("direction") == Direction.TO_CLIENT.value)
            & pl.col("packet_number").is_not_null()
            & self._may_be_new()
            & (
                self._at_new_client(pl.col("destination"))
                if self._by in _BY_CLIENT
                else pl.col("t_ns") >= self._boundary_ns
            )
        )
        return timeline.earliest_ns(found)


def _downtime_seen_ns(events: Sequence[Event], round_trip_ns: int) -> int | None:
    resumed = first_event(events, "server.resumed")
    if resumed is None:
        return None
    frozen = last_event(events, "server.frozen", resumed.t_ns) or resumed
    return (frozen.t_ns + resumed.t_ns + round_trip_ns) // 2
