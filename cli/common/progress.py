"""Progress on stderr while runs are performed: a bar with the current step, or a line per run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cli.common.output import stderr_console
from quicferry.events import Event
from quicferry.record import RunResult
from quicferry.spec import RunSpec
from session.session import Watcher, perform_all, title

#: event -> what a watcher is told
_SHOWN = {
    "run.deploy.started": "building the network",
    "run.calibrate.started": "measuring every link",
    "run.start.started": "starting captures, agents, server and client",
    "client.connected": "the client is connected",
    "run.load.started": "the client talks to the server",
    "migration.ordered": "moving the server",
    "migration.notice.started": "telling the clients",
    "server.frozen": "the server is frozen",
    "migration.transfer.started": "its state crosses the network",
    "migration.restore.started": "bringing it back",
    "server.resumed": "the server runs at the destination",
    "client.switched": "the client has switched",
    "run.collect.started": "collecting",
    "run.collect.complete": "reading the captures",
}


def time_left(began_s: float, done: int, total: int, now_s: float) -> str:
    """How long the rest takes if it goes on as until now: ``about 4 min left``; empty at the beginning."""
    if not done or done >= total:
        return ""
    left_s = (now_s - began_s) / done * (total - done)
    minutes, seconds = divmod(round(left_s), 60)
    hours, minutes = divmod(minutes, 60)
    words = (
        f"{hours} h {minutes:02} min"
        if hours
        else f"{minutes} min"
        if minutes >= 3
        else f"{minutes}:{seconds:02}"
    )
    return f"about {words} left"


@contextlib.contextmanager
def progress(total: int) -> Iterator[Watcher]:
    """A bar over ``total`` runs on stderr with the step of the current one.

    Without a terminal, one line per run is printed.
    """
    console = stderr_console()
    began_s = time.monotonic()
    if not console.is_terminal:

        def plain(spec: RunSpec, done: int, event: Event | None) -> None:
            if event is None:
                left = time_left(began_s, done, total, time.monotonic())
                console.print(
                    f"[{done + 1}/{total}] {title(spec)}" + (f" ({left})" if left else ""), markup=False
                )

        yield plain
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("[bold]{task.description}[/]"),
        TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(),
        TextColumn("[dim]{task.fields[left]}"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, step="", left="")

        def show(spec: RunSpec, done: int, event: Event | None) -> None:
            if event is None:
                left = time_left(began_s, done, total, time.monotonic())
                bar.update(task, description=title(spec), step="", completed=done, left=left)
            elif event.name in _SHOWN:
                bar.update(task, step=_SHOWN[event.name])

        yield show


def perform_shown(
    specs: Sequence[RunSpec],
    runs_root: Path | None,
    on_result: Callable[[RunResult], None] | None = None,
    *,
    keep_network: bool = False,
) -> list[RunResult]:
    """``session.perform_all`` with progress on stderr."""
    with progress(len(specs)) as watch:
        return perform_all(specs, runs_root, on_result, watch, keep_network=keep_network)
