"""Statistics, tables, pictures and the page: right numbers, well said, self-contained."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy.stats import binom

from cli.report import report
from cli.runs import runs
from quicferry.analysis import tables
from quicferry.analysis.analyse import analyse
from quicferry.analysis.figures.comparison import bars_figure, gaps_figure
from quicferry.analysis.figures.style import as_svg
from quicferry.analysis.figures.timeline import timeline_figure
from quicferry.analysis.report import write_report
from quicferry.analysis.statistics import median_interval, percentile, summarise
from quicferry.errors import StoreError
from quicferry.record import RunResult
from tests.capture_support import moving_scene, write_run


def result(**changes: object) -> RunResult:
    plain = RunResult(outcome="succeeded", strategy="symmetric", engine="handoff", seed=1)
    return msgspec.structs.replace(plain, **changes)


def printed(table: object, width: int = 220) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115 - closed below
    with console.file:
        console.print(table)
        return console.export_text()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    write_run(root / "20260101-one", moving_scene())
    write_run(root / "20260102-two", moving_scene(downtime_ms=7), downtime_ms=7)
    write_run(root / "20260103-bad", moving_scene(), outcome="failed")
    write_run(root / "20260104-half.partial", moving_scene(), outcome="running")
    return root


def test_the_median_and_its_interval_are_the_textbooks() -> None:
    values = [float(value) for value in range(1, 11)]
    assert median_interval(values) == (2.0, 9.0)  # n = 10: ranks 2 and 9 cover 97.9 %
    summary = summarise(values)
    assert (summary.median, summary.mean, summary.minimum, summary.maximum) == (5.5, 5.5, 1.0, 10.0)
    assert summary.p95 == pytest.approx(9.55)
    assert summary.runs == 10


@pytest.mark.parametrize("count", [1, 2, 5])
def test_too_few_values_have_no_interval(count: int) -> None:
    assert median_interval([1.0] * count) is None


def test_six_values_are_just_enough() -> None:
    assert median_interval([6.0, 1, 2, 3, 4, 5]) == (1.0, 6.0)


#: level -> for n = 1…59 the rank of the interval's lower end, from the binomial distribution; 0: none
LOWER_RANKS = {
    0.90: "0 0 0 0 1 1 1 2 2 2 3 3 4 4 4 5 5 6 6 6 7 7 8 8 8 9 9 10 10 11 11 11 12 12 13 13 14 14 14 15 15"
    " 16 16 17 17 17 18 18 19 19 20 20 21 21 21 22 22 23 23",
    0.95: "0 0 0 0 0 1 1 1 2 2 2 3 3 3 4 4 5 5 5 6 6 6 7 7 8 8 8 9 9 10 10 10 11 11 12 12 13 13 13 14 14 15"
    " 15 16 16 16 17 17 18 18 19 19 19 20 20 21 21 22 22",
    0.99: "0 0 0 0 0 0 0 1 1 1 1 2 2 2 3 3 3 4 4 4 5 5 5 6 6 7 7 7 8 8 8 9 9 10 10 10 11 11 12 12 12 13 13"
    " 14 14 14 15 15 16 16 16 17 17 18 18 18 19 19 20",
}


@pytest.mark.parametrize("level", LOWER_RANKS)
def test_the_ranks_of_the_interval_are_those_of_the_binomial_distribution(level: float) -> None:
    ranks = [int(word) for word in LOWER_RANKS[level].split()]
    assert len(ranks) == 59
    for count, rank in enumerate(ranks, 1):
        values = [float(value) for value in range(count, 0, -1)]  # each value is its own rank
        expected = (rank, count + 1 - rank) if rank else None
        assert median_interval(values, level) == expected


@given(st.lists(st.floats(0, 1000), min_size=6, max_size=200), st.sampled_from([0.8, 0.9, 0.95]))
def test_the_interval_covers_at_least_its_level_and_not_much_more(values: list[float], level: float) -> None:
    interval = median_interval(values, level)
    assert interval is not None
    ordered = sorted(values)
    assert interval[0] <= summarise(values).median <= interval[1]
    # the widest cut that still covers: one more at each end would not
    count = len(values)
    cuts = [c for c in range(1, count // 2 + 1) if 1 - 2 * binom.cdf(c - 1, count, 0.5) >= level]
    cut = max(cuts)
    assert interval == (ordered[cut - 1], ordered[count - cut])


def test_nothing_cannot_be_summarised() -> None:
    for values in ([], [1.0, float("nan")]):
        with pytest.raises(ValueError, match=r"nothing|not a number"):
            summarise(values)
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 5)
    with pytest.raises(ValueError, match="confidence"):
        median_interval([1.0], 1.0)
    assert median_interval([]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (12, "12 B"), (2500, "2.5 kB"), (20_600_000, "20.6 MB")],  # noqa: RUF001
)
def test_sizes(value: int | None, text: str) -> None:
    assert tables.size(value) == text


def test_one_row_per_run_with_units_in_every_heading() -> None:
    good = result(
        service_migration_time_ms=41.234,
        connection_overhead_ms=9.0,
        rtt_ms=18.0,
        transferred_bytes=2500,
        requests_sent=290,
        requests_lost=0,
        warnings=["something"],
        memory_mib=50,
        pool=3,
        server_first=True,
    )
    text = printed(tables.result_table([good, result(outcome="failed")]))
    for part in ("41.2", "0.50", "2.5 kB", "0 of 290", "succeeded !", "failed", "+50 MiB", "pool of 3"):
        assert part in text
    assert len(re.findall(r"\bms\b", text)) >= 4


def test_many_runs_become_medians_with_intervals() -> None:
    group = [
        result(service_migration_time_ms=float(ms), requests_sent=10, requests_lost=0) for ms in range(10, 20)
    ]
    other = result(outcome="failed", engine="criu-cold")
    text = printed(tables.comparison_table([*group, other]))
    assert "14.5 [11.0, 18.0]" in text
    assert "10 of 10" in text
    assert "0 of 1" in text
    assert "0 of 100" in text


@pytest.mark.parametrize("with_id", [False, True])
def test_a_narrow_terminal_cuts_off_no_number(with_id: bool) -> None:
    one = result(
        service_migration_time_ms=1067.5,
        container_downtime_ms=1051.7,
        connection_overhead_ms=22.2,
        rtt_ms=18.3,
        requests_sent=326,
        requests_lost=0,
        strategy="synchronized-symmetric",
        engine="criu-cold",
        memory_mib=50,
        run_id="20261124-030716-synchronized-symmetric-criu-cold-0a6180",
    )
    text = printed(tables.result_table([one], with_id=with_id), width=80)
    assert max(len(line) for line in text.splitlines()) <= 80
    for part in (
        "1\u202f067.5",
        "1\u202f051.7",
        "22.2",
        "1.21",
        "0 of 326",
        "criu-cold +50 MiB",
        "succeeded",
    ):
        assert part in text
    assert ("20261124-030716" in text) is with_id


def test_an_id_is_shortened_to_what_finds_the_run() -> None:
    text = printed(tables.result_table([result(run_id="20260102-030405-pool-handoff-1a2b3c")], with_id=True))
    assert "20260102-030405 " in text
    assert tables.short_id("mine") == "mine"


def test_single_runs_are_compared_as_single_runs() -> None:
    text = printed(tables.comparison_table([result(), result(engine="criu-cold")]))
    assert "outcome" in text


class Page(HTMLParser):
    """Collects what a page would load, and checks that its tags are closed."""

    VOID = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data") and value and not value.startswith("#"):
                self.loads.append(value)
            if name == "id" and value:
                self.ids.append(value)
        if tag in ("script", "iframe", "object", "embed"):
            self.loads.append(f"<{tag}>")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else_and_tells_no_secret(store: Path, tmp_path: Path) -> None:
    chosen = sorted(path for path in store.iterdir() if path.suffix != ".partial")
    output = tmp_path / "deep" / "report.html"
    write_report(chosen, output)
    text = output.read_text()
    page = Page()
    page.feed(text)
    page.close()
    assert page.loads == []
    assert page.open == []
    assert "@import" not in text
    assert re.findall(r"url\((?!#)[^)]*\)", text) == []
    assert text.count("<section") == 3
    assert {"run-1", "run-2", "run-3"} <= set(page.ids)
    assert "the server did not come back" in text
    assert "120.000 ms" in text
    for run_dir in chosen:
        for line in (run_dir / "secrets" / "keys.log").read_text().split():
            assert len(line) < 32 or line not in text


def test_what_cannot_be_had_here_is_not_left_out(store: Path, tmp_path: Path) -> None:
    write_report([store / "20260101-one"], tmp_path / "report.html", ["mptcp: no <such> kernel"])
    assert "<li>mptcp: no &lt;such&gt; kernel</li>" in (tmp_path / "report.html").read_text()


def test_the_pages_pictures_do_not_share_identifiers(store: Path, tmp_path: Path) -> None:
    """Two SVGs in one page whose clip paths have one name would spoil each other."""
    write_report([store / "20260101-one", store / "20260102-two"], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    clips = re.findall(r'<clipPath id="([^"]+)"', text)
    bodies = re.findall(r'<clipPath id="([^"]+)">(.*?)</clipPath>', text, re.DOTALL)
    by_name: dict[str, set[str]] = {}
    for name, body in bodies:
        by_name.setdefault(name, set()).add(re.sub(r"\s+", " ", body))
    assert clips
    assert all(len(different) == 1 for different in by_name.values())


def test_a_page_is_the_same_when_made_again(store: Path) -> None:
    analysis = analyse(store / "20260101-one")
    assert as_svg(timeline_figure(analysis)) == as_svg(timeline_figure(analysis))


def test_a_report_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no runs"):
        write_report([], tmp_path / "x.html")
    with pytest.raises(StoreError, match="no run in"):
        write_report([tmp_path], tmp_path / "x.html")


def test_a_report_that_cannot_be_written_says_so(store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        write_report([store / "20260101-one"], tmp_path / "file" / "x.html")


def test_pictures_of_odd_data_are_drawn() -> None:
    empty = bars_figure({"a": [], "b": [3.0]}, "title")
    assert "<svg" in as_svg(empty)
    assert "<svg" in as_svg(gaps_figure({"none": []}))
    assert "<svg" in as_svg(gaps_figure({"some": [1.0, 2.0, 0.0]}))


def call(*arguments: str | Path) -> tuple[str, str]:
    done = CliRunner().invoke(runs, [str(word) for word in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


def test_list_prints_one_object_per_line(store: Path) -> None:
    lines = [json.loads(line) for line in call("list", "--json", "--runs", store)[0].splitlines()]
    assert [line["run_id"] for line in lines] == ["20260101-one", "20260102-two", "20260103-bad"]
    assert [line["outcome"] for line in lines] == ["succeeded", "succeeded", "failed"]
    wanted = {
        "outcome", "strategy", "engine", "seed", "link_backend", "rtt_ms", "service_migration_time_ms",
        "container_downtime_ms", "connection_overhead_ms", "log_service_migration_time_ms",
        "transferred_bytes", "requests_sent", "requests_lost", "requests_duplicated", "bytes_verified",
        "state_ok", "run_dir",
    }  # fmt: skip
    assert all(wanted <= set(line) for line in lines)


def test_list_is_a_table_for_people(store: Path, tmp_path: Path) -> None:
    text, _ = call("list", "--runs", store)
    assert "20260102-two" in text
    text, said = call("list", "--runs", tmp_path / "none")
    assert text == ""
    assert "no runs in" in said


def test_a_run_that_cannot_be_read_is_left_out_with_words(store: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "manifest.json").write_text("{")
    text, said = call("list", "--json", "--runs", tmp_path)
    assert text == ""
    assert "left out" in said


def test_show_tells_all_of_one_run(store: Path) -> None:
    text, _ = call("show", "one", "--runs", store)
    for part in ("120.000 ms", "first useful byte", "survived", "every 10 ms"):
        assert part in text
    assert "the server did not come back" in call("show", store / "20260103-bad")[0]
    shown = json.loads(call("show", "two", "--runs", store, "--json")[0])
    assert shown["container_downtime_ms"] == 7.0


def test_show_prints_events_and_packets_in_order(store: Path) -> None:
    text, _ = call("show", "one", "--runs", store, "--events", "--packets")
    assert "+0.000 ms  edge-1    server.frozen epoch=1" in text
    assert "1-rtt #" in text
    assert "+256 bytes" in text
    lines = [
        json.loads(line)
        for line in call("show", "one", "--runs", store, "--packets", "--json")[0].splitlines()
    ]
    assert {line["kind"] for line in lines} == {"packet"}
    assert [line["t_ns"] for line in lines] == sorted(line["t_ns"] for line in lines)


def test_report_over_all_and_over_some(store: Path, tmp_path: Path) -> None:
    for words in ("-o", tmp_path / "all.html"), ("one", "-o", tmp_path / "one.html"):
        arguments = [str(word) for word in (*words, "--runs", store)]
        done = CliRunner().invoke(report, arguments, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    assert (tmp_path / "all.html").read_text().count("<section") == 3
    assert (tmp_path / "one.html").read_text().count("<section") == 1


def test_a_run_that_is_not_there(store: Path) -> None:
    with pytest.raises(StoreError, match="no run"):
        call("show", "nothing", "--runs", store)
