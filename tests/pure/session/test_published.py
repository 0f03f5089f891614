"""Published experiments: their files, and that a value is found among the runs that are its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from cli import main
from quicferry.analysis.figures.published import published_figure
from quicferry.analysis.figures.style import as_svg
from quicferry.analysis.tidy import Row, columns
from quicferry.errors import InvalidInput
from quicferry.paths import CHECKOUT
from quicferry.record import RunPaths, RunResult, result_of
from quicferry.spec import RunSpec
from session import session as performing
from session import sweep as sweeping
from session.published import Pair, experiments, get, phases, side_by_side, values, with_containers
from session.scenario import read_scenario
from tests.pure.session.sweep_support import run_directory


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_has_a_scenario_that_runs_what_was_published(name: str) -> None:
    experiment = get(name)
    scenario = read_scenario(experiment.scenario)
    assert scenario.repetitions == (5 if name == "exp5" else 10)
    assert experiment.source
    assert experiment.differs
    published = values(name)
    assert published
    assert len({value.label for value in published}) == len(published)
    results = []
    for spec in scenario.cells():
        result = result_of(spec, "succeeded")
        for value in published:
            if value.measure in RunResult.__struct_fields__:
                setattr(result, value.measure, 5)
        result.phases_ms = {"restore": 5.0, "notice": 5.0}
        results.append(Row("s", 0, 1, result))
    assert {value.measure for value in published} <= set(columns())
    for pair in side_by_side(name, results):
        assert pair.runs > 0, pair.label
        assert pair.measured == 5


@pytest.mark.parametrize(
    "name", ["fig4", "fig5a", "fig5b", "fig5c", "fig6a", "fig6b", "fig6c", "exp1", "exp2"]
)
def test_the_published_containers_can_be_moved_as_containers(name: str) -> None:
    bare = read_scenario(get(name).scenario)
    scenario = with_containers(bare)
    cells = scenario.cells()
    assert {spec.engine for spec in cells} == {
        spec.engine.replace("criu-", "runc-") for spec in bare.cells() if spec.baseline is None
    }
    results = []
    for spec in cells:
        result = result_of(spec, "succeeded")
        for value in values(name):
            if value.measure in RunResult.__struct_fields__:
                setattr(result, value.measure, 5)
        result.phases_ms = {"restore": 5.0}
        results.append(Row("s", 0, 1, result))
    pairs = side_by_side(name, results, containers=True)
    assert [pair.published for pair in pairs] == [value.published for value in values(name)]
    assert not [pair.label for pair in pairs if not pair.runs]
    assert not [pair.label for pair in side_by_side(name, results) if pair.runs and "criu" in pair.label]


def test_an_experiment_without_moves_has_no_containers() -> None:
    with pytest.raises(InvalidInput, match="no process is moved in"):
        with_containers(read_scenario(get("exp0").scenario))
    assert main.call(["reproduce", "exp0", "--containers"]) == 2


def test_scenarios_of_the_published_experiments_are_all_there() -> None:
    files = set((CHECKOUT / "scenarios" / "published").glob("*.toml"))
    assert files - {experiment.scenario for experiment in experiments().values()} == {
        CHECKOUT / "scenarios" / "published" / "experiments.toml"
    }


def test_an_unknown_experiment_names_those_that_there_are() -> None:
    with pytest.raises(InvalidInput) as caught:
        get("fig7")
    assert "fig5a" in str(caught.value.hint)


def row(time_ms: float | None, repetition: int = 1, outcome: str = "succeeded", **axes: Any) -> Row:
    result = result_of(RunSpec(engine="criu-cold", **axes), outcome)
    result.first_request_after_ms = time_ms
    return Row("s", 0, repetition, result)


def test_published_and_measured_stand_side_by_side_with_the_same_statistic() -> None:
    rows = [row(time, strategy="reactive-explicit") for time in (100.0, 200.0, 600.0)]
    rows += [
        row(9e9, strategy="reactive-explicit", repetition=0),  # a warm-up
        row(9e9, strategy="reactive-explicit", outcome="failed"),
        row(None, strategy="reactive-explicit"),
        row(50.0, strategy="pool", pool=2),
        row(70.0, strategy="pool", pool=3),
    ]
    pairs = {pair.label: pair for pair in side_by_side("fig4", rows)}
    reactive = pairs["reactive-explicit · criu-cold"]
    assert (reactive.measured, reactive.low, reactive.high, reactive.runs) == (300.0, 100.0, 600.0, 3)
    assert (reactive.published, reactive.statistic) == (271.0, "mean")
    assert reactive.ratio == pytest.approx(300 / 271)
    assert pairs["pool of 2 · criu-cold"].measured == 50.0
    missing = pairs["tcp-dns · criu-cold"]
    assert (missing.measured, missing.ratio, missing.runs) == (None, None, 0)
    median = {pair.label: pair for pair in side_by_side("exp1", rows)}
    assert median["reactive-explicit · 0 % loss"].measured == 200.0


def hit(hit_ms: float | None, downtime_ms: float, **axes: Any) -> Row:
    result = result_of(RunSpec(engine="criu-cold", rtt_ms=9.0, **axes), "succeeded")
    result.request_hit_ms, result.container_downtime_ms = hit_ms, downtime_ms
    return Row("s", 0, 1, result)


def test_a_request_that_is_hit_is_held_against_downtime_and_one_round_trip() -> None:
    rows = [hit(100.0 + extra, 91.0, strategy="proactive-explicit") for extra in (9.0, 10.0, 11.0)]
    rows += [hit(100.0 + extra, 91.0, strategy="reactive-explicit") for extra in (5.0, 10.5, 300.0)]
    rows += [hit(None, 91.0, strategy="reactive-explicit")]
    pairs = {pair.label: pair for pair in side_by_side("fig5a", rows)}
    proactive, reactive = (pairs[f"{name}-explicit · criu-cold"] for name in ("proactive", "reactive"))
    assert (proactive.excess_ms, proactive.is_enough) == (10.0, True)
    assert (reactive.excess_ms, reactive.is_enough) == (10.5, False)
    assert pairs["pool of 3 · criu-cold"].excess_ms is pairs["pool of 3 · criu-cold"].is_enough is None
    assert all(pair.excess_ms is None for pair in side_by_side("fig5b", rows)), "a downtime is no request"


def test_the_figure_shows_both_and_stays_drawn_where_one_is_missing() -> None:
    pairs = [
        Pair("a", "ms", "mean", 10.0, 5.0, 4.0, 6.0, 3),
        Pair("b", "ms", "mean", 10.0, None, None, None, 0),
    ]
    assert "<svg" in as_svg(published_figure(pairs, "title", "ms"))


@pytest.mark.parametrize("measured", [9.0, 900.0, 90_000.0])
def test_numbers_of_a_figure_stand_at_their_bars_and_are_not_cut(measured: float) -> None:
    pairs = [
        Pair(f"proactive-explicit · criu-{name}", "ms", "mean", 80_000.0, measured, 8.0, 160_000.0, 10)
        for name in ("cold", "post-copy")
    ]
    figure = published_figure(pairs, "title", "ms")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    words = [text for text in axes.texts if "ratio" in text.get_text()]
    assert len(words) == 2
    for text in words:
        assert "10 runs" in text.get_text()
        box = text.get_window_extent(canvas.get_renderer())
        end = axes.transData.transform((measured, 0))[0]
        assert end < box.x0 < end + 20
        assert box.x1 < figure.bbox.x1


def test_the_command_runs_prints_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[RunSpec] = []

    def launch(spec: RunSpec, _topology: Any, store: Any, *_: Any) -> RunPaths:
        made.append(spec)
        result = run_directory(store.root, spec, number=len(made))
        result.service_time_ms = 20.0
        sweeping.write_json(RunPaths(Path(result.run_dir or "")).result, result)
        return RunPaths(Path(result.run_dir or ""))

    monkeypatch.setattr(performing, "ask_machine", lambda _: None)
    monkeypatch.setattr(performing, "launch", launch)
    monkeypatch.setattr(performing, "derive", lambda path, **_: sweeping.read_result(path))
    words = ["reproduce", "exp0", "--repetitions", "2", "--runs", str(tmp_path)]
    assert main.call(words) == 0
    out = capsys.readouterr().out
    assert "no-migration · 1.5 % loss" in out
    assert "0.98" in out  # 20.0 over 20.451
    assert "What differs here:" in out
    assert len(made) == 1 + 4
    images = tmp_path / "images"
    assert main.call([*words, "--no-runs", "--output", str(images)]) == 0
    assert [path.name for path in images.iterdir()] == ["exp0.svg"]
    capsys.readouterr()
    for form in ("pdf", "svg", "png"):
        assert (tmp_path / "sweeps" / "published-exp0" / f"exp0.{form}").stat().st_size > 1000
    assert main.call([*words, "--json"]) == 0  # nothing is missing
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(made) == 5
    assert [(line["measured"], line["runs"]) for line in lines] == [(20.0, 2), (20.0, 2)]
    assert main.call(["reproduce", "--list"]) == 0
    assert "fig6a" in capsys.readouterr().out
    assert main.call(["reproduce", "fig9"]) == 2
    assert main.call(["reproduce"]) == 2


@pytest.mark.parametrize("size_mb", [28, 280])
@pytest.mark.parametrize("technique", ["cold", "pre-copy", "post-copy", "hybrid"])
def test_the_phases_of_a_published_downtime_add_up_to_it(technique: str, size_mb: int) -> None:
    told = phases(technique, size_mb)
    (downtime,) = [
        value.published
        for value in values({28: "fig5b", 280: "fig6b"}[size_mb])
        if value.measure == "container_downtime_ms" and value.choice["engine"] == f"criu-{technique}"
    ]
    # each was read from a figure by itself
    assert told.dump_ms + told.transfer_ms + told.restore_ms == pytest.approx(downtime, abs=15)
    assert told.request_hit_ms > downtime


def test_phases_that_nobody_published_are_refused() -> None:
    assert phases("cold", 28) == (410, 2360, 460, 8446)
    with pytest.raises(InvalidInput, match="100 MB"):
        phases("cold", 100)
    with pytest.raises(InvalidInput, match="'warm'") as caught:
        phases("warm", 28)
    assert "hybrid" in str(caught.value.hint)
