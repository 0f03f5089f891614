"""The report: one HTML page that needs nothing else, with the pictures inside.

It holds no secrets: neither keys nor payloads, only what was asked, read back and measured.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from quicferry import __version__
from quicferry.analysis import tables
from quicferry.analysis.analyse import Analysis, study
from quicferry.analysis.figures import timeline as plots
from quicferry.analysis.figures.comparison import MANY, comparison_figures
from quicferry.analysis.tables import NOTHING
from quicferry.errors import StoreError
from quicferry.record import RunResult
from quicferry.spec import RunSpec
from quicferry.strategies import Strategy

#: moments of a run in the order of a successful move -> what they are called in the page
PHASE_TITLES = {
    "notice": "notice: the client is told and answers",
    "checkpoint": "checkpoint: the state is taken",
    "transfer": "transfer: it crosses the network",
    "restore": "restore: it becomes a server again",
    "commit": "commit: the source gives up what it kept",
}
POINT_TITLES = {
    "last_useful_old": "last useful byte from the old address",
    "resumed": "the server runs again",
    "first_packet": "first packet from the new address",
    "validated": "path validated",
    "useful": "first useful byte from the new address",
}
#: parts of a service-migration time -> what they are called in words, see ``analysis.parts``
PART_TITLES = {
    "in-flight": "of it before the freeze (negative: answers were still on their way)",
    "downtime": "of it downtime",
    "detection": "of it detection: until the client gave its connection up",
    "dns": "of it DNS: until it had the new address",
    "tcp": "of it TCP: SYN to SYN-ACK",
    "tls": "of it TLS: until the client's Finished",
    "quic": "of it QUIC: until the first request was on its way",
    "request": "of it the request and its answer",
}


def write_report(run_dirs: Sequence[Path], path: Path, missing: Sequence[str] = ()) -> None:
    """Write the page over these runs. Raises ``StoreError`` when there is none, or one is unreadable.

    ``missing``: what was asked for and cannot be had here, with the reason, a line each.
    """
    if not run_dirs:
        raise StoreError("no runs to report on", hint="`quicferry runs list` shows what there is")
    page = render([study(run_dir) for run_dir in run_dirs], missing)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(
            f"cannot write {path}: {error.strerror}", hint="choose another file with -o"
        ) from error


def render(analyses: Sequence[Analysis], missing: Sequence[str] = ()) -> str:
    """The page as text; ``missing`` as in ``write_report``."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("quicferry.analysis"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    results = [analysis.result for analysis in analyses]
    ratios = tables.ratios(results)
    return environment.get_template("report.html.j2").render(
        made=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
        succeeded=sum(result.outcome == "succeeded" for result in results),
        lost=_total_lost(results),
        many=any((result.clients or 1) > 1 for result in results),
        rows=_summary(results),
        missing=missing,
        compared=bool(ratios),
        repeated=any(len(group) >= MANY for group in tables.cells(results).values()),
        pictures=[_svg(figure) for figure in comparison_figures(analyses).values()],
        runs=[_section(place, analysis) for place, analysis in enumerate(analyses, start=1)],
    )


def _total_lost(results: Sequence[RunResult]) -> str:
    known = [result for result in results if result.requests_lost is not None]
    if not known:
        return NOTHING
    lost = sum(result.requests_lost or 0 for result in known)
    return f"{lost} of {sum(result.requests_sent or 0 for result in known)}"


def _summary(results: Sequence[RunResult]) -> list[dict[str, Any]]:
    """The rows of the table: one per kind of run, medians over its runs."""
    rows = []
    longest = max((r.service_migration_time_ms or 0.0 for r in results), default=0.0) or 1.0
    ratios = tables.ratios(results)
    place = {id(result): number for number, result in enumerate(results, start=1)}
    for (strategy, engine), group in tables.cells(results).items():
        good = [result for result in group if result.outcome == "succeeded"]

        def spread(values: Sequence[float | None], digits: int = 1) -> tuple[str, str]:
            known = [value for value in values if value is not None]
            middle, _, interval = tables.median_and_interval(known, digits).partition(" ")
            return middle, interval

        times = [r.service_migration_time_ms for r in good if r.service_migration_time_ms is not None]
        middle = sorted(times)[len(times) // 2] if times else 0.0
        moved = sorted(r.transferred_bytes for r in good if r.transferred_bytes is not None)
        rows.append(
            {
                "anchor": f"run-{place[id(group[0])]}",
                "strategy": strategy,
                "ratio": tables.number(ratios.get((strategy, engine)), 2),
                "engine": engine,
                "time": spread(list(times)),
                "share": round(100 * middle / longest, 1),
                "downtime": spread([r.container_downtime_ms for r in good]),
                "overhead": spread([r.connection_overhead_ms for r in good]),
                "overhead_rtt": spread([tables.overhead_in_rtt(r) for r in good], 2),
                "rtt": spread([r.rtt_ms for r in good]),
                "moved": tables.size(moved[len(moved) // 2] if moved else None),
                "lost": _total_lost(group),
                "runs": f"{len(good)} of {len(group)}",
                "all_good": len(good) == len(group),
            }
        )
    return rows


def _svg(figure: Any) -> Markup:
    # our own drawing, from numbers and names that matplotlib has escaped
    return Markup(plots.as_svg(figure))  # noqa: S704 - see above


def _section(place: int, analysis: Analysis) -> dict[str, Any]:
    result, manifest = analysis.result, analysis.manifest
    return {
        "anchor": f"run-{place}",
        "id": manifest.id,
        "title": tables.title(manifest.spec),
        "engine": manifest.spec.engine,
        "outcome": result.outcome,
        "error": result.error,
        "hint": result.hint,
        "warnings": result.warnings,
        "timeline": _svg(plots.timeline_figure(analysis, titled=False)),
        "caption": _caption(result),
        "measured": describe_measured(result),
        "phases": describe_phases(result),
        "asked": describe_spec(manifest.spec),
        "links": [
            {
                "name": f"{reading.sender} → {reading.receiver}",
                "backend": reading.backend,
                "asked": _shape(reading.asked.delay_ms, reading.asked.rate_mbps, reading.asked.loss_percent),
                "read_back": ", ".join(f"{key} {value}" for key, value in reading.read_back.items())
                or NOTHING,
                "measured": _shape(
                    reading.measured_delay_ms, reading.measured_rate_mbps, reading.measured_loss_percent
                ),
            }
            for reading in manifest.links
            if reading.backend != "plain"
        ],
        "machine": [
            ("made", manifest.created),
            ("kernel", manifest.kernel or NOTHING),
            ("quicferry", manifest.tool_version or NOTHING),
            *sorted(manifest.versions.items()),
        ],
    }


def _shape(delay_ms: float | None, rate_mbps: float | None, loss_percent: float | None) -> str:
    words = []
    if delay_ms is not None:
        words.append(f"{delay_ms:g} ms")
    if rate_mbps is not None:
        words.append(f"{rate_mbps:g} Mbit/s")
    if loss_percent:
        words.append(f"{loss_percent:g} % loss")
    return ", ".join(words) or NOTHING


def _caption(result: RunResult) -> str:
    """The picture in a sentence, for readers who cannot see it."""
    if result.service_migration_time_ms is None:
        return "Timeline of the move. The client got no service from the new address."
    words = f"The client was without service for {result.service_migration_time_ms:.1f} ms"
    if result.container_downtime_ms is not None:
        words += f"; the server stood still for {result.container_downtime_ms:.1f} ms"
    if result.connection_overhead_ms is not None:
        words += f", and {result.connection_overhead_ms:.1f} ms after it ran again its first useful byte came"
    return words + "."


def describe_measured(result: RunResult) -> list[tuple[str, str]]:
    """Every number of a run, with its unit, beside its name."""

    def ms(value: float | None) -> str:
        return NOTHING if value is None else f"{tables.number(value, 3)} ms"

    state = {True: "survived", False: "did not survive", None: NOTHING}[result.state_ok]
    overhead = tables.overhead_in_rtt(result)
    return [
        ("service-migration time, client's capture", ms(result.service_migration_time_ms)),
        *(
            (title, ms(result.parts_ms[name]))
            for name, title in PART_TITLES.items()
            if name in result.parts_ms
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
        ("state moved", tables.size(result.transferred_bytes)),
        ("how the memory moved", result.memory_path or NOTHING),
        ("seen on the link between the edges", tables.size(result.inter_edge_bytes)),
        ("requests lost", tables.lost_requests(result)),
        (
            "requests obeyed twice",
            NOTHING if result.requests_duplicated is None else str(result.requests_duplicated),
        ),
        (
            "requests sent again",
            NOTHING if result.requests_repeated is None else str(result.requests_repeated),
        ),
        ("median time from a request to its answer", ms(result.service_time_ms)),
        ("largest delivery gap in the whole run", ms(result.largest_gap_ms)),
        ("bytes checked", tables.size(result.bytes_verified)),
        ("the service's state", state),
    ]


def _describe_clients(result: RunResult) -> list[tuple[str, str]]:
    """Rows about many clients; none about one."""
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
    """What a run was asked to be, in words."""

    def optional(value: float | None, unit: str, otherwise: str) -> str:
        return otherwise if value is None else f"{value:g} {unit}"

    source_rtt = spec.rtt_ms if spec.source_rtt_ms is None else spec.source_rtt_ms
    rows = [
        ("topology", spec.topology),
        ("baseline", spec.baseline) if spec.baseline else ("strategy", spec.strategy.value),
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
    if spec.strategy is Strategy.POOL and not spec.baseline:
        rows.insert(4, ("addresses in the pool", str(spec.pool)))
    if spec.baseline:
        rows += [
            ("TTL of the DNS record, the client's cache", f"{spec.dns_ttl_s} s, {spec.dns_cache}"),
            ("TCP_USER_TIMEOUT", f"{spec.tcp_user_timeout_ms:g} ms"),
            ("request time-out", f"{spec.request_timeout_ms:g} ms"),
            ("TLS sessions are resumed", "yes" if spec.tls_resumption else "no"),
        ]
    return rows
