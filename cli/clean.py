"""``quicferry clean``: end what runs of dead tools left behind."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from cli.common import output
from quicferry.emulation.sandbox import cgroups, ownership
from quicferry.experiment.store import RunStore


@click.command()
@click.option("--partial", is_flag=True, help="Also remove the directories of runs that did not get done.")
@click.option("--dry-run", is_flag=True, help="Only tell what would be done.")
@click.option(
    "--runs",
    "runs_dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where the run directories are.  [default: runs/ in the checkout, or $QUICFERRY_RUNS]",
)
@output.json_option
@click.pass_context
def clean(ctx: click.Context, partial: bool, dry_run: bool, runs_dir: Path | None, as_json: bool) -> None:
    """Remove what interrupted runs left behind.

    A run's processes, interfaces and mounts go with its private root, so there is hardly ever
    something to end. Processes are ended by their process id, and only those that carry the tag of a
    run whose tool is gone. The same holds for control groups, by their names. Directories of complete
    runs are never touched.
    """
    report = ownership.clean(RunStore(runs_dir).root, partial=partial, dry_run=dry_run)
    groups, stuck = cgroups.remove_orphans(dry_run=dry_run)
    report = msgspec.structs.replace(
        report,
        groups=tuple(groups),
        failed=(*report.failed, *(f"the control group {name} could not be removed" for name in stuck)),
    )
    if as_json:
        output.print_json(report)
    else:
        done, removed = ("would end", "would remove") if dry_run else ("ended", "removed")
        for process in report.ended:
            click.echo(f"{done} process {process.pid} of run {process.run_id}: {process.command}")
        for group in report.groups:
            click.echo(f"{removed} the control group {group}")
        for directory in report.removed:
            click.echo(f"{removed} {directory}")
        for directory in report.kept:
            why = "the run lives, or did a moment ago" if partial else "--partial removes it"
            click.echo(f"left {directory} ({why})")
        for run in report.living_runs:
            click.echo(f"run {run} is going on: left alone")
        for failure in report.failed:
            output.say_error(failure)
        if not (report.ended or report.groups or report.removed or report.kept or report.failed):
            click.echo("nothing to clean")
    ctx.exit(1 if report.failed else 0)
