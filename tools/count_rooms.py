"""Counts the rooms of the house: what a folder holds, who imports whom in it, and whether that goes round.

    tools/count_rooms.py [FOLDER …]       e.g. quicferry/migration apps

A room is an entry of the folder: a module, or a folder with all that is in it. An arrow is drawn from one
room to another when something in the first imports something in the second; a circle is a set of rooms
that import each other. Lines are those of the modules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import grimp
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = tuple(sorted(p.parent.name for p in ROOT.glob("*/__init__.py") if p.parent.name != "tests"))
FOLDERS = (
    *(name for name in PACKAGES if name != "quicferry"),
    *sorted(f"quicferry/{p.parent.name}" for p in ROOT.glob("quicferry/*/__init__.py")),
)


class Count(NamedTuple):
    """What was counted in one folder."""

    rooms: int
    arrows: int
    circles: list[set[str]]
    lines: int


def count(folder: str, arrows: Iterable[tuple[str, str]]) -> Count:
    """Count one folder; ``arrows`` are all imports among the modules, importer first."""
    base = ROOT / folder
    dotted = folder.replace("/", ".") + "."
    rooms = [
        entry
        for entry in base.iterdir()
        if (entry.suffix == ".py" and entry.name != "__init__.py") or (entry / "__init__.py").is_file()
    ]
    inside = {
        (a.removeprefix(dotted).partition(".")[0], b.removeprefix(dotted).partition(".")[0])
        for a, b in arrows
        if a.startswith(dotted) and b.startswith(dotted)
    }
    drawn = {(a, b) for a, b in inside if a != b}
    lines = sum(len(path.read_text().splitlines()) for path in base.rglob("*.py"))
    return Count(len(rooms), len(drawn), circles(drawn), lines)


def circles(arrows: Iterable[tuple[str, str]]) -> list[set[str]]:
    """The sets of rooms that can reach each other along the arrows, of more than one room."""
    after: dict[str, set[str]] = {}
    for a, b in arrows:
        after.setdefault(a, set()).add(b)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            for room in after.get(todo.pop(), set()) - seen:
                seen.add(room)
                todo.append(room)
        return seen

    reach = {room: reached(room) for room in after}
    found: list[set[str]] = []
    for room, others in reach.items():
        ring = {other for other in others if room in reach.get(other, set())} | {room}
        if len(ring) > 1 and ring not in found:
            found.append(ring)
    return found


def main() -> int:
    """Print the table; status 1 when there is a circle anywhere."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*PACKAGES)
    arrows = [(a, b) for a in graph.modules for b in graph.find_modules_directly_imported_by(a)]
    table = Table("folder", "rooms", "arrows", "circles", "lines", box=None)
    bad = 0
    for folder in sys.argv[1:] or FOLDERS:
        counted = count(folder, arrows)
        bad += len(counted.circles)
        rings = "; ".join(", ".join(sorted(ring)) for ring in counted.circles) or "0"
        table.add_row(folder, str(counted.rooms), str(counted.arrows), rings, str(counted.lines))
    Console(width=110).print(table)
    modules = circles(arrows)
    print(f"{len(graph.modules)} modules, {len(arrows)} imports, {len(modules)} circles among modules")
    return 1 if bad or modules else 0


if __name__ == "__main__":
    sys.exit(main())
