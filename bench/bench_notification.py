"""How long it takes to tell 1 to 2000 clients that their server is about to move, and until they are there.

    python -m bench.bench_notification [--clients 1 10 50 100 500 1000 2000] [--repetitions 1]

Real runs (two edges, 18 ms to the source's clients, hand-off): from the order to tell them to the answers (or
the last deadline), from the freeze to the first validated path of each client, as its capture has it, and to
its own word that it has switched. Beside them is the aim: 1.5 round trips and 0.25 ms for each client.
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

CROWDS = (1, 10, 50, 100, 500, 1000, 2000)
AIM_RTTS, AIM_MS_PER_CLIENT = 1.5, 0.25


class Spread(NamedTuple):
    """Moments of all clients, in milliseconds."""

    median: float
    p95: float
    last: float

    @classmethod
    def of(cls, moments_ms: Sequence[float]) -> Spread | None:
        """The spread of at least two moments, or of one; None of none."""
        if not moments_ms:
            return None
        ordered = sorted(moments_ms)
        return cls(statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))], ordered[-1])


class Notification(NamedTuple):
    """One run's numbers, in milliseconds."""

    clients: int
    ready: int
    silent: int
    last_sent_ms: float  # until the last SM_PREPARE had left
    answered: Spread
    all_ms: float  # until the last answer, or the last deadline
    validated: Spread | None  # after the freeze, from the capture
    switched: Spread | None  # after the freeze, by the clients' own word
    aim_ms: float
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
    frozen = _only(events, "server.frozen")

    def since(t_ns: int, origin: Event = begun) -> float:
        return (t_ns - origin.t_ns) / NS_PER_MS

    answered = Spread.of([since(e.t_ns) for e in events if e.name == "server.client.ready"])
    if answered is None:
        raise ValueError("no client has answered")
    validated = result.clients_validated_ms
    return Notification(
        clients=result.clients or 0,
        ready=int(ended.detail.get("ready", 0)),
        silent=int(ended.detail.get("silent", 0)),
        last_sent_ms=since(max(sent)),
        answered=answered,
        all_ms=since(ended.t_ns),
        validated=Spread(*(validated[point] for point in Spread._fields)) if validated else None,
        switched=Spread.of([since(e.t_ns, frozen) for e in events if e.name == "client.switched"]),
        aim_ms=AIM_RTTS * to_spec({}).rtt_ms + AIM_MS_PER_CLIENT * (result.clients or 0),
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
    made = Table(
        title="Clients that are told and follow: ms after the order to tell them, and after the freeze"
    )
    heads = (
        *("clients", "ready", "silent", "last notice sent", "answers: median, p95", "all answered"),
        *("validated: median, p95, last", "switched: median, p95, last", "aim for p95", "hand-off downtime"),
        "requests lost",
    )
    for head in heads:
        made.add_column(head, justify="right")
    for row in rows:
        made.add_row(
            *(str(row.clients), str(row.ready), str(row.silent)),
            *(_shown(row.last_sent_ms), _shown(*row.answered[:2]), _shown(row.all_ms)),
            *(_shown(*(row.validated or ())), _shown(*(row.switched or ()))),
            *(_shown(row.aim_ms), "" if row.downtime_ms is None else _shown(row.downtime_ms), str(row.lost)),
        )
    return made


def _shown(*numbers_ms: float) -> str:
    return " / ".join(f"{number:.1f}" for number in numbers_ms)


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
