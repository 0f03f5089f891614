"""What else is made of the packets that are told: a diagram, qlog."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from quicferry.inspection.inspector import Inspector, Told
from quicferry.inspection.qlog import QlogWriter
from quicferry.inspection.sequence import Diagram, DiagramBuilder, as_svg, as_text
from quicferry.inspection.sources import Source


class Extras:
    """Takes every packet that is wanted; ``written`` are the qlog files."""

    def __init__(
        self, source: Source, inspector: Inspector, stack: ExitStack, *, diagram: bool, qlog: Path | None
    ) -> None:
        """``qlog`` is the folder to write to; ``stack`` closes the files. Raises ``InvalidInput``."""
        self._source = source
        self._inspector = inspector
        self._builder = DiagramBuilder() if diagram else None
        self._writer = QlogWriter(qlog, inspector) if qlog is not None else None
        if self._writer is not None:
            stack.callback(self._writer.close)
        self._places = len(source.captures)

    def take(self, told: Told, wanted: bool) -> None:
        """Add a packet; one that is not wanted may be the other end of one that is."""
        if self._builder is not None:
            self._builder.take(told, wanted=wanted)
        if self._writer is not None and wanted:
            self._writer.take(told, max(self._places, len(self._source.places)))

    @property
    def written(self) -> list[Path]:
        """The qlog files."""
        return self._writer.written if self._writer is not None else []

    def _diagram(self) -> Diagram:
        assert self._builder is not None
        return self._builder.diagram(self._source.events())

    def text(self) -> list[str]:
        """The diagram as lines."""
        return as_text(self._diagram(), self._inspector.first_ns or 0)

    def svg(self, title: str) -> str:
        """The diagram as SVG."""
        return as_svg(self._diagram(), self._inspector.first_ns or 0, title)
