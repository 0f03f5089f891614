"""Draws a sequence diagram: a line per host, an arrow per packet, from where it left to where it came.

Of a run every packet is seen twice, where it was sent and where it arrived: its arrow has both times, and one
that never arrived ends in a cross. Of a capture of one place both ends are at the same time. As text for the
terminal, and as SVG.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from markupsafe import Markup

from quicferry.events import Event
from quicferry.inspection.inspector import QUIC, Told, tell_all
from quicferry.inspection.lines import frame_text
from quicferry.inspection.sources import Source
from quicferry.inspection.stories import Migration
from quicferry.model import host_of

MOST_ARROWS = 400
_COLUMN_PX, _ROW_PX, _LEFT_PX, _TOP_PX = 260, 15, 90, 44
_COLUMN_CHARACTERS = 26
_TELLING = (
    "SM_",
    "PATH_",
    "ALTERNATIVE",
    "CONNECTION_CLOSE",
    "HANDSHAKE_DONE",
    "CRYPTO",
    "RETIRE",
    "NEW_CONNECTION",
)


_REMEMBERED = 16_384
_Key = tuple[Any, ...]


class Arrow(NamedTuple):
    """One packet. Stamps are nanoseconds since the epoch."""

    sent_ns: int
    arrived_ns: int | None  # None: never, as far as the captures tell
    source: str  # a host's address without its port
    destination: str
    words: str
    kind: str  # move, path, handshake, data, unopened: what it is about, for its colour


class Diagram(NamedTuple):
    """What is drawn."""

    hosts: tuple[str, ...]
    names: dict[str, str]  # host -> how its vantage point is called
    arrows: list[Arrow]
    events: list[Event]
    left_out: int


class DiagramBuilder:
    """Collects packets for a diagram; from ``MOST_ARROWS`` on they are only counted."""

    def __init__(self) -> None:
        self._arrows: dict[_Key, Arrow] = {}
        self._earlier: dict[_Key, int] = {}  # packets that are not drawn, and when they were seen first
        self._hosts: dict[str, None] = {}
        self._names: dict[str, str] = {}
        self._places: set[str] = set()
        self._left_out = 0

    def take(self, told: Told, *, wanted: bool) -> None:
        """Add a packet of QUIC; of one that is not wanted only where and when it was."""
        if told.protocol != QUIC or told.datagram.quoted:
            return
        datagram = told.datagram
        source, destination = host_of(datagram.source), host_of(datagram.destination)
        self._places.add(told.vantage)
        self._names.setdefault(source, told.vantage)  # packets are seen first where they are sent
        first = told.packets[0]
        key: _Key = (datagram.source, datagram.destination, datagram.payload[-24:])
        if first.packet_number is not None:
            key = (*key[:2], told.connection, first.space, first.generation, first.packet_number)
        known = self._arrows.get(key)
        if known is not None:
            if known.arrived_ns is None and not first.repeated:
                self._arrows[key] = known._replace(arrived_ns=datagram.t_ns)
            return
        sent_ns = self._earlier.pop(key, None)
        if not wanted:
            if sent_ns is None:
                self._earlier[key] = datagram.t_ns
                if len(self._earlier) > _REMEMBERED:
                    del self._earlier[next(iter(self._earlier))]
            return
        if len(self._arrows) >= MOST_ARROWS:
            self._left_out += 1
            return
        self._hosts.update(dict.fromkeys((source, destination)))
        words = " | ".join(_words(packet.frames, packet.why) for packet in told.packets)
        begin, end = (datagram.t_ns, None) if sent_ns is None else (sent_ns, datagram.t_ns)
        self._arrows[key] = Arrow(begin, end, source, destination, words, _kind(told))

    def diagram(self, events: list[Event]) -> Diagram:
        """What was collected, with the events of that time."""
        arrows = list(self._arrows.values())
        # where nobody captures at the other end, nobody could have seen it arrive
        alone = len(self._places) < 2
        arrows = [
            arrow._replace(arrived_ns=arrow.sent_ns)
            if arrow.arrived_ns is None and (alone or arrow.destination not in self._names)
            else arrow
            for arrow in arrows
        ]
        arrows.sort(key=lambda arrow: arrow.sent_ns)
        begin, end = _span(arrows)
        kept = [event for event in events if begin <= event.t_ns <= end]
        return Diagram(tuple(self._hosts), self._names, arrows, kept, self._left_out)


def _span(arrows: list[Arrow]) -> tuple[int, int]:
    stamps = [stamp for arrow in arrows for stamp in (arrow.sent_ns, arrow.arrived_ns) if stamp is not None]
    return (min(stamps), max(stamps)) if stamps else (0, 0)


def _words(frames: Any, why: str) -> str:
    if frames is None:
        return f"({why})" if why else "Retry or version negotiation"
    telling = [frame for frame in frames if frame.name.startswith(_TELLING)]
    shown = telling or frames
    words = [frame_text(frame) if frame.name != "NEW_CONNECTION_ID" else frame.name for frame in shown[:3]]
    return " ".join([*words, "…"] if len(shown) > 3 else words)


def _kind(told: Told) -> str:
    names = [frame.name for packet in told.packets for frame in packet.frames or ()]
    if not names:
        return "unopened"
    if any(name.startswith(("SM_", "ALTERNATIVE")) for name in names):
        return "move"
    if any(name.startswith("PATH_") for name in names):
        return "path"
    return "handshake" if "CRYPTO" in names or "HANDSHAKE_DONE" in names else "data"


def as_text(diagram: Diagram, zero_ns: int) -> list[str]:
    """The diagram as lines: time, a column per host, what the packet carries and how long it took."""
    if not diagram.arrows:
        return ["no QUIC packets to draw"]
    at = {host: _COLUMN_CHARACTERS * place for place, host in enumerate(diagram.hosts)}
    width = max(at.values()) + 1
    heads = [f"{diagram.names.get(host) or ''} {host}".strip() for host in diagram.hosts]
    lines = [" " * 15 + "".join(head[: _COLUMN_CHARACTERS - 1].ljust(_COLUMN_CHARACTERS) for head in heads)]
    rows: list[tuple[int, str]] = []
    for arrow in diagram.arrows:
        cells = ["|" if place in at.values() else " " for place in range(width)]
        begin, end = at[arrow.source], at[arrow.destination]
        step = 1 if end > begin else -1
        for place in range(begin + step, end, step):
            cells[place] = "-"
        if arrow.arrived_ns is None:
            cells[end - step] = "X"
        elif begin != end:
            cells[end - step] = ">" if step > 0 else "<"
        took = "lost" if arrow.arrived_ns is None else f"+{(arrow.arrived_ns - arrow.sent_ns) / 1e6:.1f} ms"
        took = "" if arrow.arrived_ns == arrow.sent_ns else f"  {took}"
        rows.append((arrow.sent_ns, f"{''.join(cells)}  {arrow.words}{took}"))
    rows += [(event.t_ns, f"{' ' * width}  -- {event.vantage}: {event.name}") for event in diagram.events]
    for t_ns, row in sorted(rows, key=lambda each: each[0]):
        lines.append(f"{(t_ns - zero_ns) / 1e9:>13.6f}  {row}".rstrip())
    if diagram.left_out:
        lines.append(f"{diagram.left_out} more packets are not drawn: choose fewer, e.g. with --around")
    return lines


def as_svg(diagram: Diagram, zero_ns: int, title: str = "") -> str:
    """The diagram as SVG. Moments that are close are drawn apart: the axis is in order, not to scale."""
    stamps = {
        stamp for arrow in diagram.arrows for stamp in (arrow.sent_ns, arrow.arrived_ns) if stamp is not None
    }
    stamps |= {event.t_ns for event in diagram.events}
    y_of = {stamp: _TOP_PX + _ROW_PX * (row + 1) for row, stamp in enumerate(sorted(stamps))}
    x_of = {host: _LEFT_PX + _COLUMN_PX * place + 20 for place, host in enumerate(diagram.hosts)}
    by_name = {name: host for host, name in diagram.names.items() if name}
    arrows = []
    for arrow in diagram.arrows:
        x1, x2 = x_of[arrow.source], x_of[arrow.destination]
        y1 = y_of[arrow.sent_ns]
        lost = arrow.arrived_ns is None
        y2 = y1 + _ROW_PX if arrow.arrived_ns is None else y_of[arrow.arrived_ns]
        if lost:
            x2 = (x1 + x2) // 2
        ends = {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "lost": lost, "kind": arrow.kind}
        label = {"words": arrow.words[:90], "x": min(x1, x2) + 8, "y": (y1 + y2) / 2 - 3}
        arrows.append(ends | label)
    import jinja2  # takes as long to load as thousands of packets to read

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("quicferry.inspection"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page: str = environment.get_template("sequence.svg.j2").render(
        title=title,
        width=_LEFT_PX + _COLUMN_PX * max(1, len(diagram.hosts)) + 60,
        height=_TOP_PX + _ROW_PX * (len(y_of) + 3),
        top=_TOP_PX,
        hosts=[
            {"x": x, "name": diagram.names.get(host) or "", "address": host} for host, x in x_of.items()
        ],
        arrows=arrows,
        events=[
            {
                "x": x_of.get(by_name.get(event.vantage, ""), _LEFT_PX - 70),
                "y": y_of[event.t_ns],
                "name": event.name,
            }
            for event in diagram.events
        ],
        times=[
            {"y": y_of[stamp], "text": f"{(stamp - zero_ns) / 1e6:.2f}"} for stamp in sorted(y_of)
        ],
        left_out=diagram.left_out,
    )  # fmt: skip
    return page


def embedded(svg: str) -> Markup:
    """A diagram for a page of HTML."""
    # our own drawing, whose every word the template has escaped
    return Markup(svg)  # noqa: S704 - see above


def migration_svg(run_dir: Path, margin_ms: float = 5.0) -> str | None:
    """The diagram around a run's first migration, as SVG; None when its capture shows none.

    Raises ``CaptureError`` when the captures cannot be read.
    """
    source = Source(run_dir)
    migration: Migration | None = None
    for _, told in tell_all(source):
        migration = migration or told.migration
    if migration is None:
        return None
    # known now that it is over
    begin_ns, end_ns = migration.begin_ns, migration.end_ns
    margin_ns = round(margin_ms * 1e6)
    builder = DiagramBuilder()
    zero_ns = 0
    for inspector, told in tell_all(source):
        zero_ns = inspector.first_ns or 0
        inside = begin_ns - margin_ns <= told.datagram.t_ns <= end_ns + margin_ns
        builder.take(told, wanted=inside)
    return as_svg(builder.diagram(source.events()), zero_ns, "the first migration, packet by packet")
