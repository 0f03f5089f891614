"""What the clients got: a path that carried too little, requests that were lost, files that are damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cli import main
from quicferry.analysis.analyse import analyse
from quicferry.analysis.service import overload
from quicferry.analysis.tables import comparison_table
from quicferry.errors import EXIT_CODES, last_line
from quicferry.events import Event, read_events, write_events
from quicferry.record import Manifest, RequestRecord, RunPaths, RunResult, read_manifest, write_json
from quicferry.units import NS_PER_MS
from session import session as performing
from session.outcomes import SomeFailed, raise_for
from tests.capture_support import moving_scene, write_run

MOVE_MS = 1000


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "one", moving_scene())


@pytest.fixture
def run_copy(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "copy"))


@pytest.fixture
def manifest(recorded: Path) -> Manifest:
    return read_manifest(recorded)


def began() -> list[Event]:
    return [Event(t_ns=MOVE_MS * NS_PER_MS, vantage="run", name="run.migrate.started")]


def requests(waits_ms: list[float | None], interval_ms: float = 10) -> list[RequestRecord]:
    """One request after another, each answered after so long."""
    return [
        RequestRecord(
            number=number,
            stream=4 * number,
            sent_ns=round(number * interval_ms * NS_PER_MS),
            received_ns=None if wait is None else round((number * interval_ms + wait) * NS_PER_MS),
            server=None,
        )
        for number, wait in enumerate(waits_ms, start=1)
    ]


@pytest.mark.parametrize(
    ("waits_ms", "words"),
    [
        ([20.0] * 100, None),
        # a tenth of what is offered is carried: waits grow, and nothing stops them
        ([20 + 90.0 * number for number in range(100)], "had no answer"),
        ([20.0, *[None] * 99], "had no answer"),
        # a slow start that catches up: what came late had come before the move
        ([20 + max(0.0, 300 - 6.0 * number) for number in range(100)], None),
        # one stall of 150 ms right before the move: not so long that the path is too small
        ([20.0] * 84 + [170.0] * 16, None),
        # too few to say anything
        ([None] * 9, None),
    ],
)
def test_overload_is_what_was_so_before_the_move(
    manifest: Manifest, waits_ms: list[float | None], words: str | None
) -> None:
    found = overload(requests(waits_ms), began(), manifest)
    assert (found is None) == (words is None)
    if found is not None:
        assert words in found.words


def test_requests_on_their_way_over_a_long_path_are_not_late(manifest: Manifest) -> None:
    manifest.spec = type(manifest.spec)(rtt_ms=2000)
    assert overload(requests([None] * 100), began(), manifest) is None


@pytest.mark.parametrize("workload", ["download", "upload", "push+upload"])
def test_who_fills_the_path_asks_for_no_more_than_it_carries(manifest: Manifest, workload: str) -> None:
    """Their exchanges take as long as they take: the next begins when one has ended."""
    manifest.spec = type(manifest.spec)(workload=workload)
    assert overload(requests([20.0, *[None] * 99]), began(), manifest) is None


def test_a_run_that_never_came_to_its_move_is_not_judged(manifest: Manifest) -> None:
    assert overload(requests([None] * 100), [], manifest) is None


def change_client(run_dir: Path, **changes: object) -> None:
    path = RunPaths(run_dir).client
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"requests_lost": 3}, "3 of 90 requests were lost"),
        ({"requests_duplicated": 2}, "2 requests were executed twice"),
        ({"state_ok": False, "state_detail": "counter went from 7 to 3"}, "7 to 3"),
    ],
)
def test_a_run_in_which_the_service_suffered_is_degraded(
    run_copy: Path, changes: dict[str, object], words: str
) -> None:
    change_client(run_copy, **changes)
    result = analyse(run_copy).result
    assert result.outcome == "degraded"
    assert words in (result.error or "")
    assert result.hint
    assert result.service_migration_time_ms == 120.0  # its times are those of the move
    assert result.is_measured


def test_an_overloaded_run_has_no_service_migration_time(run_copy: Path) -> None:
    events = read_events(RunPaths(run_copy).events)
    frozen = next(event for event in events if event.name == "server.frozen")
    write_events(
        RunPaths(run_copy).events,
        [*events, Event(t_ns=frozen.t_ns, vantage="run", name="run.migrate.started")],
    )
    assert analyse(run_copy).result.outcome == "succeeded"
    summary = json.loads(RunPaths(run_copy).client.read_text())
    late = [[number, stream, sent - 10**9, None, None] for number, stream, sent, *_ in summary["requests"]]
    change_client(run_copy, requests=late, requests_lost=len(late))
    result = analyse(run_copy).result
    assert result.outcome == "overloaded"
    assert "before the move" in (result.error or "")
    assert result.service_migration_time_ms is None
    assert result.log_service_migration_time_ms is None
    assert result.connection_overhead_ms is None
    assert result.container_downtime_ms == 100.0
    assert not result.is_measured


def test_a_run_that_failed_stays_failed(run_copy: Path) -> None:
    manifest = read_manifest(run_copy)
    manifest.outcome, manifest.error, manifest.hint = "failed", "the dump failed", "look there"
    write_json(RunPaths(run_copy).manifest, manifest)
    change_client(run_copy, requests_lost=3)
    result = analyse(run_copy).result
    assert (result.outcome, result.error, result.hint) == ("failed", "the dump failed", "look there")


@pytest.mark.parametrize(
    ("outcomes", "status"),
    [
        (["succeeded", "degraded"], 3),
        (["overloaded", "succeeded", "degraded"], 3),
        (["degraded", "failed"], 1),
        (["failed"], 1),
    ],
)
def test_the_exit_status_of_several_runs_is_that_of_the_worst(outcomes: list[str], status: int) -> None:
    results = [RunResult(outcome=each, strategy="pool", engine="handoff", seed=1) for each in outcomes]
    with pytest.raises(SomeFailed) as caught:
        raise_for(results)
    assert caught.value.exit_code == status
    assert comparison_table(results) is not None


@pytest.mark.parametrize("outcome", ["degraded", "overloaded", "failed"])
def test_a_script_can_tell_the_outcomes_apart(
    outcome: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    result = RunResult(outcome=outcome, strategy="pool", engine="handoff", seed=1, error="it rained")
    monkeypatch.setattr(performing, "ask_machine", lambda names: None)
    monkeypatch.setattr(performing, "launch", lambda *_, **__: RunPaths(tmp_path))
    monkeypatch.setattr(performing, "derive", lambda _: result)
    assert main.call(["run", "--strategy", "pool", "--json"]) == EXIT_CODES[outcome]
    out, err = capsys.readouterr()
    assert json.loads(out)["outcome"] == outcome
    assert "it rained" in err


def test_damaged_files_are_named(run_copy: Path) -> None:
    paths = RunPaths(run_copy)
    lines = paths.events.read_bytes().splitlines(keepends=True)
    lines[3] = lines[3][:20] + b"\xff" + lines[3][21:]
    paths.events.write_bytes(b"".join(lines)[:-7])
    capture = paths.captures / "edge-2.pcapng"
    capture.write_bytes(capture.read_bytes()[:-5])
    paths.client.write_text("{")
    words = " | ".join(analyse(run_copy).result.warnings)
    assert "events.jsonl is damaged: 2 lines" in words
    assert "(4, " in words
    assert "edge-2.pcapng is cut off" in words
    assert "client.json is damaged" in words


def test_the_cause_is_shown_and_not_its_hint() -> None:
    assert last_line("what\nthe link is down\nhint: put it up again\n") == "the link is down"
    assert last_line("  hint: nothing else\n", "silence") == "silence"
