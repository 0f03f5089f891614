"""From what was asked to results on the screen: runs, their analysis, and progress meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import baselines
from cli.axes import build_topology
from cli.downtimes import Downtimes
from cli.support import stderr_console
from quicferry.analysis.metrics import analyse
from quicferry.errors import FerryError, Unsupported
from quicferry.events import Event
from quicferry.experiment.launch import launch, needed_probes
from quicferry.experiment.preflight import check as ask_machine
from quicferry.experiment.store import RunStore
from quicferry.model import Topology
from quicferry.record import Asked, RunResult

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
    "run.analyse.started": "reading the captures",
}


@contextlib.contextmanager
def progress(total: int) -> Iterator[Callable[[str, str, int], None]]:
    """A bar over ``total`` runs on stderr with the step of the current one.

    Yields ``show(title, step, done)``. Without a terminal, one line per run is printed.
    """
    console = stderr_console()
    if not console.is_terminal:
        last = ""

        def plain(title: str, _step: str, done: int) -> None:
            nonlocal last
            if title != last:
                console.print(f"[{done + 1}/{total}] {title}")
                last = title

        yield plain
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("[bold]{task.description}[/]"),
        TextColumn("{task.fields[step]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total, step="")

        def show(title: str, step: str, done: int) -> None:
            bar.update(task, description=title, step=step, completed=done)

        yield show


def title(asked: Asked) -> str:
    """What a run is called on the screen."""
    if asked.baseline is not None:
        return f"{asked.baseline} · {asked.engine}"
    return f"{asked.strategy}{' server-first' if asked.server_first else ''} · {asked.engine}"


def needs(asked: Asked) -> list[str]:
    """What a run needs of the machine, its baseline included. Raises ``InvalidInput`` for an unknown one."""
    needed = needed_probes(asked)
    if asked.baseline is not None:
        needed += [probe for probe in baselines.get(asked.baseline).needs if probe not in needed]
    return needed


def failure(asked: Asked, error: FerryError) -> RunResult:
    """The result of a run that could not even begin."""
    return RunResult(
        outcome=error.outcome,
        strategy=asked.baseline or str(asked.strategy),
        kind="strategy" if asked.baseline is None else "baseline",
        engine=asked.engine,
        seed=asked.seed,
        topology=asked.topology,
        server_first=asked.server_first,
        pool=asked.pool,
        memory_mib=asked.memory_mib,
        loss_percent=asked.loss_percent,
        rtt_asked_ms=asked.rtt_ms,
        error=str(error),
        hint=error.hint,
    )


def refusal(asked: Asked, refusals: Mapping[str, FerryError]) -> FerryError | None:
    """Why a run cannot be: what the machine lacks, or an engine that cannot move the baseline's server."""
    for probe in needs(asked):
        if probe in refusals:
            return refusals[probe]
    if asked.baseline is not None:
        try:
            baselines.check_engine(asked.baseline, asked.engine)
        except Unsupported as error:
            return error
    return None


def perform_all(
    wanted: Sequence[Asked],
    runs_root: Path | None,
    on_result: Callable[[RunResult], None] | None = None,
) -> list[RunResult]:
    """Perform runs one after another and analyse each; a run that fails does not stop the next.

    Raises ``InvalidInput`` before the first one when any of them cannot be meant, and
    ``Unsupported`` when this machine can do none of them.
    """
    plans = [(asked, build_topology(asked)) for asked in wanted]
    store = RunStore(runs_root)
    refusals: dict[str, FerryError] = {}
    for name in sorted({probe for asked in wanted for probe in needs(asked)}):
        try:
            ask_machine([name])
        except FerryError as error:
            refusals[name] = error
    refused = [refusal(asked, refusals) for asked in wanted]
    if refused and None not in refused:
        raise next(error for error in refused if error is not None)
    results: list[RunResult] = []
    downtimes = Downtimes(results)
    with progress(len(plans)) as show:
        for done, (asked, topology) in enumerate(plans):

            def perform(asked: Asked, topology: Topology = topology, done: int = done) -> RunResult:
                def on_event(event: Event) -> None:
                    if event.name in _SHOWN:
                        show(title(asked), _SHOWN[event.name], done)

                show(title(asked), "", done)
                paths = launch(asked, topology, store, "cli.inside", on_event, checked=True)
                show(title(asked), _SHOWN["run.analyse.started"], done)
                return analyse(paths.root)

            why_not = refused[done]
            result = failure(asked, why_not) if why_not is not None else downtimes.perform(asked, perform)
            results.append(result)
            if on_result is not None:
                on_result(result)
    return results
