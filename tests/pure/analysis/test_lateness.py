"""A client whose machine is too slow: the run says so, and gives no time of a move that looks sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quicferry.analysis.analyse import analyse
from quicferry.analysis.lateness import lagging
from quicferry.events import Event, read_events, write_events
from quicferry.record import LateRecord, Manifest, RunPaths, read_manifest
from quicferry.units import NS_PER_MS
from tests.capture_support import moving_scene, write_run

BEFORE_MS = 1000


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", moving_scene())


@pytest.fixture
def manifest(recorded: Path) -> Manifest:
    return read_manifest(recorded)


def begun(move_ns: int) -> list[Event]:
    before = Event(t_ns=move_ns - BEFORE_MS * NS_PER_MS, vantage="run", name="run.load.started")
    return [before, Event(t_ns=move_ns, vantage="run", name="run.migrate.started")]


def slow(begin_ns: int, slower: float, for_ms: int = 2 * BEFORE_MS) -> list[LateRecord]:
    """The notes of a client that does in each interval only one part in ``slower`` of what is due."""
    late = [(now_ms, now_ms - now_ms / slower) for now_ms in range(50, for_ms, 50)]
    return [
        LateRecord(
            due_ns=begin_ns + round((now_ms - late_ms) * NS_PER_MS), late_ns=round(late_ms * NS_PER_MS)
        )
        for now_ms, late_ms in late
        if late_ms >= 50
    ]


@pytest.mark.parametrize(("slower", "is_lagging"), [(1.0, False), (1.2, False), (1.5, True), (4.0, True)])
def test_a_client_that_cannot_keep_up_is_told_from_one_that_can(
    manifest: Manifest, slower: float, is_lagging: bool
) -> None:
    found = lagging(slow(0, slower), begun(BEFORE_MS * NS_PER_MS), manifest)
    assert (found is not None) == is_lagging
    if found is not None:
        # at the first note after the move began
        assert found.behind_ms >= BEFORE_MS * (1 - 1 / slower) - 1
        assert f"{found.behind_ms:.0f} ms late" in found.words


def test_one_slow_moment_is_not_a_machine_that_is_too_slow(manifest: Manifest) -> None:
    events = begun(BEFORE_MS * NS_PER_MS)
    earlier = [LateRecord(due_ns=100 * NS_PER_MS, late_ns=500 * NS_PER_MS)]
    assert lagging(earlier, events, manifest) is None  # caught up with before the move
    short = [LateRecord(due_ns=(BEFORE_MS - 140) * NS_PER_MS, late_ns=150 * NS_PER_MS)]
    assert lagging(short, events, manifest) is None  # every machine has such moments
    assert lagging(earlier, [], manifest) is None  # a run that did not come to its move


def change(run: Path, *, slower: float, begins: str) -> None:
    """Let the run's move begin at the freeze, and its client be so slow from the load or the move on."""
    paths = RunPaths(run)
    events = read_events(paths.events)
    frozen_ns = next(event.t_ns for event in events if event.name == "server.frozen")
    over = Event(t_ns=frozen_ns + 200 * NS_PER_MS, vantage="run", name="run.migrate.complete")
    write_events(paths.events, [*events, *begun(frozen_ns), over])
    begin_ns = frozen_ns - (BEFORE_MS * NS_PER_MS if begins == "load" else 0)
    late = [[record.due_ns, record.late_ns] for record in slow(begin_ns, slower)]
    paths.client.write_text(json.dumps(json.loads(paths.client.read_text()) | {"late": late}))


def test_a_run_whose_client_was_too_slow_is_overloaded(recorded: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(recorded, tmp_path / "copy"))
    change(run, slower=2.0, begins="load")
    result = analyse(run).result
    assert result.outcome == "overloaded"
    assert "the client fell behind its own schedule already before the move" in (result.error or "")
    assert "the machine is too slow" in (result.hint or "")
    assert result.service_migration_time_ms is None
    assert result.log_service_migration_time_ms is None
    assert result.connection_overhead_ms is None


def test_a_client_that_was_late_in_the_move_marks_the_run(recorded: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(recorded, tmp_path / "copy"))
    change(run, slower=2.0, begins="move")
    result = analyse(run).result
    assert result.outcome == "succeeded"
    assert result.disturbed
    assert any("behind its own schedule in the move" in warning for warning in result.warnings)


def test_a_client_that_kept_up_marks_nothing(recorded: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(recorded, tmp_path / "copy"))
    change(run, slower=1.0, begins="load")
    result = analyse(run).result
    assert (result.outcome, result.service_migration_time_ms) == ("succeeded", 120.0)
    assert not any("schedule" in warning for warning in result.warnings)
