"""Whole runs in which the orchestrator, the server's host or a client decides on the move."""

from __future__ import annotations

from pathlib import Path

import pytest

from quicferry.events import read_events
from quicferry.record import RunPaths
from tests.e2e.experiment.test_run import assert_sound, run


@pytest.mark.needs("mininet", "tcpdump", "tshark")
@pytest.mark.parametrize(
    ("trigger", "strategy"),  # none of them as --trigger auto has it
    [("client", "symmetric"), ("server", "proactive-explicit"), ("orchestrator", "symmetric")],
)
def test_who_decides(tmp_path: Path, trigger: str, strategy: str) -> None:
    result = run(tmp_path, "--strategy", strategy, "--trigger", trigger)
    assert_sound(result)
    events = read_events(RunPaths(Path(result["run_dir"])).events)
    ordered = [event.vantage for event in events if event.name == "migration.ordered"]
    assert ordered == (["orch"] if trigger == "orchestrator" else ["edge-1"])
    asked = [event.name for event in events if ".move." in event.name]
    told = ["client.move.requested", "server.move.requested", "server.move.answered", "client.move.answered"]
    assert sorted(asked) == (sorted(told) if trigger == "client" else [])


@pytest.mark.needs("mininet", "tcpdump", "tshark", "criu")
def test_a_process_that_a_client_has_asked_to_move_comes_back_when_it_asks_again(tmp_path: Path) -> None:
    result = run(tmp_path, "--trigger", "client", "--engine", "criu-cold", "--moves", "2")
    assert_sound(result)
    events = read_events(RunPaths(Path(result["run_dir"])).events)
    replies = [event.detail["reply"] for event in events if event.name == "client.move.answered"]
    assert replies == ["accepted", "accepted"]
