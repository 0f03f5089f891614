"""Judges whether a run succeeded: where the server ended, what the edges saw, what must never happen."""

from __future__ import annotations

import bisect
from pathlib import Path

import polars as pl

from quicferry.analysis.metrics import inter_edge_bytes
from quicferry.capture.capture import read_counts
from quicferry.capture.clock import ClockConversion
from quicferry.capture.pcap import read_datagrams
from quicferry.capture.quic import TrafficTable
from quicferry.capture.quic.table import tabulate
from quicferry.capture.tcp_table import SPACE
from quicferry.events import Event
from quicferry.record import PLACE_BY_SERVER, Manifest, RunPaths, RunResult
from quicferry.units import NS_PER_MS

#: what begins a server's serving at its edge
BEGINNINGS = frozenset({"server.started", "server.resumed", "server.aborted", "server.kept"})


def captured_edges(manifest: Manifest) -> dict[str, str]:
    """The edges whose traffic was captured by name: source, destination, and others by their own name."""
    parts = {part: node_of(manifest, part) for part in ("source", "destination")}
    return parts | {edge: edge for edge in manifest.stops if edge not in parts.values()}


def where_packets_were_sent(
    client: pl.DataFrame, edges: list[pl.DataFrame], expected: int = 2
) -> list[pl.DataFrame]:
    """The captures that tell when a server sent: those of all ``expected`` edges, else the client's as well.

    At the client a packet of the source may come late without a second server: what stood in the queue of a
    slow access link was sent before the move.
    """
    if len(edges) < expected:
        return [client, *edges]
    # in an edge's capture all counts as repeated that the client's has shown before: here it is the original
    return [edge.with_columns(repeated=pl.lit(value=False)) for edge in edges]


def served_by(
    captures: list[pl.DataFrame], events: list[Event], manifest: Manifest, *, by_edges: bool = False
) -> str | None:
    """Which edge served at the end: ``source``, ``destination``, another's name, ``both`` or ``none``.

    It is the edge that sent new packets to the client after the last move had ended, by the captures that
    ``where_packets_were_sent`` returns, so that a server whose packets are lost on the way counts too.
    Packets already in flight are left out: one round-trip time, as asked, unless all captures are those of
    edges (``by_edges``), which tell when a packet was sent. None when the run never came to a move, and where
    the server's address does not tell its edge.
    """
    if manifest.place_by != PLACE_BY_SERVER:
        return None
    ended = max(
        (event.t_ns for event in events if event.name in ("run.migrate.complete", "run.migrate.failed")),
        default=None,
    )
    if ended is None:
        return None
    rtt_ms = manifest.topology.longest_rtt_ms(manifest.spec.rtt_ms, manifest.spec.source_rtt_ms)
    in_flight_ms = 0.0 if by_edges else rtt_ms + manifest.spec.jitter_ms
    settled_ns = ended + round(in_flight_ms * NS_PER_MS)
    senders = (
        pl.concat(captures)
        .filter(
            (pl.col("direction") == "to-client")
            & (pl.col("space").eq("1-rtt") | (pl.col("space").eq(SPACE) & (pl.col("new_bytes") > 0)))
            & (pl.col("t_ns") > settled_ns)
            & ~pl.col("repeated")
        )["source"]
        .unique()
    )
    edges = dict(zip(manifest.stop_endpoints, manifest.stops, strict=False))
    edges |= {manifest.source_endpoint: "source", manifest.destination_endpoint: "destination"}
    found = sorted(edges[sender] for sender in senders if sender in edges)
    return "both" if len(found) > 1 else (found or ["none"])[0]


def overlap(edge_captures: list[pl.DataFrame], events: list[Event], manifest: Manifest) -> str | None:
    """Whether two servers served one connection at a time, anywhere in the run; in words, None: never.

    A server serves from one of ``BEGINNINGS`` of its edge to its next one; within that, from its first to its
    last packet to a client. Two such intervals at different edges must not overlap: also not before a
    move has ended, and not for a moment after which one of the two fell silent.
    """
    if manifest.place_by != PLACE_BY_SERVER or len(edge_captures) < len(captured_edges(manifest)):
        return None
    edges = dict(zip(manifest.stop_endpoints, manifest.stops, strict=False))
    edges |= {
        manifest.source_endpoint: node_of(manifest, "source"),
        manifest.destination_endpoint: node_of(manifest, "destination"),
    }
    begins = {
        edge: sorted(each.t_ns for each in events if each.vantage == edge and each.name in BEGINNINGS)
        for edge in edges.values()
    }
    sent = (
        pl.concat(edge_captures)
        .filter(
            (pl.col("direction") == "to-client")
            & (pl.col("space") == "1-rtt")
            & (pl.col("connection") >= 0)
            & pl.col("source").is_in(list(edges))
        )
        .select("connection", "source", "t_ns")
        .unique()
        .sort("t_ns")
    )
    intervals: dict[tuple[int, str, int], tuple[int, int]] = {}
    for connection, source, t_ns in sent.iter_rows():
        edge = edges[source]
        key = (connection, edge, bisect.bisect_right(begins[edge], t_ns))
        intervals[key] = (intervals[key][0] if key in intervals else t_ns, t_ns)
    last: dict[int, tuple[int, str]] = {}  # connection -> until when it was served so far, and by whom
    for (connection, edge, _), (first_ns, last_ns) in sorted(intervals.items(), key=lambda item: item[1]):
        until_ns, other = last.get(connection, (first_ns, edge))
        if edge != other and first_ns < until_ns:
            return (
                f"two servers served one connection: {other} for {(until_ns - first_ns) / NS_PER_MS:.1f} ms "
                f"after {edge} had begun"
            )
        if last_ns >= until_ns:
            last[connection] = (last_ns, edge)
    return None


def judge_faults(result: RunResult, manifest: Manifest, events: list[Event]) -> None:
    """Fail a run in which two servers sent, or whose fault did not end as its row of the table says."""
    if result.served_by == "both":
        fail(result, "two servers sent new packets after the move had ended", "see the captures of the edges")
    if not manifest.spec.faults:
        return
    injected = {str(event.detail.get("fault")) for event in events if event.name == "fault.injected"}
    for fault in manifest.spec.faults:
        if fault.name not in injected:
            fail(result, f"the fault {fault.name} was never injected", "the move did not come that far")
    if result.served_by not in manifest.fault_places:
        fail(
            result,
            f"after the fault the server is at {result.served_by}, not at "
            + " or ".join(manifest.fault_places),
            "see the journals and events in the run directory",
        )
    if result.requests_lost or not result.state_ok:
        fail(result, f"{result.requests_lost} requests were lost, state ok: {result.state_ok}", None)


def check_edges(
    paths: RunPaths, manifest: Manifest, traffic: TrafficTable, convert: ClockConversion, result: RunResult
) -> list[pl.DataFrame]:
    """Check what only the edges saw: packets that never arrived, and the image in transit.

    Returns the captures of the edges, decrypted.
    """
    frames: list[pl.DataFrame] = []
    reused = _reused_nonces(traffic.frame)
    crossed = 0
    own = {
        part: [address.partition("/")[0] for address in manifest.topology.addresses_of(edge)]
        for part, edge in captured_edges(manifest).items()
        if any(node.name == edge for node in manifest.topology.nodes)
    }
    decryptor = traffic.decryptor
    for part, edge in captured_edges(manifest).items():
        capture = paths.captures / f"{edge}.pcapng"
        if not capture.is_file():
            result.warnings.append(f"there is no capture of the {part} edge")
            continue
        datagrams = read_datagrams(capture, convert.to_monotonic_ns)
        crossed = max(crossed, inter_edge_bytes(datagrams, own.get("source", ()), own.get("destination", ())))
        decryptor = decryptor.other_vantage()
        seen = tabulate(datagrams, decryptor, port=service_port(manifest))
        frames.append(seen.frame)
        reused += _reused_nonces(seen.frame)
    if crossed:
        result.inter_edge_bytes = crossed
        complete = not any(_dropped(capture) for capture in paths.captures.glob("*.log"))
        if complete and result.transferred_bytes is not None and crossed < result.transferred_bytes:
            result.warnings.append(
                f"{result.transferred_bytes} bytes were moved, but only {crossed} crossed the link between "
                "the edges"
            )
    if reused:
        fail(
            result,
            f"{reused} packets used a key and packet number that another packet had used before",
            "two servers held the keys at one time; do not use this build for anything but finding out why",
        )
    return frames


def _dropped(log: Path) -> int:
    """How many packets a capture dropped, as it says."""
    counts = read_counts(log.read_text(errors="replace"))
    return counts.dropped if counts is not None else 0


def _reused_nonces(frame: pl.DataFrame) -> int:
    """How many packets were protected with a key and packet number that another packet had used."""
    wrong = frame.filter(pl.col("nonce_reused"))
    return wrong.select("connection", "direction", "space", "generation", "packet_number").n_unique()


def asked_nothing(manifest: Manifest) -> str:
    """The words for a move after which nothing was left to serve."""
    knows = "asked nothing since the move"
    if manifest.spec.baseline is None:
        knows = "knows the new address, and asked nothing there"
    return f"the client {knows}: there is no service-migration time"


def judge_nothing_useful(result: RunResult, manifest: Manifest, *, idle: bool) -> None:
    """Judge a run that succeeded so far although nothing useful came from the new address.

    ``idle``: nothing was left to serve, and the client of a strategy knows that address.
    """
    if result.outcome != "succeeded":
        return
    if idle:
        result.warnings.append(asked_nothing(manifest))
        return
    fail(
        result,
        f"the client got no useful service from {manifest.destination_endpoint or 'the new address'}",
        "the timeline shows how far the move came",
    )


def fail(result: RunResult, error: str, hint: str | None) -> None:
    """Mark the result failed; the first error stays the error, later ones become warnings."""
    if result.error is None:
        result.error, result.hint = error, hint
    else:
        result.warnings.append(error)
    if result.outcome in ("succeeded", "running"):
        result.outcome = "failed"


def service_port(manifest: Manifest) -> int | None:
    """The port at which the service is offered, at whichever edge; None when the run never came to one."""
    port = manifest.source_endpoint.rpartition(":")[2]
    return int(port) if port.isdigit() else None


def node_of(manifest: Manifest, part: str) -> str:
    """The node that plays a part: client, source, destination."""
    return manifest.topology.parts.get(part, part)
