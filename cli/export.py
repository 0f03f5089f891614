"""``quicferry export``: sweeps and runs as one table for other programs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click

from cli.common.output import say
from cli.common.runs import runs_option
from quicferry.errors import StoreError

FORMATS = ("csv", "parquet", "json", "latex")


@click.command()
@click.argument("form", metavar="FORMAT", type=click.Choice(FORMATS))
@click.argument("words", metavar="[SWEEP|RUN]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="The file to write.  [default: stdout]",
)
@click.option(
    "--mixed", is_flag=True, help="Also runs that cannot be compared: of several machines or versions."
)
@runs_option
def export(
    form: str, words: tuple[str, ...], output: Path | None, mixed: bool, runs_root: Path | None
) -> None:
    """Write sweeps or runs as one table: CSV, Parquet, JSON or LaTeX.

    CSV, Parquet and JSON have a row for each run and the columns of docs/columns.md, LaTeX a row for each
    combination with medians. SWEEP and RUN are names or directories; without any, all single runs are taken.
    Warm-ups of a sweep are left out.
    """
    from quicferry.analysis import export as exporting
    from session.selection import select

    rows = select(words, runs_root, mixed=mixed)
    write = exporting.FORMATS[form]
    try:
        if output is not None:
            write(rows, output)
            say(f"{len(rows)} runs: {output}")
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "table")
            write(rows, path)
            sys.stdout.buffer.write(path.read_bytes())
            sys.stdout.buffer.flush()
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise StoreError(
            f"cannot write {output or 'the table'}: {error.strerror or error}",
            hint="choose another file with -o",
        ) from error
