"""``quicferry report``: one page over sweeps and runs, and their figures for papers."""

from __future__ import annotations

from pathlib import Path

import click

from cli.common.output import say
from cli.common.runs import runs_option


@click.command()
@click.argument("words", metavar="[SWEEP|RUN]...", nargs=-1)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("report.html"),
    show_default=True,
    help="The HTML file to write.",
)
@click.option(
    "--figures",
    type=click.Path(file_okay=False, path_type=Path),
    default=None,
    help="Also write the figures here, as PDF, SVG and PNG, and the table as LaTeX and CSV.",
)
@click.option("--title", default="", help="The heading of the page.  [default: the sweep's name]")
@click.option(
    "--mixed", is_flag=True, help="Also runs that cannot be compared: of several machines or versions."
)
@runs_option
def report(
    words: tuple[str, ...],
    output: Path,
    figures: Path | None,
    title: str,
    mixed: bool,
    runs_root: Path | None,
) -> None:
    """Write one self-contained HTML page over sweeps or runs, with figures that can be zoomed.

    SWEEP and RUN are names or directories; without any, all single runs are taken. Warm-ups of a sweep are
    left out. The page needs no network.
    """
    from quicferry.analysis.diagrams import MOST_DIAGRAMS, migration_diagram
    from quicferry.analysis.page.write import save_figures, write_page
    from session.selection import select

    rows = select(words, runs_root, mixed=mixed)
    # of many runs the timelines must do: a diagram takes another two readings of the captures
    diagram = migration_diagram if len(rows) <= MOST_DIAGRAMS else None
    write_page(rows, output, title=title, diagram=diagram)
    say(f"report: {output}")
    if figures is not None:
        say("figures: " + ", ".join(str(path) for path in save_figures(rows, figures)))
