"""Derives the timeline of a run from its captures and events, on one clock.

**Useful service** is stream data that the client had not received before: a STREAM frame in a
packet to the client of which at least one byte (stream ID, offset range) is new in the client's
capture. Acknowledgements, path validation, control frames, retransmissions of what had arrived
and empty FINs are not useful service: they serve the connection, not its user.

**Service-migration time** is the time from the last useful packet from the old address before, to
the first useful packet from the new address; both stamps are taken by the kernel at the client's
interface.

Other transports use the same definitions: ``service_gap`` only wants to know when how many new bytes
came from whom. Over TLS, useful service is application data, at the segment that completes its record;
handshake messages, tickets and alerts are not.
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

import polars as pl

from quicferry.capture.quic.frames import NOT_ACK_ELICITING
from quicferry.capture.quic.packets import Direction
from quicferry.events import Event
from quicferry.units import NS_PER_MS, NS_PER_US

#: What ``arrivals`` returns and ``service_gap`` takes.
ARRIVALS = {"t_ns": pl.Int64, "server": pl.String, "new_bytes": pl.Int64}

#: What carries an application's bytes: of QUIC, and of TLS over TCP (``capture.tcp_table``).
USEFUL_FRAMES = ("STREAM", "DATAGRAM", "APPLICATION_DATA")

RTT_SAMPLES_WANTED = 3
_BY_ACK = "request to acknowledgement less its stated delay"


#: the direction in which a signal of MPTCP says something of the server's addresses
MULTIPATH_SIGNALS = {
    "ADD_ADDR": Direction.TO_CLIENT,
    "MP_JOIN": Direction.TO_SERVER,
    "REMOVE_ADDR": Direction.TO_CLIENT,
}


class ServiceGap(NamedTuple):
    """The interval in which the client got no useful service."""

    last_old_ns: int
    first_new_ns: int
    late_old_bytes: int  # new bytes from the old address after the first from the new one

    @property
    def length_ns(self) -> int:
        """The service-migration time."""
        return self.first_new_ns - self.last_old_ns


class RoundTrip(NamedTuple):
    """A round-trip time between client and destination, as the client's interface saw it."""

    median_ns: int
    samples: int
    method: str


class Moment(NamedTuple):
    """A named point in time; ``origin`` is ``capture`` or ``event``."""

    t_ns: int
    vantage: str
    name: str
    origin: str


def arrivals(traffic: pl.DataFrame) -> pl.DataFrame:
    """Useful service in a decrypted capture: columns as in ARRIVALS, sorted by time."""
    return (
        traffic.lazy()
        .filter(
            (pl.col("direction") == Direction.TO_CLIENT.value)
            & pl.col("frame").is_in(USEFUL_FRAMES)
            & (pl.col("new_bytes") > 0)
        )
        .select("t_ns", pl.col("source").alias("server"), "new_bytes")
        .sort("t_ns")
        .collect()
    )


def without_unknown_servers(traffic: pl.DataFrame) -> pl.DataFrame:
    """Clear the new bytes of packets that a stock client must discard.

    RFC 9000 §9: a client discards packets from a server address that it has not sent to on that
    connection. A server that was moved goes on sending to its old connections from its new address.
    """
    keys = ["connection", "server"]
    to_server = pl.col("direction") == Direction.TO_SERVER.value
    known = (
        traffic.filter(to_server)
        .group_by("connection", pl.col("destination").alias("server"))
        .agg(pl.col("t_ns").min().alias("known_ns"))
    )
    stranger = (~to_server) & (pl.col("known_ns").is_null() | (pl.col("known_ns") > pl.col("t_ns")))
    return (
        traffic.with_columns(pl.col("source").alias("server"))
        .join(known, on=keys, how="left", maintain_order="left")
        .with_columns(pl.when(stranger).then(None).otherwise(pl.col("new_bytes")).alias("new_bytes"))
        .drop("server", "known_ns")
    )


def logged_arrivals(events: Iterable[Event]) -> pl.DataFrame:
    """Useful service by the client's own log: complete responses and download data."""
    rows = [
        (event.t_ns, str(event.detail["server"]), 1)
        for event in events
        if event.name in ("client.response.received", "client.download.data") and event.detail.get("server")
    ]
    return pl.DataFrame(rows, schema=ARRIVALS, orient="row").sort("t_ns")


def service_gap(useful: pl.DataFrame, old: str, new: str) -> ServiceGap | None:
    """The gap between service from ``old`` and service from ``new``; None when either never came."""
    from_new = useful.filter(pl.col("server") == new)
    if from_new.is_empty():
        return None
    first_new = int(from_new["t_ns"][0])
    from_old = useful.filter(pl.col("server") == old)
    before = from_old.filter(pl.col("t_ns") <= first_new)
    if before.is_empty():
        return None
    late = from_old.filter(pl.col("t_ns") > first_new)
    return ServiceGap(int(before["t_ns"][-1]), first_new, int(late["new_bytes"].sum()))


def earliest_ns(rows: pl.DataFrame) -> int | None:
    """The earliest ``t_ns`` of a table; None without rows."""
    return int(rows["t_ns"].min()) if not rows.is_empty() else None  # type: ignore[arg-type] # Int64 column


def first_packet_from(traffic: pl.DataFrame, server: str) -> int | None:
    """When the first authentic packet from that address came to the client."""
    found = traffic.filter(
        (pl.col("source") == server)
        & (pl.col("direction") == Direction.TO_CLIENT.value)
        & pl.col("packet_number").is_not_null()
    )
    return earliest_ns(found)


class _Challenge(NamedTuple):
    connection: int
    sent_ns: int
    answered_ns: int


def _challenges(traffic: pl.DataFrame, server: str) -> list[_Challenge]:
    """The client's PATH_CHALLENGEs to an address that were answered from there, in order."""
    sent: dict[str, tuple[int, int]] = {}
    answered: list[_Challenge] = []
    frames = traffic.filter(pl.col("frame").is_in(["PATH_CHALLENGE", "PATH_RESPONSE"]))
    columns = ("t_ns", "connection", "frame", "direction", "source", "destination", "data")
    for row in frames.select(columns).iter_rows(named=True):
        to_server = row["direction"] == Direction.TO_SERVER.value
        if row["frame"] == "PATH_CHALLENGE" and to_server and row["destination"] == server:
            sent.setdefault(row["data"], (row["connection"], row["t_ns"]))
        elif row["frame"] == "PATH_RESPONSE" and not to_server and row["source"] == server:
            begun = sent.pop(row["data"], None)
            if begun is not None:
                answered.append(_Challenge(*begun, row["t_ns"]))
    return answered


def path_validated(traffic: pl.DataFrame, server: str) -> int | None:
    """When the client's first PATH_CHALLENGE to that address was answered (RFC 9000 §8.2)."""
    return min(paths_validated(traffic, server).values(), default=None)


def paths_validated(traffic: pl.DataFrame, server: str) -> dict[int, int]:
    """For each connection that validated a path to that address, when it first did."""
    first: dict[int, int] = {}
    for challenge in _challenges(traffic, server):
        first.setdefault(challenge.connection, challenge.answered_ns)
    return first


def round_trip(traffic: pl.DataFrame, server: str, after_ns: int) -> RoundTrip | None:
    """The round-trip time to an address, from packets sent to it after ``after_ns``.

    Best are requests and the acknowledgements that name them as the largest received, less the delay
    that the acknowledgement states (RFC 9002 §5.3). When there are too few, answered PATH_CHALLENGEs
    are taken.
    """
    later = traffic.filter(pl.col("space") == "1-rtt")
    sent = later.filter(
        (pl.col("destination") == server) & (pl.col("frame") == "STREAM") & (pl.col("t_ns") >= after_ns)
    )
    # each connection counts its packets for itself
    first_sent = sent.group_by("connection", "packet_number").agg(pl.col("t_ns").min())
    sent_at = {(connection, number): t_ns for connection, number, t_ns in first_sent.iter_rows()}
    acks = later.filter((pl.col("source") == server) & (pl.col("frame") == "ACK"))
    samples = []
    columns = ("connection", "t_ns", "largest_acked", "ack_delay_us")
    for connection, t_ns, largest, delay_us in acks.select(columns).iter_rows():
        begun = sent_at.pop((connection, largest), None)
        if begun is not None:
            samples.append(t_ns - begun - delay_us * NS_PER_US)
    if len(samples) >= RTT_SAMPLES_WANTED:
        return RoundTrip(round(median(samples)), len(samples), _BY_ACK)
    probes = [c.answered_ns - c.sent_ns for c in _challenges(traffic, server) if c.sent_ns >= after_ns]
    if probes:
        return RoundTrip(round(median(probes)), len(probes), "PATH_CHALLENGE to PATH_RESPONSE")
    if samples:
        return RoundTrip(round(median(samples)), len(samples), _BY_ACK)
    return None


def tcp_round_trip(traffic: pl.DataFrame, server: str) -> RoundTrip | None:
    """The round-trip time to an address from SYNs, sent once, to their SYN-ACKs."""
    sent = traffic.filter((pl.col("destination") == server) & (pl.col("frame") == "SYN"))
    once = sent.group_by("connection").agg(pl.col("t_ns").min(), pl.len()).filter(pl.col("len") == 1)
    sent_at = dict(once.select("connection", "t_ns").iter_rows())
    answers = traffic.filter((pl.col("source") == server) & (pl.col("frame") == "SYN-ACK"))
    samples = []
    for connection, t_ns in answers.select("connection", "t_ns").iter_rows():
        begun = sent_at.pop(connection, None)
        if begun is not None:
            samples.append(t_ns - begun)
    return RoundTrip(round(median(samples)), len(samples), "SYN to SYN-ACK") if samples else None


def multipath_signals(traffic: pl.DataFrame) -> list[Moment]:
    """The first of each signal of MPTCP's path managers that came to the client or left it."""
    seen = {
        name: traffic.filter((pl.col("frame") == name) & (pl.col("direction") == way.value))["t_ns"].min()
        for name, way in MULTIPATH_SIGNALS.items()
    }
    names = {"ADD_ADDR": "add_addr", "MP_JOIN": "mp_join", "REMOVE_ADDR": "remove_addr"}
    return [
        Moment(t_ns, "client", names[name], "capture") for name, t_ns in seen.items() if isinstance(t_ns, int)
    ]


def packets(traffic: pl.DataFrame) -> pl.DataFrame:
    """One row per packet of a frame-wise table, with the names of its frames and its useful bytes."""
    keys = [
        "t_ns",
        "connection",
        "source",
        "destination",
        "direction",
        "space",
        "packet_number",
        "generation",
    ]
    return (
        traffic.lazy()
        .group_by(keys, maintain_order=True)
        .agg(
            pl.col("packet_bytes").first(),
            pl.col("frame").drop_nulls().unique(maintain_order=True).str.join(" ").alias("frames"),
            pl.col("new_bytes").sum(),
            pl.col("repeated").any(),
            (~pl.col("frame").is_in(list(NOT_ACK_ELICITING)) & pl.col("frame").is_not_null())
            .any()
            .alias("ack_eliciting"),
        )
        .sort("t_ns", maintain_order=True)
        .collect()
    )


def as_table(
    moments: Iterable[Moment], events: Iterable[Event], wire: pl.DataFrame, zero_ns: int
) -> pl.DataFrame:
    """Everything of a run in one table, sorted by time; ``t_ms`` is relative to ``zero_ns``."""
    words = [(m.t_ns, m.origin, m.vantage, m.name) for m in moments]
    words += [(event.t_ns, "event", event.vantage, event.name) for event in events]
    named = pl.DataFrame(
        words,
        schema={"t_ns": pl.Int64, "kind": pl.String, "vantage": pl.String, "name": pl.String},
        orient="row",
    )
    seen = wire.with_columns(
        pl.lit("packet").alias("kind"), pl.lit("client").alias("vantage"), pl.col("frames").alias("name")
    ).drop("frames")
    return (
        pl.concat([named, seen], how="diagonal")
        .sort("t_ns", maintain_order=True)
        .with_columns(((pl.col("t_ns") - zero_ns) / NS_PER_MS).alias("t_ms"))
    )
