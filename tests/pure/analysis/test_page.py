"""The report over many runs: its words, figures and statistics. `make test-report` opens it in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from quicferry.analysis.derive import derive
from quicferry.analysis.page import charts, words
from quicferry.analysis.page.groups import MEASURES, Group, grouped
from quicferry.analysis.page.moves import timeline
from quicferry.analysis.page.write import render, save_figures, write_page
from quicferry.analysis.statistics import bootstrap_interval, compare, holm
from quicferry.analysis.tidy import Row
from quicferry.errors import StoreError
from quicferry.record import RunResult, result_of
from quicferry.spec import RunSpec
from tests.capture_support import moving_scene, write_run


def result(time_ms: float | None, **axes: object) -> RunResult:
    made = result_of(RunSpec(**axes), "succeeded" if time_ms is not None else "failed", error="it fell over")
    made.error = None if time_ms is not None else made.error
    made.service_migration_time_ms, made.container_downtime_ms = time_ms, time_ms and time_ms / 2
    made.requests_sent, made.requests_lost, made.requests_duplicated = 100, 0, 0
    made.phases_ms = {"checkpoint": 1.0, "transfer": 2.0, "restore": 3.0}
    return made


def rows(count: int = 8) -> list[Row]:
    found = []
    for number in range(count):
        for place, (strategy, engine) in enumerate(
            [("symmetric", "handoff"), ("pool", "handoff"), ("symmetric", "criu-cold")]
        ):
            time_ms = 20.0 + 30 * place + number
            found.append(Row("s", len(found), number + 1, result(time_ms, strategy=strategy, engine=engine)))
    return found


# --- statistics -------------------------------------------------------------------------------------


def test_groups_are_compared_with_corrected_tests_and_effect_sizes() -> None:
    near, far = [10.0, 11, 12, 13, 14, 15, 16], [30.0, 31, 32, 33, 34, 35, 36]
    found = compare({"near": near, "far": far, "again": [value + 0.5 for value in near], "few": [1.0, 2.0]})
    assert [(pair.one, pair.other) for pair in found] == [
        ("near", "far"),
        ("near", "again"),
        ("far", "again"),
    ]
    first, second, third = found
    assert (first.difference, first.delta, first.effect, first.is_clear) == (20.0, 1.0, "large", True)
    assert first.low < 20.0 < first.high
    assert first.p == pytest.approx(3 * stats.mannwhitneyu(far, near).pvalue)
    assert (third.delta, third.difference) == (-1.0, -19.5)
    assert not second.is_clear
    assert second.effect in ("negligible", "small")


def test_holm_is_as_the_textbook_has_it() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_bootstrap_interval_covers_the_median_and_needs_enough() -> None:
    values = list(np.random.default_rng(3).normal(50, 5, 40))
    interval = bootstrap_interval(values)
    assert interval is not None
    assert 46 < interval[0] < float(np.median(values)) < interval[1] < 54
    assert bootstrap_interval(values) == interval
    assert bootstrap_interval(values[:5]) is None


# --- words ------------------------------------------------------------------------------------------


def test_the_summary_names_the_best_and_the_worst_of_each_engine() -> None:
    sentences = words.summary(grouped(rows()))
    assert sentences[0] == "24 runs of 3 combinations; 24 succeeded."
    assert (
        "With handoff the client was without service for the shortest time with symmetric (23.5 ms"
        in sentences[2]
    )
    assert "longest with pool (53.5 ms, 2.3 times as long)" in sentences[2]
    assert (
        sentences[1]
        == "With criu-cold the client of symmetric was without service for 83.5 ms in the median."
    )
    assert sentences[-1] == "Of 2400 requests none went unanswered and none were executed twice."


def test_what_makes_a_figure_doubtful_is_said() -> None:
    few = rows(3)
    few.append(Row("s", 9, 4, result(None, strategy="pool")))
    few[0].result.warnings.append("core to edge-1: 1 % of the packets were more than 2.0 ms late")
    few[3].result.warnings.append("core to edge-2: 3 % of the packets were more than 1.7 ms late")
    notes = words.cautions(grouped(few))
    assert "Too few repetitions" in notes[0]
    assert "--repetitions 6" in notes[0]
    assert "pool · handoff: 1 of 4 runs did not succeed; the first one failed: it fell over" in notes
    assert sum(note.startswith("2 runs: core to edge-#") for note in notes) == 1
    assert words.cautions(grouped(rows())) == []


def test_whatever_varies_is_a_group_of_its_own() -> None:
    found = [
        Row("", 0, 1, result(10.0 * rate, strategy="symmetric", rate_mbps=rate, memory_mib=memory))
        for rate in (5.0, 50.0)
        for memory in (100, 0)
    ]
    assert [group.name for group in grouped(found)] == [
        "symmetric, rate_mbps 5 · handoff",
        "symmetric, rate_mbps 50 · handoff",
        "symmetric, rate_mbps 5 · handoff +100 MiB",
        "symmetric, rate_mbps 50 · handoff +100 MiB",
    ]


# --- figures ----------------------------------------------------------------------------------------


def test_a_bar_has_its_value_at_its_foot_and_its_interval() -> None:
    figure = charts.bars(grouped(rows()), MEASURES[0])
    assert figure is not None
    bar = figure.data[0]
    assert list(bar.text) == ["<b>83.5</b>", "<b>23.5</b>", "<b>53.5</b>"]
    assert (bar.insidetextanchor, bar.constraintext, bar.textposition) == ("start", "none", "inside")
    assert list(bar.error_x.array) == [3.5] * 3  # of eight values, the whole range
    assert charts.bars([Group("a", "b", [result(None)])], MEASURES[0]) is None


def test_figures_can_be_read_without_colour() -> None:
    baseline = Row("s", 99, 1, result(400.0, baseline="tcp-dns"))
    groups = grouped([*rows(), baseline])
    bars = charts.bars(groups, MEASURES[0])
    assert bars is not None
    assert list(bars.data[0].marker.pattern.shape) == ["", "", "", "/"]
    phases = charts.phases(groups)
    assert phases is not None
    assert len({trace.marker.pattern.shape for trace in phases.data}) == len(phases.data)
    lines = charts.distribution(groups)
    assert lines is not None
    assert len({(trace.line.dash, trace.marker.symbol) for trace in lines.data}) == len(lines.data) == 3
    assert list(lines.data[0].y) == pytest.approx([number / 8 for number in range(9)])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Row:
    run_dir = write_run(tmp_path_factory.mktemp("run") / "one", moving_scene(downtime_ms=50), downtime_ms=50)
    return Row("", 0, 1, derive(run_dir, draw=False))


def test_a_timeline_has_every_packet_of_the_move_with_its_frames(recorded: Row) -> None:
    figure = timeline(recorded.result)
    assert figure is not None
    traces = {trace.name: trace for trace in figure.data}
    assert {"checkpoint", "transfer", "restore", "useful data came, old address", "turning point"} <= set(
        traces
    )
    came = traces["useful data came, new address"]
    assert all("STREAM" in packet[0] for packet in came.customdata)
    assert min(came.x) == pytest.approx(recorded.result.moments_ms["useful"], abs=1e-3)
    assert traces["transfer"].base[0] == pytest.approx(recorded.result.moments_ms["transfer.started"])
    low, high = figure.layout.xaxis.range
    assert low < recorded.result.moments_ms["last_useful_old"] < recorded.result.moments_ms["useful"] < high
    assert timeline(result(3.0)) is None


# --- the page ---------------------------------------------------------------------------------------


def test_the_page_holds_all_and_asks_for_nothing(recorded: Row, tmp_path: Path) -> None:
    failed = Row("", 1, 1, result(None, strategy="pool"))
    failed.result.error = "</script><b>bold"
    output = tmp_path / "deep" / "page.html"
    write_page([recorded, failed], output, title="a <title>", diagram=lambda _: "<svg id='drawn'></svg>")
    text = output.read_text()
    assert "<h1>a &lt;title&gt;</h1>" in text
    assert "&lt;/script&gt;&lt;b&gt;bold" in text
    assert "<svg id='drawn'>" in text
    own = text[text.index("</script>") :]  # without the library
    assert re.findall(r"(?:src|href)=[\"'](?!#)[^\"']*", own) == []
    assert not re.search(r"https?://|@import|url\(", own)
    assert "default-src 'none'" in text
    figures = re.findall(r'<div id="([\w-]+)"></div><script>', own)
    assert figures == [
        *("figure-service-migration-time", "figure-container-downtime", "figure-connection-overhead"),
        *("figure-request-hit", "figure-first-request-after", "figure-phases", "timeline-1"),
    ]
    for line in (Path(recorded.result.run_dir or "") / "secrets" / "keys.log").read_text().split():
        assert len(line) < 32 or line not in text


def test_a_name_cannot_end_the_script_it_stands_in() -> None:
    made = [Row("s", number, 1, result(5.0 + number, workload="</script><img src=x>")) for number in range(2)]
    made.append(Row("s", 3, 1, result(5.0)))
    text = render(made)
    assert "<img" not in text
    described = re.findall(r"const f = (\{.*?\}); Plotly", text)
    assert any("</script><img src=x>" in str(json.loads(each)) for each in described)


def test_figures_for_papers_are_written_in_every_form(tmp_path: Path) -> None:
    written = save_figures(rows(), tmp_path / "figures")
    names = {path.name for path in written}
    for name in ("service-migration-time", "container-downtime", "phases", "distribution"):
        assert {f"{name}.pdf", f"{name}.svg", f"{name}.png"} <= names
    assert {"table.tex", "runs.csv"} <= names
    assert all(path.stat().st_size > 300 for path in written)
    assert (tmp_path / "figures" / "phases.pdf").read_bytes().startswith(b"%PDF")
    # the same runs give the same files
    before = {path.name: path.read_bytes() for path in written}
    again = save_figures(rows(), tmp_path / "again")
    assert {path.name: path.read_bytes() for path in again} == before


def test_a_report_of_nothing_or_to_nowhere_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no runs"):
        write_page([], tmp_path / "x.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_page(rows(1), tmp_path / "file" / "x.html")
    with pytest.raises(StoreError, match="cannot write into"):
        save_figures(rows(1), tmp_path / "file" / "figures")
