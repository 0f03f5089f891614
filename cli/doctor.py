"""``quicferry doctor``: what this machine can do, found out by doing it."""

from __future__ import annotations

import click
import msgspec

from cli.common import output
from quicferry.experiment import preflight
from quicferry.probe import ProbeResult


class Diagnosis(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON object of ``doctor --json``."""

    outcome: str  # succeeded, or unsupported when something that the demo needs does not work
    missing: list[str]  # names of probes that the demo needs and that do not work
    probes: list[ProbeResult]


@click.command()
@output.json_option
@click.option("--only", "names", multiple=True, metavar="PROBE", help="Ask this probe only; may be repeated.")
@click.option(
    "--require-list",
    is_flag=True,
    help="Print the names of what works, joined by commas, as pytest's --require takes them.",
)
@click.pass_context
def doctor(ctx: click.Context, as_json: bool, names: tuple[str, ...], require_list: bool) -> None:
    """Find out by trying what this machine can do.

    Each probe does the thing itself: it makes a namespace, sends packets over a shaped link, dumps and
    restores a child. Exit status 0 when all that `quicferry demo` needs works (with --only: when all
    that was asked works), 127 when not.
    """
    chosen = preflight.select(names) if names else list(preflight.probes().values())
    results: list[ProbeResult] = []
    console = output.stderr_console()
    with console.status("asking …") as status:
        status.update(f"asking {chosen[0].name} …")
        for result in preflight.ask(chosen):
            results.append(result)
            if len(results) < len(chosen):
                status.update(f"asking {chosen[len(results)].name} …")
    if require_list:
        click.echo(",".join(result.name for result in results if result.works))
        return
    needed = set(names) if names else set(preflight.NEEDED_FOR_DEMO)
    missing = [result.name for result in results if not result.works and result.name in needed]
    if as_json:
        outcome = "unsupported" if missing else "succeeded"
        output.print_json(Diagnosis(outcome=outcome, missing=missing, probes=results))
    else:
        _print_table(results)
        if missing:
            what = "what was asked" if names else "the demo"
            output.say(f"missing for {what}: {', '.join(missing)}")
        elif not names:
            output.say("everything that the demo needs works")
    ctx.exit(127 if missing else 0)


def _print_table(results: list[ProbeResult]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("probe", no_wrap=True)
    table.add_column("works", no_wrap=True)
    table.add_column("what was seen, or why not and what to do", overflow="fold")
    table.add_column("needed for", overflow="fold")
    table.add_column("ms", justify="right", no_wrap=True)
    for result in results:
        seen = Text(result.detail)
        if not result.works and result.hint:
            seen.append(f"\n→ {result.hint}", style="yellow")
        works = Text("yes", style="green") if result.works else Text("no", style="bold red")
        table.add_row(result.name, works, seen, result.needed_for, f"{result.duration_ms:.0f}")
    output.stdout_console().print(table)
