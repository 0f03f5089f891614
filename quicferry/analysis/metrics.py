"""From a run directory to its result: reads what is raw, writes only to ``derived/``.

``derived/`` can be thrown away and made again at any time, years later and without root.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
import polars as pl

from quicferry.analysis.move import Metrics, inter_edge_bytes, measure
from quicferry.analysis.parts import TOLERANCE_MS, parts_ms, unexplained_ms
from quicferry.analysis.places import Places
from quicferry.analysis.several import add_moves, measure_all
from quicferry.analysis.statistics import summarise
from quicferry.capture import timeline
from quicferry.capture.capture import read_counts
from quicferry.capture.clock import ClockConversion, clock_warning
from quicferry.capture.pcap import read_datagrams
from quicferry.capture.quic import Decryptor, TrafficTable, read_keylog
from quicferry.capture.quic.table import SCHEMA, tabulate
from quicferry.capture.tcp_table import SPACE, tabulate_tcp
from quicferry.errors import CaptureError, FerryError
from quicferry.events import Event, read_events
from quicferry.record import (
    PLACE_BY_SERVER,
    ClientSummary,
    Manifest,
    MoveRecord,
    RunPaths,
    RunResult,
    read_manifest,
    write_json,
)
from quicferry.units import NS_PER_MS, ns_to_ms


class Analysis(NamedTuple):
    """A result with what it was made of, for pictures and reports."""

    manifest: Manifest
    result: RunResult
    metrics: Metrics | None
    events: list[Event]
    packets: pl.DataFrame  # of the client's capture, one row each

    @property
    def zero_ns(self) -> int:
        """The moment the server froze or the client changed its address; without one, the first event."""
        if self.metrics is not None and self.metrics.frozen_ns is not None:
            return self.metrics.frozen_ns
        for event in self.events:
            if event.name == "client.address.changed":
                return event.t_ns
        return self.events[0].t_ns if self.events else 0


def analyse(run_dir: Path) -> RunResult:
    """Analyse a run and write ``derived/``: result.json, timeline.parquet, timeline.svg and .png.

    A run that failed gives a result that says so. Raises ``StoreError`` only when there is no
    readable manifest.
    """
    analysis = study(run_dir)
    paths = RunPaths(run_dir)
    paths.derived.mkdir(exist_ok=True)
    write_json(paths.result, analysis.result)
    if analysis.metrics is not None:
        from quicferry.analysis.plots import save_timeline  # matplotlib takes half a second to load

        moments = analysis.metrics.moments()
        table = timeline.as_table(moments, analysis.events, analysis.packets, analysis.zero_ns)
        table.write_parquet(paths.derived / "timeline.parquet")
        save_timeline(analysis, paths.derived)
    return analysis.result


def read_result(run_dir: Path) -> RunResult:
    """The result of a run as it was written, or made now when there is none yet.

    Raises ``StoreError`` for a result of another version that cannot be made again.
    """
    path = RunPaths(run_dir).result
    try:
        result = msgspec.json.decode(path.read_bytes(), type=RunResult)
    except (OSError, msgspec.DecodeError):
        return analyse(run_dir)
    result.run_dir = str(run_dir)
    return result


def study(run_dir: Path) -> Analysis:
    """As ``analyse``, but writes nothing."""
    manifest = read_manifest(run_dir)
    paths = RunPaths(run_dir)
    result = _empty_result(run_dir, manifest)
    events = _events(paths, result)
    if any(event.name == "dns.started" for event in events):
        result.dns_ttl_s = manifest.asked.dns_ttl_s
    _add_client_summary(paths, result)
    metrics: Metrics | None = None
    packets = timeline.packets(pl.DataFrame(schema=SCHEMA))
    try:
        convert = _clock(manifest, events, result)
        traffic = _client_traffic(paths, manifest, convert)
        if manifest.asked.baseline is not None:
            traffic = traffic._replace(frame=timeline.without_strangers(traffic.frame))
        packets = timeline.packets(traffic.frame)
        moves: list[MoveRecord] = []
        if manifest.asked.moves > 1:
            metrics, moves = measure_all(traffic.frame, events, manifest)
        else:
            metrics = measure(
                traffic.frame,
                # of many clients, only the first one's log has every answer: their gap is the capture's
                events if manifest.asked.clients == 1 else [e for e in events if not _is_service(e)],
                manifest.source_endpoint,
                manifest.destination_endpoint,
                Places.of(manifest, events),
            )
        _add_metrics(result, metrics, manifest)
        if manifest.asked.clients > 1 and not moves:
            result.clients_validated_ms = _clients_validated_ms(traffic.frame, metrics, manifest)
        if moves:
            add_moves(result, moves, events)
        _add_parts(result, traffic.frame, events, metrics, manifest.destination_endpoint)
        _add_service(result, traffic.frame, events)
        result.packets_undecrypted = traffic.undecrypted
        if traffic.undecrypted:
            result.warnings.append(
                f"{traffic.undecrypted} packets of the client's capture could not be decrypted"
            )
        edges = _check_edges(paths, manifest, traffic, convert, result)
        result.served_by = served_by([traffic.frame, *edges], events, manifest)
        _judge_faults(result, manifest, events)
    except FerryError as error:
        _fail(result, str(error), error.hint)
    return Analysis(manifest, result, metrics, events, packets)


def _is_service(event: Event) -> bool:
    return event.name in ("client.response.received", "client.download.data")


def _empty_result(run_dir: Path, manifest: Manifest) -> RunResult:
    asked = manifest.asked
    outcome = manifest.outcome
    result = RunResult(
        outcome=outcome,
        strategy=asked.baseline or asked.strategy.value,
        kind="baseline" if asked.baseline else "strategy",
        engine=asked.engine,
        seed=asked.seed,
        topology=asked.topology,
        server_first=asked.server_first,
        pool=asked.pool,
        memory_mib=asked.memory_mib,
        loss_percent=asked.loss_percent,
        link_backend=manifest.link_backend or None,
        rtt_asked_ms=asked.rtt_ms,
        fault=", ".join(asked.faults) or None,
        warnings=list(manifest.warnings),
        error=manifest.error,
        run_dir=str(run_dir),
        run_id=manifest.id,
    )
    if outcome == "running":
        _fail(result, "the run was interrupted", "`quicferry clean` removes what it left behind")
    return result


def _events(paths: RunPaths, result: RunResult) -> list[Event]:
    try:
        return sorted(read_events(paths.events), key=lambda event: event.t_ns)
    except OSError:
        _fail(
            result, "the run has no events", "its processes did not come up: see logs/ in the run directory"
        )
        return []


def _add_client_summary(paths: RunPaths, result: RunResult) -> None:
    try:
        summary = msgspec.json.decode(paths.client.read_bytes(), type=ClientSummary)
    except (OSError, msgspec.DecodeError) as error:
        result.warnings.append(f"the client left no summary: {error}")
        return
    result.requests_sent = summary.requests_sent
    result.requests_lost = summary.requests_lost
    result.requests_duplicated = summary.requests_duplicated
    result.requests_repeated = summary.requests_repeated
    result.bytes_verified = summary.bytes_verified
    result.clients, result.reconnected = summary.connections, summary.reconnected
    result.state_ok = summary.state_ok
    if summary.requests_lost:
        result.warnings.append(f"{summary.requests_lost} requests were never answered")
    if summary.requests_duplicated:
        result.warnings.append(f"{summary.requests_duplicated} requests were obeyed twice")
    if not summary.state_ok:
        result.warnings.append(f"the service's state did not survive: {summary.state_detail or 'no detail'}")
    if summary.closed is not None:
        result.warnings.append(f"the connection ended before its time: {summary.closed}")
    for transfer in summary.transfers:
        if not transfer.verified:
            result.warnings.append(
                f"{transfer.kind}: {transfer.done_bytes} of {transfer.size_bytes} bytes, not verified"
            )


def _clock(manifest: Manifest, events: list[Event], result: RunResult) -> ClockConversion:
    begin, end = (events[0].t_ns, events[-1].t_ns) if events else (0, 0)
    warning = clock_warning(manifest.clock, end - begin)
    if warning is not None:
        result.warnings.append(warning)
    return ClockConversion(manifest.clock, begin, end)


def _port(manifest: Manifest) -> int | None:
    port = manifest.source_endpoint.rpartition(":")[2]
    return int(port) if port.isdigit() else None


def _part(manifest: Manifest, part: str) -> str:
    return manifest.topology.parts.get(part, part)


def _client_traffic(paths: RunPaths, manifest: Manifest, convert: ClockConversion) -> TrafficTable:
    capture = paths.captures / f"{_part(manifest, 'client')}.pcapng"
    if not capture.is_file():
        raise CaptureError(f"there is no capture {capture.name}", hint="the run ended before it began")
    keylog = read_keylog(paths.keys)
    port = _port(manifest)
    datagrams = read_datagrams(capture, convert.to_monotonic_ns)
    traffic = tabulate(datagrams, Decryptor(keylog), port=port)
    if port is not None and (tcp := tabulate_tcp(datagrams, keylog, port)).segments:
        traffic = TrafficTable(
            pl.concat([traffic.frame, tcp.frame]).sort("t_ns", maintain_order=True),
            traffic.decryptor,
            traffic.datagrams + tcp.segments,
            traffic.undecrypted + tcp.undecrypted,
        )
    if traffic.datagrams and traffic.frame["frame"].is_null().all():
        raise CaptureError(
            "nothing in the client's capture can be decrypted",
            hint="the key log in secrets/ does not belong to this run",
        )
    return traffic


def _add_metrics(result: RunResult, metrics: Metrics, manifest: Manifest) -> None:
    def rounded(value: float | None) -> float | None:
        return None if value is None else round(value, 6)

    result.warnings += metrics.warnings
    if metrics.gap is not None:
        result.service_migration_time_ms = rounded(metrics.gap.length_ns / 1e6)
    if metrics.logged_gap is not None:
        result.log_service_migration_time_ms = rounded(metrics.logged_gap.length_ns / 1e6)
    if metrics.round_trip is not None:
        result.rtt_ms = rounded(metrics.round_trip.median_ns / 1e6)
        result.rtt_method = f"{metrics.round_trip.method}, median of {metrics.round_trip.samples}"
    result.container_downtime_ms = rounded(metrics.downtime_ms)
    result.connection_overhead_ms = rounded(metrics.overhead_ms)
    result.pto_ms = metrics.pto_ms
    result.transferred_bytes = metrics.transferred_bytes
    result.memory_path = metrics.memory_path
    result.phases_ms = metrics.phases_ms()
    result.moments_ms = metrics.moments_ms()
    # a baseline may stay where it is; after a fault, ``_judge_faults`` knows where the server must be
    moved = (result.kind == "strategy" or metrics.frozen_ns is not None) and not manifest.asked.faults
    if result.outcome == "succeeded" and metrics.gap is None and moved:
        _fail(
            result,
            f"the client got no useful service from {manifest.destination_endpoint or 'the new address'}",
            "the timeline shows how far the move came",
        )


def _clients_validated_ms(traffic: pl.DataFrame, metrics: Metrics, manifest: Manifest) -> dict[str, float]:
    """After the freeze, when the many clients could be served by the destination: see ``RunResult``."""
    moments = timeline.paths_validated(traffic, manifest.destination_endpoint).values()
    if metrics.frozen_ns is None or not moments:
        return {}
    spread = summarise([ns_to_ms(moment - metrics.frozen_ns) for moment in moments])
    return {
        name: round(value, 6)
        for name, value in (("median", spread.median), ("p95", spread.p95), ("last", spread.maximum))
    }


def _add_parts(
    result: RunResult, traffic: pl.DataFrame, events: list[Event], metrics: Metrics, new: str
) -> None:
    """What a client that came back by itself spent its time on."""
    result.parts_ms = parts_ms(traffic, events, metrics, new)
    if not result.parts_ms or result.service_migration_time_ms is None:
        return
    left = unexplained_ms(result.parts_ms, result.service_migration_time_ms)
    if abs(left) > TOLERANCE_MS:
        result.warnings.append(f"the parts of the service-migration time leave {left:.1f} ms unexplained")


def _add_service(result: RunResult, traffic: pl.DataFrame, events: list[Event]) -> None:
    """How long the client waited, whatever moved."""
    gaps = timeline.arrivals(traffic)["t_ns"].diff().drop_nulls()
    if len(gaps):
        result.largest_gap_ms = round(int(gaps.max()) / 1e6, 6)  # type: ignore[arg-type] # Int64 column
    times = [
        float(event.detail["service_ms"])
        for event in events
        if event.name == "client.response.received" and "service_ms" in event.detail
    ]
    if times:
        result.service_time_ms = round(median(times), 6)


def served_by(captures: list[pl.DataFrame], events: list[Event], manifest: Manifest) -> str | None:
    """Who served at the end: new packets to the client after the last move had ended.

    By the captures of client and edges, so that a server counts whose packets get lost on the way.

    Packets that had been on their way before are left out: one round-trip time, as asked. None when
    the run never came to a move, and where the server's address does not tell its place.
    """
    if manifest.place_by != PLACE_BY_SERVER:
        return None
    ended = max(
        (event.t_ns for event in events if event.name in ("run.migrate.complete", "run.migrate.failed")),
        default=None,
    )
    if ended is None:
        return None
    settled_ns = ended + round((manifest.asked.rtt_ms + manifest.asked.jitter_ms) * NS_PER_MS)
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
    places = {manifest.source_endpoint: "source", manifest.destination_endpoint: "destination"}
    found = sorted(places[sender] for sender in senders if sender in places)
    return "both" if len(found) > 1 else (found or ["none"])[0]


def _judge_faults(result: RunResult, manifest: Manifest, events: list[Event]) -> None:
    """After a fault: the server at one place of the table, nothing lost, and the fault really injected."""
    if result.served_by == "both":
        _fail(
            result, "two servers sent new packets after the move had ended", "see the captures of the edges"
        )
    if not manifest.asked.faults:
        return
    injected = {str(event.detail.get("fault")) for event in events if event.name == "fault.injected"}
    for words in manifest.asked.faults:
        name = words.partition("=")[0]
        if name not in injected:
            _fail(result, f"the fault {name} was never injected", "the move did not come that far")
    if result.served_by not in manifest.fault_places:
        _fail(
            result,
            f"after the fault the server is at {result.served_by}, not at "
            + " or ".join(manifest.fault_places),
            "see the journals and events in the run directory",
        )
    if result.requests_lost or not result.state_ok:
        _fail(result, f"{result.requests_lost} requests were lost, state ok: {result.state_ok}", None)


def _check_edges(
    paths: RunPaths, manifest: Manifest, traffic: TrafficTable, convert: ClockConversion, result: RunResult
) -> list[pl.DataFrame]:
    """What only the edges saw: packets that never arrived, and the image on its way.

    Returns the captures of the edges, decrypted.
    """
    frames: list[pl.DataFrame] = []
    reused = _reused_nonces(traffic.frame)
    crossed = 0
    own = {
        part: [address.partition("/")[0] for address in manifest.topology.addresses_of(_part(manifest, part))]
        for part in ("source", "destination")
        if any(node.name == _part(manifest, part) for node in manifest.topology.nodes)
    }
    decryptor = traffic.decryptor
    for part in ("source", "destination"):
        capture = paths.captures / f"{_part(manifest, part)}.pcapng"
        if not capture.is_file():
            result.warnings.append(f"there is no capture of the {part} edge")
            continue
        datagrams = read_datagrams(capture, convert.to_monotonic_ns)
        crossed = max(crossed, inter_edge_bytes(datagrams, own.get("source", ()), own.get("destination", ())))
        decryptor = decryptor.other_vantage()
        seen = tabulate(datagrams, decryptor, port=_port(manifest))
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
        _fail(
            result,
            f"{reused} packets used a key and packet number that another packet had used before",
            "two servers held the keys at one time; do not use this build for anything but finding out why",
        )
    return frames


def _dropped(log: Path) -> int:
    """How many packets a capture lost, by its own account."""
    counts = read_counts(log.read_text(errors="replace"))
    return counts.dropped if counts is not None else 0


def _reused_nonces(frame: pl.DataFrame) -> int:
    """How many packets were sealed with a key and number that another packet had."""
    wrong = frame.filter(pl.col("nonce_reused"))
    return wrong.select("connection", "direction", "space", "generation", "packet_number").n_unique()


def _fail(result: RunResult, error: str, hint: str | None) -> None:
    """Mark the result failed; the first error stays the error, later ones become warnings."""
    if result.error is None:
        result.error, result.hint = error, hint
    else:
        result.warnings.append(error)
    if result.outcome in ("succeeded", "running"):
        result.outcome = "failed"
