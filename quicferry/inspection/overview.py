"""The summary of a capture for the terminal: connections, paths, migrations, and what was not opened."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from quicferry.capture.files.source import Gap
from quicferry.capture.quic.packets import Direction
from quicferry.inspection.inspector import Inspector
from quicferry.inspection.lines import SUITES, seconds


def overview(inspector: Inspector, gaps: list[Gap]) -> Iterator[Table | Text]:
    """Tables and lines, ready to print."""
    zero = inspector.first_ns or 0
    stories = list(inspector.stories.values())
    if stories:
        yield _connections(inspector, zero)
        yield _paths(inspector, zero)
    if inspector.tcp_stories:
        yield _tcp(inspector)
    if inspector.migrations:
        yield _migrations(inspector, zero)
    if not stories and not inspector.tcp_stories:
        yield Text("no QUIC and no TCP in it")
    opened = sum(story.opened for story in stories)
    every = sum(story.packets - story.unprotected for story in stories)
    if every:
        yield Text(
            f"{opened} of {every} protected QUIC packets were opened",
            style="green" if opened == every else "yellow",
        )
    for story in stories:
        for why, count in story.why.items():
            yield Text(f"not opened: {count} packets of connection {story.index}: {why}", style="yellow")
    for gap in gaps:
        first = f", the first is number {gap.at}" if gap.at else ""
        times = f"{gap.packets} x " if gap.packets > 1 else ""
        yield Text(f"gap: {times}{gap.reason}{first}", style="yellow")


def _table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", border_style="dim")
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table


def _connections(inspector: Inspector, zero: int) -> Table:
    numbers = ("from s", "to s", "packets", "streams", "to server", "to client")
    table = _table(
        "QUIC connections", "", "version", "client", "server", "cipher", *numbers, "closed", right=numbers
    )
    for story in inspector.stories.values():
        _, suite = inspector.secrets_of(story.index)
        table.add_row(
            f"c{story.index}",
            story.version_name,
            story.client,
            story.server,
            SUITES.get(suite or 0, "?").removeprefix("TLS_"),
            f"{seconds(story.first_ns, zero):.3f}",
            f"{seconds(story.last_ns, zero):.3f}",
            str(story.packets),
            str(story.stream_count),
            str(story.new_bytes[Direction.TO_SERVER]),
            str(story.new_bytes[Direction.TO_CLIENT]),
            story.closed,
        )
    return table


def _paths(inspector: Inspector, zero: int) -> Table:
    numbers = ("from s", "to s", "validated s", "packets up", "down", "bytes up", "bytes down")
    table = _table("paths", "", "client", "server", *numbers, right=numbers)
    for story in inspector.stories.values():
        for path in story.paths.values():
            up, down = Direction.TO_SERVER, Direction.TO_CLIENT
            table.add_row(
                f"c{story.index} p{path.number}",
                path.ends.client,
                path.ends.server,
                f"{seconds(path.first_ns, zero):.3f}",
                f"{seconds(path.last_ns, zero):.3f}",
                "" if path.validated_ns is None else f"{seconds(path.validated_ns, zero):.3f}",
                str(path.packets[up]),
                str(path.packets[down]),
                str(path.bytes[up]),
                str(path.bytes[down]),
            )
    return table


def _migrations(inspector: Inspector, zero: int) -> Table:
    numbers = ("announced s", "probed s", "validated s", "switched s", "complete s", "data gap ms")
    table = _table("migrations", "", "of", "who moved", "path", *numbers, right=numbers)
    for story in inspector.stories.values():
        for each in story.migrations:
            stamps = (
                each.announced_ns,
                each.probed_ns,
                each.validated_ns,
                each.switched_ns,
                each.complete_ns,
            )
            table.add_row(
                str(each.number),
                f"c{story.index}",
                each.who,
                f"p{each.old.number} to p{each.new.number}" + (" and back" if each.reverted else ""),
                *("" if stamp is None else f"{seconds(stamp, zero):.6f}" for stamp in stamps),
                "" if each.gap_ms is None else f"{each.gap_ms:.3f}",
            )
    return table


def _tcp(inspector: Inspector) -> Table:
    numbers = ("segments", "to server", "to client", "again")
    table = _table(
        "TCP connections", "", "protocol", "client", "server", *numbers, "handshake", "closed", right=numbers
    )
    for story in inspector.tcp_stories:
        master = "" if story.master in (None, story.index) else f" of t{story.master}"
        table.add_row(
            f"t{story.index}",
            story.protocol + master,
            story.client,
            story.server,
            str(story.segments),
            str(story.bytes[True]),
            str(story.bytes[False]),
            str(story.retransmissions),
            "yes" if story.handshake else "not in the capture",
            story.closed,
        )
    return table
