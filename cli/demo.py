"""``quicferry demo``: the server moves once with each strategy and each engine; then look at it."""

from __future__ import annotations

from pathlib import Path

import click

from cli.common.output import ask_for_root, say
from cli.common.progress import perform_shown
from cli.common.results import check_places, show
from cli.common.runs import runs_option
from quicferry.experiment.store import RunStore
from quicferry.strategies import strategies
from session.outcomes import raise_for
from session.scenario import Scenario

ENGINES = ("handoff", "criu-cold")


@click.command()
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="Where the HTML page goes.  [default: demo.html among the runs]",
)
@click.option(
    "--strategy",
    "chosen",
    type=click.Choice(list(strategies())),
    multiple=True,
    help="Only this strategy; may be repeated: a slow machine takes minutes for each.  [default: all]",
)
@runs_option
def demo(report: Path | None, chosen: tuple[str, ...], runs_root: Path | None) -> None:
    """Move the server once with each strategy, by CRIU and by hand-off, and show the result.

    Two emulated edges, 18 ms round-trip time, a request every 10 ms. Takes a minute or two.
    """
    ask_for_root("the demo")
    scenario = Scenario(
        title="demo",
        sweep={"engine": list(ENGINES), "strategy": list(dict.fromkeys(chosen)) or list(strategies())},
    )
    check_places(report, None)
    results = perform_shown(list(scenario.runs()), runs_root)
    store = RunStore(runs_root)
    show(results, report or store.root / "demo.html")
    say(f"run directories: {store.root}  (`bin/quicferry runs list`)")
    raise_for(results)
