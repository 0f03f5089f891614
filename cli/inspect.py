"""``quicferry inspect``: tell a capture packet by packet."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.common.output import json_option, say, stderr_console, stdout_console
from cli.common.runs import runs_option
from quicferry.errors import InvalidInput

if TYPE_CHECKING:
    from quicferry.inspection.choices import Choice
    from quicferry.inspection.extras import Extras
    from quicferry.inspection.inspector import Inspector
    from quicferry.inspection.sources import Source

_LINES_AT_ONCE = 512


@click.command()
@click.argument("what", metavar="RUN|FILE")
@click.option(
    "--keys",
    "key_files",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="A key log (SSLKEYLOGFILE) with the secrets of its connections; may be given several times.  "
    "[default: the run's own, and what the file embeds]",
)
@click.option("--conn", "connections", multiple=True, type=click.IntRange(0), help="Only this connection.")
@click.option("--path", "paths", multiple=True, metavar="N|ADDRESS", help="Only this path, or this address.")
@click.option(
    "--frame", "frames", multiple=True, metavar="NAME", help="Only packets with such a frame, e.g. SM_."
)
@click.option(
    "--around", type=click.IntRange(1), metavar="MIGRATION", help="Only what is around this migration."
)
@click.option(
    "--margin-ms",
    type=click.FloatRange(0),
    default=50.0,
    show_default=True,
    help="How far around it reaches.",
)
@click.option("--summary", is_flag=True, help="Only connections, paths, migrations and gaps, no packets.")
@click.option("--sequence", is_flag=True, help="Draw a sequence diagram instead of the list of packets.")
@click.option(
    "--svg",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the sequence diagram to this file as well.",
)
@click.option(
    "--qlog",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write qlog (.sqlog) into this folder, a file per connection and endpoint.",
)
@runs_option
@json_option
def inspect(
    what: str,
    key_files: tuple[Path, ...],
    connections: tuple[int, ...],
    paths: tuple[str, ...],
    frames: tuple[str, ...],
    around: int | None,
    margin_ms: float,
    summary: bool,
    sequence: bool,
    svg: Path | None,
    qlog: Path | None,
    runs_root: Path | None,
    as_json: bool,
) -> None:
    """Tell a capture packet by packet: connections, paths, migrations, frames, gaps.

    RUN is a run's ID, a part of it, or its directory; FILE is a pcap or pcapng file of whatever origin. Read
    are QUIC (v1, v2, the drafts 22 to 34, mvfst) and TCP with MPTCP and TLS, opened with the secrets that are
    in the run, in the file or in --keys. Times are seconds after the first packet.
    """
    from quicferry.inspection.choices import Choice
    from quicferry.inspection.extras import Extras
    from quicferry.inspection.inspector import Inspector
    from quicferry.inspection.sources import Source

    source = Source(_find(what, runs_root), key_files)
    choice = Choice(frozenset(connections), frozenset(paths), tuple(name.upper() for name in frames))
    if around is not None:
        choice = choice._replace(window_ns=_window(source, around, margin_ms))
    inspector = Inspector(source.keylog)
    with contextlib.ExitStack() as stack:
        extras = Extras(source, inspector, stack, diagram=sequence or svg is not None, qlog=qlog)
        _tell(source, inspector, choice, extras, as_json=as_json, packets=not (summary or sequence))
    if sequence:
        for line in extras.text():
            click.echo(line)
    if svg is not None:
        _write(svg, extras.svg(what))
    for path in extras.written:
        say(f"qlog: {path}")
    if not sequence or as_json:
        _close(inspector, source, as_json=as_json)


def _window(source: Source, number: int, margin_ms: float) -> tuple[int, int]:
    """The stretch of time of a migration, which takes a reading of its own to know."""
    inspector = _read(source)
    for story in inspector.stories.values():
        for migration in story.migrations:
            if migration.number == number:
                margin_ns = round(margin_ms * 1e6)
                return migration.begin_ns - margin_ns, migration.end_ns + margin_ns
    raise InvalidInput(
        f"there is no migration {number}: the capture has {inspector.migrations or 'none'}",
        hint="`quicferry inspect --summary` lists them",
    )


def _read(source: Source) -> Inspector:
    from quicferry.inspection.inspector import Inspector

    inspector = Inspector(source.keylog)
    with _progress(source) as advance:
        for number, sighting in enumerate(source.sightings()):
            inspector.tell(sighting)
            if not number & 0x3FF:
                advance()
    return inspector


def _tell(
    source: Source, inspector: Inspector, choice: Choice, extras: Extras, *, as_json: bool, packets: bool
) -> None:
    from quicferry.inspection.telling import telling

    # what is made for a packet is gone with its line, and there are no circles in it: looking for some after
    # every few hundred objects takes a tenth of the time
    gc.set_threshold(100_000)
    lines: list[bytes] = []
    out = sys.stdout.buffer
    # a bar and a list on one terminal would overwrite each other
    with _progress(source, hidden=packets and sys.stdout.isatty()) as advance:
        told = telling(source, inspector, choice, as_json=as_json, packets=packets, also=extras.take)
        for number, line in enumerate(told):
            if line is not None:
                lines.append(line)
            if not number & (_LINES_AT_ONCE - 1):
                out.write(b"".join(lines))
                lines.clear()
                advance()
    out.write(b"".join(lines))
    out.flush()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"cannot write {path}: {error.strerror}", hint="give another file") from error
    say(f"diagram: {path}")


def _close(inspector: Inspector, source: Source, *, as_json: bool) -> None:
    """What there is to say once everything was read."""
    from quicferry.inspection.overview import overview
    from quicferry.inspection.telling import closing

    gaps = source.gaps() + inspector.gaps()
    if as_json:
        for line in closing(inspector, gaps):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        return
    console = stdout_console()
    for part in overview(inspector, gaps):
        console.print(part)


@contextlib.contextmanager
def _progress(source: Source, *, hidden: bool = False) -> Iterator[Callable[[], None]]:
    console = stderr_console()
    if hidden or not console.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(bar_width=32), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=source.size_bytes)
        yield lambda: bar.update(task, completed=source.read_bytes)


def _find(what: str, runs_root: Path | None) -> Path:
    """A file, a run's directory, or a run by its ID. Raises ``StoreError``."""
    from quicferry.experiment.store import RunStore

    direct = Path(what)
    if direct.is_file() or (direct.is_dir() and not (direct / "manifest.json").is_file()):
        return direct
    if direct.is_dir() or "/" in what or direct.suffix:
        return direct
    return RunStore(runs_root).find(what)
