"""A comparison with baselines: nothing is left out silently, and the figures are drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli import main
from quicferry.analysis.figures.comparison import save_comparison
from quicferry.errors import Unsupported
from quicferry.record import RunPaths, RunResult
from session import session as perform
from tests.capture_support import moving_scene, write_run

WHY = Unsupported("named is not installed", hint="run `make setup`")


@pytest.fixture
def machine_without_dns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Runs are not performed here, only asked for; whatever needs the probe ``dns`` cannot be."""
    performed: list[str] = []

    def ask(names: list[str]) -> None:
        if "dns" in names:
            raise WHY

    def launch(spec: Any, *_: Any, **__: Any) -> RunPaths:
        performed.append(spec.baseline or str(spec.strategy))
        return RunPaths(tmp_path)

    def derive(_: Path) -> RunResult:
        return RunResult(
            outcome="succeeded",
            strategy=performed[-1],
            engine="handoff",
            seed=1,
            service_migration_time_ms=20.0,
        )

    monkeypatch.setattr(perform, "ask_machine", ask)
    monkeypatch.setattr(perform, "launch", launch)
    monkeypatch.setattr(perform, "derive", derive)
    return performed


def results(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_what_cannot_run_here_is_in_the_table_with_its_reason(
    machine_without_dns: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--strategy", "pool", "--baseline", "tcp-dns", "--engine", "handoff"]
    assert main.call([*words, "--json"]) == 1
    lines = results(capsys.readouterr().out)
    assert [(line["strategy"], line["kind"], line["outcome"]) for line in lines] == [
        ("pool", "strategy", "succeeded"),
        ("tcp-dns", "baseline", "unsupported"),
    ]
    assert (lines[1]["error"], lines[1]["hint"]) == (str(WHY), WHY.hint)
    assert machine_without_dns == ["pool"]
    assert main.call(words) == 1
    out, err = capsys.readouterr()
    assert "tcp-dns" in out
    assert "unsupported" in out
    assert "tcp-dns · handoff: unsupported: named is not installed (run `make setup`)" in " ".join(
        err.split()
    )


def test_alone_it_ends_with_127_and_says_so_for_each_run(
    machine_without_dns: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", "--json", "--baseline", "tcp-dns", "--engine", "handoff", "--repetitions", "2"]
    assert main.call(words) == 127
    out, err = capsys.readouterr()
    assert [(line["outcome"], line["strategy"]) for line in results(out)] == [("unsupported", "tcp-dns")] * 2
    assert str(WHY) in err
    assert machine_without_dns == []
    assert main.call(["run", "--json", "--baseline", "tcp-dns"]) == 127
    (line,) = results(capsys.readouterr().out)
    assert (line["outcome"], line["strategy"], line["kind"]) == ("unsupported", "tcp-dns", "baseline")


def test_the_figures_of_a_comparison_are_drawn(tmp_path: Path) -> None:
    runs = [tmp_path / "one", tmp_path / "two"]
    for run, downtime_ms in zip(runs, (7, 12), strict=True):
        write_run(run, moving_scene(downtime_ms=downtime_ms), downtime_ms=downtime_ms)
    written = save_comparison(runs, tmp_path / "figures")
    assert {path.name for path in written} == {
        *("service-migration-time.png", "service-migration-time.svg"),
        *("connection-overhead.png", "connection-overhead.svg"),
        *("delivery-gaps.png", "delivery-gaps.svg"),
    }
    assert all(path.stat().st_size > 5_000 for path in written)
