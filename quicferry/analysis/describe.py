"""Describes one run in titles and numbers with their units: rows for the report and the terminal."""

from __future__ import annotations

from quicferry.analysis import tables
from quicferry.analysis.tables import NOTHING
from quicferry.record import RunResult
from quicferry.spec import RunSpec
from quicferry.strategies import rules_of

#: moments of a run in the order of a successful move -> what they are called in the page
PHASE_TITLES = {
    "notice": "notice: the client is told of the move",
    "checkpoint": "checkpoint: the server's state is saved",
    "transfer": "transfer: the state crosses the network",
    "restore": "restore: the server is restored from it",
    "commit": "commit: the source discards what it kept",
}
POINT_TITLES = {
    "last_useful_old": "last useful byte from the old address",
    "resumed": "the server runs again",
    "first_packet": "first packet from the new address",
    "validated": "path validated",
    "useful": "first useful byte from the new address",
}
#: parts of a service-migration time -> what they are called in words, see ``analysis.breakdown``
BREAKDOWN_TITLES = {
    "in-flight": "of which before the freeze (negative: answers were still on their way)",
    "downtime": "of which downtime",
    "detection": "of which detection: until the client gave up its connection",
    "dns": "of which DNS: until it had the new address",
    "tcp": "of which TCP: SYN to SYN-ACK",
    "tls": "of which TLS: until the client's Finished",
    "quic": "of which QUIC: until the first request was sent",
    "request": "of which the request and its answer",
}


def describe_measured(result: RunResult) -> list[tuple[str, str]]:
    """Every number of a run with its name and unit."""

    def ms(value: float | None) -> str:
        return NOTHING if value is None else f"{tables.number(value, 3)} ms"

    state = {True: "survived", False: "did not survive", None: NOTHING}[result.state_ok]
    overhead = tables.overhead_in_rtt(result)
    return [
        ("service-migration time, client's capture", ms(result.service_migration_time_ms)),
        *(
            (title, ms(result.breakdown_ms[name]))
            for name, title in BREAKDOWN_TITLES.items()
            if name in result.breakdown_ms
        ),
        ("service-migration time, client's log", ms(result.log_service_migration_time_ms)),
        ("container downtime", ms(result.container_downtime_ms)),
        (
            "connection overhead",
            ms(result.connection_overhead_ms) + (f" ({overhead:.2f} RTT)" if overhead is not None else ""),
        ),
        *_describe_clients(result),
        ("RTT client to destination, on the wire", ms(result.rtt_ms)),
        ("how the RTT was measured", result.rtt_method or NOTHING),
        ("PTO when the client noticed the loss", ms(result.pto_ms)),
        ("state transferred", tables.size(result.transferred_bytes)),
        ("memory transfer", result.memory_path or NOTHING),
        ("seen on the link between the edges", tables.size(result.inter_edge_bytes)),
        ("requests lost", tables.lost_requests(result)),
        (
            "requests executed twice",
            NOTHING if result.requests_duplicated is None else str(result.requests_duplicated),
        ),
        (
            "requests sent again",
            NOTHING if result.requests_repeated is None else str(result.requests_repeated),
        ),
        ("median time from a request to its answer", ms(result.service_time_ms)),
        ("time of the request that the move hit", ms(result.request_hit_ms)),
        ("time of the first request after it", ms(result.first_request_after_ms)),
        ("largest delivery gap in the whole run", ms(result.largest_gap_ms)),
        *_describe_bulk(result),
        ("emulator late, 99th percentile of the worst link", _us(result.emulator_late_p99_us)),
        ("what others took of the machine", _percent(result.cpu_others_percent)),
        ("payload bytes verified", tables.size(result.bytes_verified)),
        ("the service's state", state),
    ]


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f} ms"


def _us(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f} us"


def _percent(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f} %"


def _describe_bulk(result: RunResult) -> list[tuple[str, str]]:
    """Rows for a run with bulk traffic, a video or a game."""
    rows = []
    if result.goodput_before_mbps is not None:
        rows += [
            ("goodput before the move", f"{result.goodput_before_mbps:.2f} Mbit/s"),
            ("90 % of it again, after the freeze", _ms(result.goodput_recovered_ms)),
            ("of it sent twice after the freeze", tables.size(result.bytes_sent_twice)),
        ]
    if result.stalls:
        rows.append(("videos stood still", f"{result.stalls} times, {_ms(result.stalled_ms)}"))
    if result.datagrams_sent:
        rows.append(("datagrams answered", f"{result.datagrams_received} of {result.datagrams_sent}"))
    return rows


def _describe_clients(result: RunResult) -> list[tuple[str, str]]:
    """Rows for a run with many clients; none for one client."""
    if (result.clients or 1) == 1:
        return []
    again = f", {result.reconnected} of them connected again" if result.reconnected else ""
    rows = [("clients", f"{result.clients}{again}")]
    if result.clients_validated_ms:
        spread = result.clients_validated_ms
        words = f"{spread['median']:.1f}, {spread['p95']:.1f}, {spread['last']:.1f} ms"
        rows.append(("their paths validated, after the freeze: median, 95 %, last", words))
    return rows


def describe_phases(result: RunResult) -> list[tuple[str, str, str]]:
    """Rows of: what, from when (relative to the freeze), how long."""
    moments = result.moments_ms
    rows: list[tuple[float, str, str, str]] = []
    for name, title in PHASE_TITLES.items():
        begin = moments.get(f"{name}.started")
        if begin is not None:
            rows.append((begin, title, f"{begin:+.3f}", tables.number(result.phases_ms.get(name), 3)))
    for name, title in POINT_TITLES.items():
        if name in moments:
            rows.append((moments[name], title, f"{moments[name]:+.3f}", ""))
    if "frozen" in moments:
        rows.append((moments["frozen"], "the server is frozen", "0.000", ""))
    return [(title, at, length) for _, title, at, length in sorted(rows)]


def describe_spec(spec: RunSpec) -> list[tuple[str, str]]:
    """The axes of a run with their units."""

    def optional(value: float | None, unit: str, otherwise: str) -> str:
        return otherwise if value is None else f"{value:g} {unit}"

    source_rtt = spec.rtt_ms if spec.source_rtt_ms is None else spec.source_rtt_ms
    rows = [
        ("topology", spec.topology),
        ("baseline", spec.baseline) if spec.baseline else ("strategy", str(spec.strategy)),
        ("engine", spec.engine),
        ("server first", "yes" if spec.server_first else "no"),
        ("RTT to destination, to source", f"{spec.rtt_ms:g} ms, {source_rtt:g} ms"),
        ("jitter", f"{spec.jitter_ms:g} ms"),
        ("loss, each way", f"{spec.loss_percent:g} %"),
        ("access rate", optional(spec.rate_mbps, "Mbit/s", "not limited")),
        ("between the edges", f"{spec.inter_edge_mbps:g} Mbit/s"),
        ("memory added to the server", f"{spec.memory_mib} MiB"),
        ("requests", f"every {spec.interval_ms:g} ms" if spec.interval_ms else "back to back"),
        ("sizes of request and response", f"{spec.request_bytes} B, {spec.response_bytes} B"),
        ("seed", str(spec.seed)),
    ]
    if rules_of(spec.strategy).pool and not spec.baseline:
        rows.insert(4, ("addresses in the pool", str(spec.pool)))
    if spec.baseline:
        rows += [
            ("TTL of the DNS record, the client's cache", f"{spec.dns_ttl_s} s, {spec.dns_cache}"),
            ("TCP_USER_TIMEOUT", f"{spec.tcp_user_timeout_ms:g} ms"),
            ("request time-out", f"{spec.request_timeout_ms:g} ms"),
            ("TLS sessions are resumed", "yes" if spec.tls_resumption else "no"),
        ]
    return rows
