"""``quicferry reproduce``: a published experiment, beside what it finds here."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from cli.common.output import json_option, print_json, say, stdout_console
from cli.common.runs import runs_option
from cli.common.sweeping import KEEP, LOCAL, NEW, executor_option, sweep_into
from quicferry.errors import InvalidInput, disk_error
from session.outcomes import raise_for
from session.published import EXCESS_MS, Experiment, Pair, experiments, get, side_by_side, with_containers
from session.scenario import read_scenario
from session.selection import sweep_root
from session.sweep import SweepStore


class Compared(msgspec.Struct, frozen=True):
    """One line of the JSON output."""

    experiment: str
    label: str
    unit: str
    statistic: str
    published: float
    measured: float | None
    low: float | None
    high: float | None
    runs: int
    excess_ms: float | None
    ratio: float | None


@click.command()
@click.argument("name", required=False)
@click.option("--list", "list_them", is_flag=True, help="List the published experiments.")
@click.option(
    "--repetitions",
    type=click.IntRange(1, 10_000),
    default=None,
    help="How often each combination is run; from the scenario's own number on also those that it repeats "
    "less.  [default: what takes less than 20 minutes; docs/reproduce.md]",
)
@click.option(
    "--time-budget-min",
    type=click.FloatRange(0, 100_000, min_open=True),
    default=None,
    help="Begin no run after so many minutes; the same command goes on later.",
)
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Write the figure as SVG into this directory, too.",
)
@click.option(
    "--containers",
    is_flag=True,
    help="Move the server in an OCI container, as was published (engines runc-…); a sweep of its own.",
)
@click.option("--no-runs", is_flag=True, help="Make no run: show what there is.")
@executor_option
@click.option(
    "--network",
    type=click.Choice((NEW, KEEP)),
    default=None,
    help="A new network for each run, or one for all; docs/sweep.md.  [default: keep, with --executor new]",
)
@runs_option
@json_option
def reproduce(
    name: str | None,
    list_them: bool,
    repetitions: int | None,
    time_budget_min: float | None,
    containers: bool,
    no_runs: bool,
    output: Path | None,
    executor: str,
    network: str | None,
    runs_root: Path | None,
    as_json: bool,
) -> None:
    """Run a published experiment; print and draw published and measured values side by side.

    NAME is one of those that --list prints. The runs are a sweep that goes on where it was left: figures of
    the same experiment, such as fig5a and fig5b, share one.
    """
    if list_them or name is None:
        for each in experiments().values():
            click.echo(f"{each.name:<10} {each.title}")
        if name is None and not list_them:
            raise InvalidInput("no experiment was named", hint="name one of these")
        return
    experiment = get(name)
    scenario = read_scenario(experiment.scenario)
    if containers:
        scenario = with_containers(scenario)
    if repetitions is not None and repetitions >= scenario.repetitions:
        scenario = msgspec.structs.replace(scenario, fewer=[])  # who asks for so many means all of them
    given = {"repetitions": repetitions, "time_budget_min": time_budget_min}
    scenario = msgspec.structs.replace(
        scenario, **{key: value for key, value in given.items() if value is not None}
    )
    if network is None:
        network = KEEP if executor == LOCAL else NEW
    suffix = "-containers" if containers else ""
    root = sweep_root(f"published-{experiment.scenario.stem}{suffix}", runs_root)
    end = None
    if no_runs:
        store = SweepStore.open_(root)
    else:
        there = (root / "sweep.json").exists()
        store, end = sweep_into(root, scenario, resume=there, executor=executor, network=network)
    rows = store.rows()
    pairs = side_by_side(name, rows, containers=containers)
    if as_json:
        for pair in pairs:
            print_json(Compared(name, *pair, pair.ratio))
    else:
        _show(experiment, pairs)
    _draw(experiment, pairs, root, output)
    if end is not None and end.missing:
        say(f"{end.reason}: {end.missing} runs are missing; the same command goes on")
    raise_for([row.result for row in rows if row.repetition > 0])


def _show(experiment: Experiment, pairs: list[Pair]) -> None:
    from rich.table import Table

    from quicferry.analysis.tables import NOTHING, number

    console = stdout_console()
    console.print(f"[bold]{experiment.title}[/]", highlight=False)
    table = Table(header_style="bold", border_style="dim")
    table.add_column("")
    has_excess = any(pair.excess_ms is not None for pair in pairs)
    headings = ["published", "measured here", "least to greatest", "runs", "ratio"]
    for heading in [*headings, *([f"over downtime + 1 RTT (≤ {EXCESS_MS:g} ms)"] if has_excess else [])]:
        table.add_column(heading, justify="right")
    for pair in pairs:
        digits = 0 if pair.unit == "bytes" or pair.published >= 1000 else 1
        table.add_row(
            pair.label,
            f"{number(pair.published, digits)} {pair.unit}",
            NOTHING if pair.measured is None else f"{number(pair.measured, digits)} {pair.unit}",
            NOTHING if pair.low is None else f"{number(pair.low, digits)} to {number(pair.high, digits)}",
            str(pair.runs),
            NOTHING if pair.ratio is None else f"{pair.ratio:.2f}",
            *([_excess(pair)] if has_excess else []),
        )
    console.print(table)
    statistics = " and ".join(sorted({pair.statistic for pair in pairs}))
    console.print(f"{statistics} of both; published: {experiment.source}", markup=False)
    console.print("What differs here:")
    for words in experiment.differs:
        console.print(f"  - {words}", markup=False)


def _excess(pair: Pair) -> str:
    """By how much the request hit took longer than downtime and one RTT, and whether that is allowed."""
    from quicferry.analysis.tables import NOTHING, number

    if pair.excess_ms is None:
        return NOTHING
    return f"{number(pair.excess_ms, 1)} ms {'yes' if pair.is_enough else 'no'}"


def _draw(experiment: Experiment, pairs: list[Pair], root: Path, output: Path | None) -> None:
    from quicferry.analysis.figures.published import published_figure
    from quicferry.analysis.figures.style import save_figure

    figure = published_figure(pairs, experiment.title, pairs[0].unit)
    written = save_figure(figure, root, experiment.name, ("pdf", "svg", "png"))
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
            written += save_figure(figure, output, experiment.name, ("svg",))
        except OSError as error:
            raise disk_error(f"the figure cannot be written to {output}", error, "--output") from error
    say("figure: " + ", ".join(str(path) for path in written))
