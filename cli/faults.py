"""``quicferry faults``: what can be made to go wrong in a run, and where the server is afterwards."""

from __future__ import annotations

import click
import msgspec

from cli.common.output import json_option, print_json, stdout_console
from quicferry.experiment.fault_kinds import KINDS
from quicferry.experiment.faults import ROWS, TRIGGERS


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """One line of ``faults --json``."""

    fault: str  # as for `quicferry run --fault`
    point: str
    kind: str
    when: str
    how: str
    seconds: float | None  # how long it lasts unless told otherwise; null: for good
    served_by: tuple[str, ...]  # where the server may be afterwards
    why: str


def listed() -> list[Listed]:
    """The whole table."""
    return [
        Listed(
            fault=row.name,
            point=row.point,
            kind=row.kind,
            when=TRIGGERS[row.point].meaning,
            how=KINDS[row.kind].how,
            seconds=KINDS[row.kind].seconds,
            served_by=row.places,
            why=row.why,
        )
        for row in ROWS
    ]


@click.command()
@json_option
def faults(as_json: bool) -> None:
    """List what `quicferry run --fault` can make go wrong, and where the server is afterwards."""
    if as_json:
        for line in listed():
            print_json(line)
        return
    from rich.table import Table

    table = Table("fault", "lasts", "the server is then at", "because", box=None, pad_edge=False)
    for line in listed():
        lasts = "for good" if line.seconds is None else f"{line.seconds:g} s"
        table.add_row(line.fault, lasts, " or ".join(line.served_by), line.why)
    stdout_console().print(table)
