"""``quicferry runs``: list and show what was recorded."""

from __future__ import annotations

from pathlib import Path

import click

from cli.common.output import json_option, print_json, say, stdout_console
from cli.common.runs import runs_option
from quicferry.errors import StoreError


@click.group()
def runs() -> None:
    """List and show the runs that were recorded, and merge their captures."""


@runs.command(name="list")
@runs_option
@json_option
def list_(runs_root: Path | None, as_json: bool) -> None:
    """List all runs, the oldest first."""
    from quicferry.analysis.derive import read_result
    from quicferry.analysis.tables import result_table
    from quicferry.experiment.store import RunStore

    store = RunStore(runs_root)
    results = []
    for path in store.all():
        try:
            results.append(read_result(path))
        except StoreError as error:
            say(f"left out: {error}")
    if as_json:
        for result in results:
            print_json(result)
    elif results:
        stdout_console().print(result_table(results, with_id=True))
    else:
        say(f"no runs in {store.root}: `quicferry run` makes one")


@runs.command()
@click.argument("run_id", metavar="ID")
@click.option("--events", is_flag=True, help="Print the events, one line each.")
@click.option("--packets", is_flag=True, help="Print the client's decrypted packets, one line each.")
@runs_option
@json_option
def show(run_id: str, events: bool, packets: bool, runs_root: Path | None, as_json: bool) -> None:
    """Show one run. ID may be a part of the ID, or a directory.

    The run is read again from its raw data; with --events or --packets, times are milliseconds after
    the server froze.
    """
    from quicferry.analysis import run_text
    from quicferry.analysis.analyse import analyse

    analysis = analyse(_find(run_id, runs_root))
    if events or packets:
        for line in run_text.lines(analysis, events=events, packets=packets):
            if as_json:
                print_json(line)
            else:
                click.echo(run_text.as_text(line))
    elif as_json:
        print_json(analysis.result)
    else:
        console = stdout_console()
        for part in run_text.overview(analysis):
            console.print(part)


@runs.command()
@click.argument("run_id", metavar="ID")
@click.option("--host", default=None, help="Only the capture of this host, e.g. client.")
@runs_option
def merge(run_id: str, host: str | None, runs_root: Path | None) -> None:
    """Put the captures of a run and its secrets into one file that Wireshark opens decrypted.

    Prints the file's path. Wireshark loses its way when it sees a key update from several hosts at
    once: take --host client then.
    """
    from quicferry.capture.merge import merge_captures

    click.echo(merge_captures(_find(run_id, runs_root), host))


def _find(run_id: str, runs_root: Path | None) -> Path:
    """A run by ID or directory. Raises ``StoreError``."""
    from quicferry.experiment.store import RunStore

    direct = Path(run_id)
    return direct if (direct / "manifest.json").is_file() else RunStore(runs_root).find(run_id)
