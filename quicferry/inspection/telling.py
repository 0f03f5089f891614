"""Makes the lines of a telling: packets and events in the order of time, then what is known at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from quicferry.capture.files.source import Gap
from quicferry.events import Event
from quicferry.inspection import lines
from quicferry.inspection.choices import Choice
from quicferry.inspection.inspector import Inspector, Told
from quicferry.inspection.sources import Source

_encode = msgspec.json.Encoder().encode


def telling(
    source: Source,
    inspector: Inspector,
    choice: Choice,
    *,
    as_json: bool,
    packets: bool,
    also: Callable[[Told, bool], None] | None = None,
) -> Iterator[bytes | None]:
    """A line for each packet that is wanted, with its end of line, None for each other one.

    The events of a run come between its packets, unless only some packets are wanted that have nothing to do
    with time. ``also`` is given each packet, and whether it is wanted.
    """
    to_line = _json_line if as_json else _text_line
    to_event = _json_event if as_json else _text_event
    wants = choice.wants if choice != Choice() else None
    with_events = packets and not (choice.connections or choice.paths or choice.frames)
    events = source.events() if with_events else []
    place = 0
    tell = inspector.tell
    for sighting in source.sightings():
        told = tell(sighting)
        zero = inspector.first_ns or 0
        while place < len(events) and events[place].t_ns <= sighting.datagram.t_ns:
            yield _if_wanted(events[place], choice, to_event, zero)
            place += 1
        wanted = told is not None and (wants is None or wants(told))
        if told is not None and also is not None:
            also(told, wanted)
        if told is None or not wanted or not packets:
            yield None
        else:
            yield to_line(told, zero)
    for event in events[place:]:
        yield _if_wanted(event, choice, to_event, inspector.first_ns or 0)


def _if_wanted(
    event: Event, choice: Choice, to_event: Callable[[Event, int], bytes], zero_ns: int
) -> bytes | None:
    window = choice.window_ns
    if window is not None and not window[0] <= event.t_ns <= window[1]:
        return None
    return to_event(event, zero_ns)


def _json_line(told: Told, zero_ns: int) -> bytes:
    return _encode(lines.packet_object(told, zero_ns)) + b"\n"


def _text_line(told: Told, zero_ns: int) -> bytes:
    return lines.packet_text(told, zero_ns).encode() + b"\n"


def _json_event(event: Event, zero_ns: int) -> bytes:
    return _encode(lines.event_object(event, zero_ns)) + b"\n"


def _text_event(event: Event, zero_ns: int) -> bytes:
    return lines.event_text(event, zero_ns).encode() + b"\n"


def closing(inspector: Inspector, gaps: list[Gap]) -> Iterator[bytes]:
    """The JSON lines at the end: connections, migrations, gaps, and a summary."""
    zero = inspector.first_ns or 0
    stories = list(inspector.stories.values())
    found = [lines.connection_object(story, inspector, zero) for story in stories]
    found += [lines.tcp_connection_object(story, zero) for story in inspector.tcp_stories]
    found += [lines.migration_object(each, zero) for story in stories for each in story.migrations]
    found += [lines.gap_object(gap) for gap in gaps]
    found.append(
        {
            "kind": "summary",
            "packets_told": inspector.told,
            "other_datagrams": inspector.other_datagrams,
            "connections": len(stories),
            "tcp_connections": len(inspector.tcp_stories),
            "migrations": inspector.migrations,
            "packets": sum(story.packets for story in stories),
            "packets_opened": sum(story.opened for story in stories),
            "first_ns": inspector.first_ns,
            "last_ns": inspector.last_ns or None,
        }
    )
    for each in found:
        yield _encode(each) + b"\n"
