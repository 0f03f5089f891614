"""The run that comes with the project: what is read out of real captures must stay what it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cli import main
from quicferry.analysis.derive import derive
from quicferry.experiment.store import RunStore
from quicferry.paths import CHECKOUT

GOLDEN = CHECKOUT / "runs" / "golden"


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    """A copy without ``derived/``: as it came from the emulated network."""
    (kept,) = RunStore(GOLDEN).all()
    return shutil.copytree(kept, tmp_path / kept.name, ignore=shutil.ignore_patterns("derived"))


def test_its_numbers_are_those_that_were_read_when_it_was_made(golden: Path) -> None:
    result = derive(golden)
    assert (result.outcome, result.strategy, result.engine) == ("succeeded", "proactive-explicit", "handoff")
    assert (result.warnings, result.packets_undecrypted) == ([], 0)
    assert (result.requests_sent, result.requests_lost, result.requests_duplicated) == (115, 0, 0)
    assert result.served_by == "destination"
    assert {
        "service-migration time": result.service_migration_time_ms,
        "the same by the log": result.log_service_migration_time_ms,
        "container downtime": result.container_downtime_ms,
        "connection overhead": result.connection_overhead_ms,
        "round trip": result.rtt_ms,
        "path validated": result.moments_ms["validated"],
    } == {
        "service-migration time": 15.568092,
        "the same by the log": 15.568223,
        "container downtime": 5.432978,
        "connection overhead": 9.788145,
        "round trip": 18.292521,
        "path validated": 15.191858,
    }
    assert (golden / "derived" / "timeline.svg").stat().st_size > 10_000


def test_it_can_be_looked_at_without_root_or_emulation(
    golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.call(["runs", "show", str(golden), "--packets"]) == 0
    assert "PATH_CHALLENGE" in capsys.readouterr().out
