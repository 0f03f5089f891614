"""The axes of a run as options, shared by ``run``, ``compare`` and ``demo``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from quicferry.migration.engines.base import COMPRESSIONS, MEMORY_BY
from quicferry.record import Asked

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULTS = Asked()

#: option, type, what it means; the default is that of ``Asked``
_AXES: tuple[tuple[str, type, str], ...] = (
    ("rtt_ms", float, "Round-trip time between client and destination edge."),
    ("source_rtt_ms", float, "Round-trip time between client and source edge.  [default: as --rtt-ms]"),
    ("jitter_ms", float, "Standard deviation of each one-way delay between core and edges."),
    ("loss_percent", float, "Packets lost on the client's access link, each way."),
    ("rate_mbps", float, "Rate of the client's access link, each way.  [default: no limit]"),
    ("inter_edge_mbps", float, "Rate of the link between the edges, which the server's state crosses."),
    ("pool", int, "How many addresses the client is given as candidates, 1 to 7 (strategy pool)."),
    ("memory_mib", int, "Touched, incompressible memory that the server holds besides its own."),
    ("dirty_mib_s", float, "How much of that memory the server rewrites per second, in MiB."),
    ("interval_ms", float, "Time between two requests; 0 is back to back."),
    ("request_bytes", int, "Size of a request."),
    ("response_bytes", int, "Size of a response."),
    ("download_mib", float, "Size of a download that runs beside the requests; 0 is none."),
    ("upload_mib", float, "Size of an upload that runs beside the requests; 0 is none."),
    ("dns_ttl_s", int, "Time to live of the service's DNS record, 0 to 60 (baselines with DNS)."),
    ("tcp_user_timeout_ms", float, "How long TCP data may stay unacknowledged; 0 is the system's default."),
    ("request_timeout_ms", float, "How long a baseline's client waits for an answer."),
    ("downtime_ms", float, "How long the MPTCP baseline stands still.  [default: as the engine does]"),
    ("before_s", float, "Load before the move."),
    ("after_s", float, "Load after the move."),
    ("seed", int, "Seed of everything that is drawn: losses, jitter, contents."),
)


def axis_options(command: F) -> F:
    """Adds an option for every axis but strategy and engine."""
    for name, kind, text in reversed(_AXES):
        default = getattr(_DEFAULTS, name)
        command = click.option(
            f"--{name.replace('_', '-')}",
            name,
            type=kind,
            default=default,
            show_default=default is not None,
            help=text,
        )(command)
    command = click.option(
        "--calibrate", is_flag=True, help="Measure every link before the run and store what it really does."
    )(command)
    command = click.option(
        "--dns-cache",
        type=click.Choice(["warm", "cold"]),
        default=_DEFAULTS.dns_cache,
        show_default=True,
        help="Whether others on the client's host look the service's name up as well.",
    )(command)
    command = click.option(
        "--tls-resumption", is_flag=True, help="New connections of a baseline resume a TLS session."
    )(command)
    command = click.option(
        "--mptcp-make-before-break",
        is_flag=True,
        help="MPTCP's new address stands before the old one goes.",
    )(command)
    command = click.option(
        "--compression",
        type=click.Choice(COMPRESSIONS),
        default=_DEFAULTS.compression,
        show_default=True,
        help="How memory images of the CRIU engines are packed on their way.",
    )(command)
    command = click.option(
        "--memory-by",
        type=click.Choice(MEMORY_BY),
        default=_DEFAULTS.memory_by,
        show_default=True,
        help="Who moves memory before and after the downtime: the agents, or CRIU's own machinery.",
    )(command)
    command = click.option(
        "--link-backend",
        type=click.Choice(["auto", "netem", "cable"]),
        default="auto",
        show_default=True,
        help="What shapes the links: the kernel's netem, or our own cable in user space.",
    )(command)
    command = click.option(
        "--forwarding/--no-forwarding",
        default=True,
        show_default=True,
        help="Whether the source hands datagrams that come too late on to the destination.",
    )(command)
    command = click.option(
        "--server-first", is_flag=True, help="The variant in which the restored server sends at once."
    )(command)
    command = click.option(
        "--topology", default=_DEFAULTS.topology, show_default=True, help="See `quicferry topo list`."
    )(command)
    return click.option(
        "--runs",
        "runs_root",
        type=click.Path(file_okay=False, path_type=Path),
        default=None,
        help="Where run directories go.  [default: runs/ in the checkout, or $QUICFERRY_RUNS]",
    )(command)
