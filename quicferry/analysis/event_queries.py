"""Finds events of a run by their name."""

from __future__ import annotations

from collections.abc import Iterable

from quicferry.events import Event


def first_event(events: Iterable[Event], name: str) -> Event | None:
    """The earliest event of that name; None without one."""
    return min((event for event in events if event.name == name), key=lambda e: e.t_ns, default=None)


def last_event(events: Iterable[Event], name: str, until_ns: int | None = None) -> Event | None:
    """The latest event of that name, at ``until_ns`` at the latest; None without one."""
    found = (e for e in events if e.name == name and (until_ns is None or e.t_ns <= until_ns))
    return max(found, key=lambda e: e.t_ns, default=None)
