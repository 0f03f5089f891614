"""How long it takes to tell 1 to 500 clients that their server is about to move.

    python -m bench.bench_notification [--clients 1 10 20 50 100 500] [--repetitions 1]

Real runs (two edges, 18 ms to the source's clients, hand-off): from the order to tell them to the
last answer (or the last deadline), and from a client's SM_PREPARE to its SM_READY.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from cli.common.progress import perform_shown
from quicferry.events import Event, read_events
from quicferry.record import RunPaths, RunResult
from quicferry.units import NS_PER_MS
from session.request import to_spec

CROWDS = (1, 10, 20, 50, 100, 500)


class Notification(NamedTuple):
    """One run's numbers, in milliseconds."""

    clients: int
    ready: int
    silent: int
    last_sent_ms: float  # until the last SM_PREPARE had left
    first_answer_ms: float
    median_answer_ms: float
    all_ms: float  # until the last answer, or the last deadline
    downtime_ms: float | None
    lost: int | None


def notification(result: RunResult) -> Notification:
    """The numbers of one run. Raises ``ValueError`` when it told nobody."""
    if result.run_dir is None:
        raise ValueError(f"no run: {result.error}")
    events = read_events(RunPaths(Path(result.run_dir)).events)
    begun = _only(events, "migration.notice.started")
    ended = _only(events, "migration.notice.complete")
    sent = [e.t_ns for e in events if e.name == "server.prepare.sent"]
    answered = [e.t_ns for e in events if e.name == "server.client.ready"]
    if not answered:
        raise ValueError("no client has answered")

    def since(t_ns: float) -> float:
        return (t_ns - begun.t_ns) / NS_PER_MS

    return Notification(
        clients=result.clients or 0,
        ready=int(ended.detail.get("ready", 0)),
        silent=int(ended.detail.get("silent", 0)),
        last_sent_ms=since(max(sent)),
        first_answer_ms=since(min(answered)),
        median_answer_ms=since(statistics.median(answered)),
        all_ms=since(ended.t_ns),
        downtime_ms=result.container_downtime_ms,
        lost=result.requests_lost,
    )


def _only(events: Sequence[Event], name: str) -> Event:
    for event in events:
        if event.name == name:
            return event
    raise ValueError(f"the run has no {name}")


def table(rows: Sequence[Notification]) -> Table:
    """All runs, a line each."""
    made = Table(title="Notification of clients, in ms after the order to tell them")
    heads = (
        *("clients", "ready", "silent", "last notice sent", "first answer", "median answer", "all answered"),
        *("hand-off downtime", "requests lost"),
    )
    for head in heads:
        made.add_column(head, justify="right")
    for row in rows:
        numbers = (row.last_sent_ms, row.first_answer_ms, row.median_answer_ms, row.all_ms, row.downtime_ms)
        made.add_row(
            *(str(row.clients), str(row.ready), str(row.silent)),
            *("" if number is None else f"{number:.1f}" for number in numbers),
            str(row.lost),
        )
    return made


def main() -> int:
    """Measure and print; 1 when a run failed."""
    parser = argparse.ArgumentParser(description="Notification time over the number of clients.")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CROWDS))
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=None)
    arguments = parser.parse_args()
    specs = [to_spec({"clients": count}) for count in arguments.clients for _ in range(arguments.repetitions)]
    results = perform_shown(specs, arguments.runs)
    rows, failed = [], 0
    for result in results:
        if result.outcome != "succeeded":
            failed += 1
            sys.stderr.write(f"{result.clients} clients: {result.outcome}: {result.error}\n")
        try:
            rows.append(notification(result))
        except ValueError as error:
            sys.stderr.write(f"{error}\n")
    Console(width=160).print(table(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
