"""``make soak``: the same connection 200 times to and fro, and nothing may grow.

    python -m bench.soak [--moves 200] [--engine handoff] [--strategy proactive-explicit]

One run. Fails when a request was lost, the service's state is not right, a process holds more file
descriptors than after the second move or clearly more memory, or the server more connection IDs
than aioquic allows at a time.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from cli.common.progress import perform_shown
from quicferry.analysis.repeated_moves import usage_growth
from quicferry.record import RunResult
from quicferry.strategies import Strategy
from session.request import to_spec

#: aioquic's 8, and the one of the client's first datagram: a late copy of it must not make a connection.
#: The hand-off leaves the latter behind
MOST_CONNECTION_IDS = 9


def complaints(result: RunResult, moves: int) -> list[str]:
    """What is wrong with a run; nothing is as it should be."""
    found = usage_growth(result.usage)
    if result.outcome != "succeeded":
        found.append(f"the run {result.outcome}: {result.error}")
    if result.requests_lost or result.requests_duplicated or not result.state_ok:
        found.append(
            f"{result.requests_lost} requests lost, {result.requests_duplicated} executed twice, "
            f"state ok: {result.state_ok}"
        )
    if len(result.moves) != moves:
        found.append(f"{len(result.moves)} of {moves} moves")
    if result.connection_ids is None or result.connection_ids > MOST_CONNECTION_IDS:
        found.append(f"the server has {result.connection_ids} connection IDs")
    return found


def show(result: RunResult) -> None:
    """Print what was measured."""
    table = Table(title=f"{len(result.moves)} moves of one connection")
    for head in ("process", "fds after 2", "fds at the end", "KiB after 2", "KiB at the end"):
        table.add_column(head, justify="left" if head == "process" else "right")
    for each in result.usage:
        numbers = (each.fds_before, each.fds_after, each.rss_before_kib, each.rss_after_kib)
        table.add_row(each.process, *map(str, numbers))
    console = Console(width=120)
    console.print(table)
    times = sorted(m.container_downtime_ms for m in result.moves if m.container_downtime_ms is not None)
    gaps = sorted(
        m.service_migration_time_ms for m in result.moves if m.service_migration_time_ms is not None
    )
    for name, values in (("container downtime", times), ("service-migration time", gaps)):
        if values:
            middle = values[len(values) // 2]
            console.print(f"{name}: median {middle:.1f} ms, {values[0]:.1f} to {values[-1]:.1f} ms")
    console.print(
        f"{result.requests_sent} requests, {result.requests_lost} lost; "
        f"{result.connection_ids} connection IDs at the server"
    )


def main() -> int:
    """Run, print, and say whether all is well."""
    parser = argparse.ArgumentParser(description="Many moves of one connection, and what grows.")
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--engine", default="handoff")
    parser.add_argument("--strategy", type=Strategy, default=Strategy.PROACTIVE_EXPLICIT)
    parser.add_argument("--interval-ms", type=float, default=20.0)
    parser.add_argument("--runs", type=Path, default=None)
    arguments = parser.parse_args()
    axes = ("moves", "engine", "strategy", "interval_ms")
    spec = to_spec({axis: getattr(arguments, axis) for axis in axes})
    result = perform_shown([spec], arguments.runs)[0]
    show(result)
    wrong = complaints(result, arguments.moves)
    for line in wrong:
        sys.stderr.write(f"soak: {line}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
