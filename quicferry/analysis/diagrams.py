"""The sequence diagram of a run's first migration, for pages."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from quicferry.errors import CaptureError
from quicferry.inspection.sequence import embedded, migration_svg
from quicferry.record import RunPaths

#: A page of so many runs has their diagrams, too: each takes another two readings of the captures.
MOST_DIAGRAMS = 12
_MOST_CAPTURE_BYTES = 32 << 20


def migration_diagram(run_dir: Path) -> Markup | None:
    """The packets around a run's first migration as an SVG element; None where there is none to draw.

    There is none without captures, in those of more than 32 MiB, and in one that cannot be read: of that the
    run's own warnings tell.
    """
    paths = RunPaths(run_dir)
    size_bytes = sum(path.stat().st_size for path in paths.captures.glob("*.pcapng"))
    if not 0 < size_bytes <= _MOST_CAPTURE_BYTES:
        return None
    try:
        svg = migration_svg(paths.root)
    except CaptureError:
        return None
    return embedded(svg) if svg is not None else None
