"""Events on their way to a file or a sink: at once, or those of one turn of the loop together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from quicferry.events import Event, EventLog, read_events


def test_an_event_is_written_when_emit_returns(tmp_path: Path) -> None:
    log = EventLog("edge-1", tmp_path / "events")
    log.emit("server.frozen", epoch=1)
    assert [event.name for event in read_events(tmp_path / "events")] == ["server.frozen"]


def test_events_of_one_turn_are_written_together_and_in_order(tmp_path: Path) -> None:
    due: list[Callable[[], None]] = []
    heard: list[Event] = []
    log = EventLog("edge-1", tmp_path / "events", heard.append, due.append)
    for epoch in (1, 2, 3):
        log.emit("server.frozen", epoch=epoch)
    log.vantage = "edge-2"
    assert heard == [] and not (tmp_path / "events").exists()
    assert len(due) == 1
    due.pop()()
    written = read_events(tmp_path / "events")
    assert written == heard
    assert [(event.vantage, event.detail["epoch"]) for event in written] == [
        ("edge-1", 1), ("edge-1", 2), ("edge-1", 3)
    ]  # fmt: skip
    log.emit("server.resumed")
    assert len(due) == 1, "the next turn has a call of its own"


def test_flush_writes_at_once_and_nothing_twice(tmp_path: Path) -> None:
    due: list[Callable[[], None]] = []
    log = EventLog("edge-1", tmp_path / "events", later=due.append)
    log.emit("server.frozen", epoch=1)
    log.flush()
    due.pop()()
    assert len(read_events(tmp_path / "events")) == 1


def test_an_unknown_name_is_refused_at_once() -> None:
    log = EventLog("edge-1", sink=lambda event: None, later=lambda call: None)
    with pytest.raises(ValueError, match=r"server\.frozn"):
        log.emit("server.frozn")
