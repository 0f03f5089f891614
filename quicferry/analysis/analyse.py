"""Analyses a run directory: reads the raw files, computes the result, writes nothing.

It needs neither root nor a network and works years later. ``derive`` writes what is computed here.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import NamedTuple

import msgspec
import polars as pl

from quicferry.analysis import timeline
from quicferry.analysis.breakdown import TOLERANCE_MS, breakdown_ms, unexplained_ms
from quicferry.analysis.endpoint_split import NEW, OLD, EndpointSplit
from quicferry.analysis.fidelity import add_fidelity
from quicferry.analysis.goodput import direction_of, goodput
from quicferry.analysis.lateness import lagging, mark_late_moves
from quicferry.analysis.metrics import Metrics, measure
from quicferry.analysis.repeated_moves import add_moves, measure_all
from quicferry.analysis.requests_hit import first_open_ns, requests_hit
from quicferry.analysis.service import TooMuch, judge_service, nothing_left_to_serve, overload
from quicferry.analysis.statistics import summarise
from quicferry.analysis.verdict import (
    asked_nothing,
    captured_edges,
    check_edges,
    fail,
    judge_faults,
    judge_nothing_useful,
    node_of,
    overlap,
    served_by,
    service_port,
    where_packets_were_sent,
)
from quicferry.capture.clock import ClockConversion, clock_warning
from quicferry.capture.damage import damage_of
from quicferry.capture.pcap import read_datagrams
from quicferry.capture.quic import Decryptor, TrafficTable, read_keylog
from quicferry.capture.quic.table import SCHEMA, tabulate
from quicferry.capture.tcp_table import tabulate_tcp
from quicferry.errors import UNDECODABLE, CaptureError, FerryError
from quicferry.events import Event, read_events
from quicferry.record import (
    ClientSummary,
    Manifest,
    MoveRecord,
    RunPaths,
    RunResult,
    read_manifest,
    result_of,
)
from quicferry.units import ns_to_ms

#: Workloads whose useful data does not answer a request.
UNASKED = frozenset({"push", "game", "download", "upload"})


class Analysis(NamedTuple):
    """The result of a run with the measurements, events and packets behind it."""

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


def analyse(run_dir: Path) -> Analysis:
    """Compute the result of a run from its raw files.

    A run that failed gives a result that says so. Raises ``StoreError`` only when there is no
    readable manifest.
    """
    manifest = read_manifest(run_dir)
    paths = RunPaths(run_dir)
    result = _result_of_manifest(run_dir, manifest)
    events = _events(paths, result)
    if any(event.name == "dns.started" for event in events):
        result.dns_ttl_s = manifest.spec.dns_ttl_s
    _check_captures(paths, result)
    summary = _add_client_summary(paths, result)
    too_much: TooMuch | None = None
    if summary is not None:
        too_much = lagging(summary.late, events, manifest) or overload(summary.requests, events, manifest)
        mark_late_moves(result, summary.late, events, manifest)
    metrics: Metrics | None = None
    packets = timeline.packets(pl.DataFrame(schema=SCHEMA))
    try:
        convert = _clock(manifest, events, result)
        traffic = _client_traffic(paths, manifest, convert)
        if manifest.spec.baseline is not None:
            traffic = traffic._replace(frame=timeline.without_unknown_servers(traffic.frame))
        packets = timeline.packets(traffic.frame)
        moves: list[MoveRecord] = []
        if manifest.spec.moves > 1:
            metrics, moves = measure_all(traffic.frame, events, manifest)
        else:
            metrics = measure(
                traffic.frame,
                # of many clients, only the first one's log has every answer: their gap is the capture's
                events if manifest.spec.clients == 1 else [e for e in events if not _is_service(e)],
                manifest.source_endpoint,
                manifest.destination_endpoint,
                EndpointSplit.of_run(manifest, events),
            )
        idle = summary is not None and nothing_left_to_serve(summary, manifest.spec)
        if manifest.spec.baseline is None:  # its clients find out without asking for anything
            idle &= timeline.path_validated(traffic.frame, manifest.destination_endpoint) is not None
        _add_metrics(result, metrics, manifest, must_arrive=too_much is None, idle=idle)
        if manifest.spec.clients > 1 and not moves:
            result.clients_validated_ms = _clients_validated_ms(traffic.frame, metrics, manifest)
            split = EndpointSplit.of_run(manifest, events)
            result.clients_service_migration_ms = _clients_service_migration_ms(
                traffic.frame, split, by_host=len(manifest.topology.clients) > 1
            )
        if moves:
            add_moves(result, moves, events)
            if idle and any(move.service_migration_time_ms is None for move in moves):
                result.warnings.append(asked_nothing(manifest))
        else:
            _add_breakdown(result, traffic.frame, events, metrics, manifest.destination_endpoint)
        _add_service(result, traffic.frame, events)
        if summary is not None and not moves:
            _add_requests_hit(result, summary, metrics)
        _add_goodput(result, traffic.frame, metrics, manifest)
        result.packets_undecrypted = traffic.undecrypted
        if traffic.undecrypted and not manifest.spec.corrupt_percent:
            result.warnings.append(
                f"{traffic.undecrypted} packets of the client's capture could not be decrypted"
            )
        edges = check_edges(paths, manifest, traffic, convert, result)
        expected = len(captured_edges(manifest))
        sent = where_packets_were_sent(traffic.frame, edges, expected)
        result.served_by = served_by(sent, events, manifest, by_edges=len(edges) == expected)
        if manifest.spec.baseline is None and (words := overlap(edges, events, manifest)) is not None:
            fail(result, words, "see the captures of the edges")
        judge_faults(result, manifest, events)
        judge_service(result, summary, too_much)
    except FerryError as error:
        fail(result, str(error), error.hint)
    return Analysis(manifest, result, metrics, events, packets)


def _add_requests_hit(result: RunResult, summary: ClientSummary, metrics: Metrics) -> None:
    """How long the requests around a move of one client took."""
    spec = result.spec
    if spec is None or spec.clients > 1 or metrics.frozen_ns is None or metrics.resumed_ns is None:
        return
    hit = requests_hit(summary.requests, metrics.frozen_ns, metrics.resumed_ns)
    result.request_hit_ms, result.first_request_after_ms = hit.hit_ms, hit.after_ms
    if not hit.under_way and spec.move_when == "pause":
        result.service_migration_time_ms = result.log_service_migration_time_ms = None
        result.connection_overhead_ms = None
        result.warnings.append(
            "nothing was under way while the server moved: a time without service would be that of the pause"
        )
    elif UNASKED.isdisjoint(spec.workload.split("+")) and not (spec.download_mib or spec.upload_mib):
        _leave_out_the_pause(result, summary, metrics)


def _leave_out_the_pause(result: RunResult, summary: ClientSummary, metrics: Metrics) -> None:
    """Count the overhead from when a request could be at the server, if that was later than its resume.

    A server that nobody has asked yet has nothing useful to say; what is then waited for is the client.
    """
    assert metrics.resumed_ns is not None  # else no request would have been looked for
    first_ns = first_open_ns(summary.requests, metrics.resumed_ns)
    if metrics.overhead_ms is None or not result.rtt_ms or first_ns is None:
        return
    pause_ms = ns_to_ms(first_ns - metrics.resumed_ns) + result.rtt_ms / 2
    if 0 < pause_ms < metrics.overhead_ms:
        result.connection_overhead_ms = round(metrics.overhead_ms - pause_ms, 6)


def _is_service(event: Event) -> bool:
    return event.name in ("client.response.received", "client.download.data")


def _result_of_manifest(run_dir: Path, manifest: Manifest) -> RunResult:
    """What is known before anything is measured."""
    result = result_of(manifest.spec, manifest.outcome, error=manifest.error, hint=manifest.hint)
    result.link_backend = manifest.link_backend or None
    result.fault = ", ".join(fault.words for fault in manifest.spec.faults) or None
    result.warnings = list(manifest.warnings)
    add_fidelity(result, manifest)
    result.run_dir, result.run_id = str(run_dir), manifest.id
    if result.outcome == "running":
        fail(result, "the run was interrupted", "`quicferry clean` removes what it left behind")
    return result


def _events(paths: RunPaths, result: RunResult) -> list[Event]:
    damaged: list[int] = []
    try:
        events = sorted(read_events(paths.events, damaged), key=lambda event: event.t_ns)
    except OSError:
        fail(result, "the run has no events", "its processes did not come up: see logs/ in the run directory")
        return []
    if damaged:
        lines = ", ".join(map(str, damaged[:5])) + (", …" if len(damaged) > 5 else "")
        result.warnings.append(
            f"{paths.events.name} is damaged: {len(damaged)} lines are no events and are left out ({lines})"
        )
    return events


def _check_captures(paths: RunPaths, result: RunResult) -> None:
    """Name the captures that are cut off or damaged: what is missing in them is not measured."""
    for capture in sorted(paths.captures.glob("*.pcapng")):
        try:
            words = damage_of(capture)
        except OSError as error:
            words = f"{capture.name} cannot be read: {error.strerror}"
        if words is not None:
            result.warnings.append(f"the capture {words}")


def _add_client_summary(paths: RunPaths, result: RunResult) -> ClientSummary | None:
    try:
        summary = msgspec.json.decode(paths.client.read_bytes(), type=ClientSummary)
    except OSError as error:
        result.warnings.append(f"the client left no summary: {error}")
        return None
    except UNDECODABLE as error:
        result.warnings.append(f"{paths.client.name} is damaged, the client left no summary: {error}")
        return None
    result.requests_sent = summary.requests_sent
    result.requests_lost = summary.requests_lost
    result.requests_duplicated = summary.requests_duplicated
    result.requests_repeated = summary.requests_repeated
    result.bytes_verified = summary.bytes_verified
    result.stalls, result.stalled_ms = summary.stalls, summary.stalled_ms
    result.datagrams_sent = summary.datagrams_sent
    result.datagrams_received = summary.datagrams_received
    result.clients, result.reconnected = summary.connections, summary.reconnected
    result.state_ok = summary.state_ok
    if summary.requests_lost:
        result.warnings.append(f"{summary.requests_lost} requests were never answered")
    if summary.requests_duplicated:
        result.warnings.append(f"{summary.requests_duplicated} requests were executed twice")
    if not summary.state_ok:
        result.warnings.append(f"the service's state did not survive: {summary.state_detail or 'no detail'}")
    if summary.closed is not None:
        result.warnings.append(f"the connection closed early: {summary.closed}")
    for transfer in summary.transfers:
        if not transfer.verified:
            result.warnings.append(
                f"{transfer.kind}: {transfer.done_bytes} of {transfer.size_bytes} bytes, not verified"
            )
    return summary


def _clock(manifest: Manifest, events: list[Event], result: RunResult) -> ClockConversion:
    begin, end = (events[0].t_ns, events[-1].t_ns) if events else (0, 0)
    warning = clock_warning(manifest.clock, end - begin)
    if warning is not None:
        result.warnings.append(warning)
    return ClockConversion(manifest.clock, begin, end)


def _client_traffic(paths: RunPaths, manifest: Manifest, convert: ClockConversion) -> TrafficTable:
    capture = paths.captures / f"{node_of(manifest, 'client')}.pcapng"
    if not capture.is_file():
        raise CaptureError(f"there is no capture {capture.name}", hint="the run ended before it began")
    keylog = read_keylog(paths.keys)
    port = service_port(manifest)
    datagrams = read_datagrams(capture, convert.to_monotonic_ns)
    for name in manifest.topology.clients[1:]:  # those with an access of their own
        other = paths.captures / f"{name}.pcapng"
        if other.is_file():
            datagrams += read_datagrams(other, convert.to_monotonic_ns)
            datagrams.sort(key=lambda datagram: datagram.t_ns)
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


def _add_metrics(
    result: RunResult, metrics: Metrics, manifest: Manifest, *, must_arrive: bool, idle: bool
) -> None:
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
    # a baseline may stay where it is; after a fault, ``judge_faults`` knows where the server must be
    moved = (result.kind == "strategy" or metrics.frozen_ns is not None) and not manifest.spec.faults
    if metrics.gap is None and moved and must_arrive:
        judge_nothing_useful(result, manifest, idle=idle)


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


def _clients_service_migration_ms(
    traffic: pl.DataFrame, split: EndpointSplit, *, by_host: bool
) -> dict[str, float]:
    """How long each of many clients was without useful service: see ``RunResult``."""
    to_client = pl.col("direction") == "to-client"
    by_client = traffic.with_columns(
        client=pl.when(to_client).then(pl.col("destination")).otherwise(pl.col("source"))
    )
    if by_host:  # a client that connects again has another port
        by_client = by_client.with_columns(pl.col("client").str.replace(r":\d+$", ""))
    gaps = [
        timeline.service_gap(split.arrivals(own), OLD, NEW)
        for own in by_client.partition_by("client", maintain_order=True)
    ]
    lengths = [ns_to_ms(gap.length_ns) for gap in gaps if gap is not None]
    if not lengths:
        return {}
    spread = summarise(lengths)
    found = {"median": spread.median, "p95": spread.p95, "last": spread.maximum, "clients": len(lengths)}
    return {name: round(value, 6) for name, value in found.items()}


def _add_breakdown(
    result: RunResult, traffic: pl.DataFrame, events: list[Event], metrics: Metrics, new: str
) -> None:
    """What the service-migration time of a client that reconnected by itself is made of."""
    result.breakdown_ms = breakdown_ms(traffic, events, metrics, new)
    if not result.breakdown_ms or result.service_migration_time_ms is None:
        return
    left = unexplained_ms(result.breakdown_ms, result.service_migration_time_ms)
    if abs(left) > TOLERANCE_MS:
        result.warnings.append(f"the parts of the service-migration time leave {left:.1f} ms unexplained")


def _add_goodput(result: RunResult, traffic: pl.DataFrame, metrics: Metrics, manifest: Manifest) -> None:
    """How the rate of bulk traffic came back, if the run has any and the server moved."""
    spec = manifest.spec
    direction = direction_of(spec.workload, spec.download_mib, spec.upload_mib)
    if direction is None or metrics.frozen_ns is None:
        return
    found = goodput(traffic, metrics.frozen_ns, direction)
    if found is None:
        return
    result.goodput_before_mbps = round(found.before_mbps, 3)
    result.goodput_recovered_ms = found.recovered_ms
    result.goodput_mbps = found.curve
    result.bytes_sent_twice = found.sent_twice_bytes


def _add_service(result: RunResult, traffic: pl.DataFrame, events: list[Event]) -> None:
    """The client's longest wait for useful data, and its median service time, whatever moved."""
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
