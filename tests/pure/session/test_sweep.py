"""A sweep: what its file may hold, its plan, and that it goes on after whatever ends it."""

from __future__ import annotations

import collections
import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from cli import main
from cli.common.progress import time_left
from quicferry.analysis.export import escape, latex
from quicferry.analysis.tidy import LEFT_OUT, Row, columns, tidy
from quicferry.errors import InvalidInput, StoreError, Unsupported
from quicferry.paths import CHECKOUT
from quicferry.record import Manifest, RunPaths, RunResult, conditions_of, differing, result_of, write_json
from quicferry.spec import RunSpec, axes
from session import session as performing
from session import sweep as sweeping
from session.scenario import Scenario, read_scenario
from session.sweep import PlannedRun, SweepStore, go_on, pending, plan
from tests.pure.session.sweep_support import TOPOLOGY, run_directory

SWEEP = {"strategy": ["symmetric", "pool"], "pool": [1, 2, 3], "engine": ["handoff", "criu-cold"]}


# --- the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected", "hint"),
    [
        ("repetitions = 0", ":1: repetitions", None),
        ("\nrepetitions = 'ten'", ":2: repetitions: Expected `int`", None),
        ("title = 'x'\nrepetition = 2", ":2: there is no key 'repetition'", "repetitions, warm_up"),
        ("[run]\nrtt_ms = 9000.0", ":2: rtt_ms: rtt_ms cannot be 9000 ms", "0 to 4000 ms"),
        ("[run]\nrtt_ms = 'far'", ":2: rtt_ms: a value does not fit its axis", None),
        ("[sweep]\nrtts = [1.0]", ":2: rtts: there is no axis 'rtts'", "rtt_ms"),
        ("[sweep]\nengine = ['handoff', 'teleport']", ":2: engine: unknown engine 'teleport'", "criu-cold"),
        ("[run]\nstrategy = 'hope'", ":2: strategy: there is no strategy 'hope'", "symmetric"),
        ("[run]\ntopology = 'moon'", ":2: topology: there is no topology 'moon'", "two_edges"),
        ("[sweep]\nbaseline = ['pigeon']", ":2: baseline: there is no baseline 'pigeon'", "tcp-dns"),
        ("[run]\nworkload = 'none'", ":2: workload: there is no workload 'none'", "bursts"),
        ("[sweep]\ncompression = ['lzma']", ":2: compression: compression cannot be 'lzma'", "zstd-1"),
        ("[sweep]\nrtt_ms = 18.0", ":1: sweep: Expected `array`", None),
        ("[sweep]\nrtt_ms = []", "rtt_ms is swept over no value", "give a value"),
        ("[run]\njitter_ms = 10.0\nrtt_ms = 5.0", "jitter", None),
        ("time_budget_min = 0", ":1: time_budget_min", None),
        ("[[fewer]]\nengine = 'handoff'", ":1: fewer: repetitions is missing", "a whole number from 1"),
        ("[[fewer]]\nrepetitions = 1\nwarm_up = -1", ":1: fewer: warm_up is -1", "a whole number from 0"),
        ("[[fewer]]\nrepetitions = 0", ":1: fewer: repetitions is 0", "a whole number from 1"),
        ("[[fewer]]\nrepetitions = 1\nengin = 'handoff'", ":3: engin: there is no axis 'engin'", "engine"),
        ("title = ", "at end of document", "scenarios/"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_place(
    tmp_path: Path, text: str, expected: str, hint: str | None
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(InvalidInput) as caught:
        read_scenario(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)
    if hint is not None:
        assert hint in str(caught.value.hint)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="not UTF-8"):
        read_scenario(path)


# --- the plan ----------------------------------------------------------------------------------------


def test_an_axis_is_not_crossed_with_a_strategy_that_is_the_same_without_it() -> None:
    cells = Scenario(sweep=SWEEP).cells()
    assert collections.Counter((str(c.strategy), c.pool) for c in cells) == {
        ("symmetric", 1): 2,
        ("pool", 1): 2,
        ("pool", 2): 2,
        ("pool", 3): 2,
    }
    variants = Scenario(sweep={"strategy": ["symmetric", "pool"], "server_first": [False, True]}).cells()
    assert [(str(c.strategy), c.server_first) for c in variants] == [
        ("symmetric", False),
        ("pool", False),
        ("pool", True),
    ]
    with pytest.raises(InvalidInput, match="is given none"):
        Scenario(run={"pool": 3}, sweep={"strategy": ["symmetric"]}).cells()


def test_a_plan_has_warm_ups_and_each_repetition_in_an_order_of_its_own() -> None:
    scenario = Scenario(repetitions=5, warm_up=2, run={"seed": 3}, sweep=SWEEP)
    runs = plan(scenario)
    assert runs == plan(scenario)
    warm_ups = [run for run in runs if not run.is_sample]
    assert collections.Counter(run.spec.engine for run in warm_ups) == {"handoff": 2, "criu-cold": 2}
    assert all(not run.is_sample for run in runs[: len(warm_ups)])
    blocks = [[run for run in runs if run.repetition == number] for number in range(1, 6)]
    assert [{run.spec.seed for run in block} for block in blocks] == [{3}, {4}, {5}, {6}, {7}]
    cells = set(scenario.cells())
    orders = []
    for block in blocks:
        order = [msgspec.structs.replace(run.spec, seed=3) for run in block]
        assert set(order) == cells
        assert len(order) == len(cells)
        orders.append(tuple(order))
    assert len(set(orders)) == 5
    assert [run.place for run in runs] == list(range(len(runs)))
    # with more repetitions it is the same plan, and goes on
    assert plan(msgspec.structs.replace(scenario, repetitions=6))[: len(runs)] == runs
    assert plan(msgspec.structs.replace(scenario, run={"seed": 4}))[4:] != runs[4:]


# --- sessions ----------------------------------------------------------------------------------------

CONDITIONS = {"kernel": "Linux 6", "cpu": "one"}
SCENARIO = Scenario(repetitions=3, sweep={"strategy": ["symmetric", "pool"]})


class Machine:
    """Makes run directories; the times of a run come from its seed."""

    def __init__(self, store: SweepStore) -> None:
        self.store = store
        self.made: list[RunSpec] = []
        self.ends_at: dict[int, Callable[[], None]] = {}

    def perform(self, spec: RunSpec, done: int) -> RunResult:
        self.ends_at.pop(len(self.made), lambda: None)()
        self.made.append(spec)
        return run_directory(self.store.root, spec, number=len(self.made))


@pytest.fixture
def store(tmp_path: Path) -> SweepStore:
    return SweepStore.create(tmp_path / "sweep", SCENARIO, CONDITIONS)


@pytest.fixture
def machine(store: SweepStore) -> Machine:
    return Machine(store)


def session(store: SweepStore, machine: Machine, **options: Any) -> sweeping.SweepEnd:
    return go_on(store, pending(store, store.record.scenario), machine.perform, lambda *_: None, **options)


def is_whole(store: SweepStore) -> bool:
    samples = [row for row in store.rows() if row.repetition]
    return [row.place for row in samples] == [run.place for run in plan(SCENARIO) if run.is_sample]


def test_a_sweep_makes_every_run_once(store: SweepStore, machine: Machine) -> None:
    assert session(store, machine) == (0, None)
    assert machine.made == [run.spec for run in plan(SCENARIO)]
    assert is_whole(store)
    assert session(store, machine) == (0, None)  # nothing is missing: not even a warm-up
    assert len(machine.made) == 7


@pytest.mark.parametrize("after", range(7))
def test_an_interrupted_sweep_goes_on(store: SweepStore, machine: Machine, after: int) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    machine.ends_at[after] = interrupt
    with pytest.raises(KeyboardInterrupt):
        session(store, machine)
    assert len(store.entries()) == after
    session(store, machine)
    assert is_whole(store)
    # warmed up again, no sample made twice
    samples = [spec for spec in machine.made if spec.seed < sweeping.WARM_UP_SEEDS]
    assert sorted(spec.seed for spec in samples) == [1, 1, 2, 2, 3, 3]
    assert sum(spec.seed > sweeping.WARM_UP_SEEDS for spec in machine.made) == (2 if after else 1)


def test_a_run_that_was_complete_and_not_noted_is_found_again(store: SweepStore, machine: Machine) -> None:
    runs = pending(store, SCENARIO)
    go_on(store, runs[:3], machine.perform, lambda *_: None)
    machine.perform(runs[3].spec, 3)  # and SIGKILL before its line
    journal = store.root / "journal.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"place":9,"rep')  # a torn line, too
    cut_off = store.root / "20260101-000000-symmetric-handoff-abc.partial"
    cut_off.mkdir()
    os.utime(cut_off, (1, 1))
    before = len(machine.made)
    session(store, machine)
    assert len(machine.made) - before == 1 + 3  # a warm-up and what is missing
    assert is_whole(store)
    assert not cut_off.exists()


def test_a_warm_up_is_never_taken_for_a_sample(store: SweepStore, machine: Machine) -> None:
    runs = pending(store, SCENARIO)
    machine.perform(runs[0].spec, 0)  # and SIGKILL before its line
    session(store, machine)
    assert is_whole(store)
    assert len(machine.made) == 8


def test_a_time_budget_ends_a_session_between_two_runs(store: SweepStore, machine: Machine) -> None:
    times = iter([0.0, 0.0, 30.0, 59.0, 61.0])
    end = session(store, machine, budget_min=1.0, clock=lambda: next(times))
    assert end == (4, "the time budget of 1 min is used up")
    assert len(machine.made) == 3
    session(store, machine)
    assert is_whole(store)


def test_a_full_disk_ends_a_session_and_costs_the_run_that_met_it(
    store: SweepStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill() -> None:
        monkeypatch.setattr(sweeping, "is_full", lambda _: True)
        raise OSError(errno.ENOSPC, "No space left on device")

    machine.ends_at[3] = fill
    with pytest.raises(StoreError, match="the disk is full") as caught:
        session(store, machine)
    assert "--resume" in str(caught.value.hint)
    assert len(store.entries()) == 3
    with pytest.raises(StoreError, match="the disk is full"):
        session(store, machine)
    monkeypatch.undo()
    session(store, machine)
    assert is_whole(store)


def test_a_run_that_failed_on_a_full_disk_is_thrown_away(
    store: SweepStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = pending(store, SCENARIO)[1].spec

    def perform(spec_now: RunSpec, done: int) -> RunResult:
        result = machine.perform(spec_now, done)
        if spec_now == spec:
            monkeypatch.setattr(sweeping, "is_full", lambda _: True)
            result.outcome = "failed"
        return result

    with pytest.raises(StoreError, match="the disk is full"):
        go_on(store, pending(store, SCENARIO), perform, lambda *_: None)
    assert len(list(store.root.glob("*/manifest.json"))) == 1


def test_a_line_that_the_disk_has_no_room_for_is_taken_back(
    store: SweepStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session(store, machine)
    journal = store.root / "journal.jsonl"
    before = journal.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        store.note(PlannedRun(99, 1, RunSpec()), machine.perform(RunSpec(), 0))
    assert journal.read_bytes() == before


def test_failures_stay_failures(store: SweepStore) -> None:
    performed = []

    def perform(spec: RunSpec, done: int) -> RunResult:
        performed.append(spec)
        return result_of(spec, "unsupported", error="not here")

    go_on(store, pending(store, SCENARIO), perform, lambda *_: None)
    assert pending(store, SCENARIO) == []
    samples = [row for row in store.rows() if row.repetition]
    assert [row.result.outcome for row in samples] == ["unsupported"] * 6
    assert [row.result.error for row in samples] == ["not here"] * 6


def test_more_repetitions_go_on_and_another_scenario_does_not(store: SweepStore) -> None:
    store.require_same(msgspec.structs.replace(SCENARIO, repetitions=9, time_budget_min=5), CONDITIONS)
    with pytest.raises(InvalidInput, match="another scenario"):
        store.require_same(msgspec.structs.replace(SCENARIO, run={"rtt_ms": 30.0}), CONDITIONS)


def test_runs_of_another_machine_are_not_mixed_in(store: SweepStore) -> None:
    with pytest.raises(
        InvalidInput, match=r"cannot be compared.*cpu: one and two; kernel: Linux 6 and Linux 7"
    ):
        store.require_same(SCENARIO, {"kernel": "Linux 7", "cpu": "two", "only_now": "x"})


def test_there_is_one_sweep_in_a_directory_and_one_who_goes_on(store: SweepStore) -> None:
    with pytest.raises(StoreError, match="already") as caught:
        SweepStore.create(store.root, SCENARIO, CONDITIONS)
    assert "--resume" in str(caught.value.hint)
    with store.locked(), pytest.raises(StoreError, match="somebody"), store.locked():
        pass


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "no sweep in"),
        ("{}", "format version none"),
        ('{"format_version": 9}', "format version 9"),
        ('{"format_version": 1}', "cannot be read"),
        ("[1", "cannot be read"),
    ],
)
def test_a_store_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None, expected: str) -> None:
    if text is not None:
        (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(StoreError, match=expected):
        SweepStore.open_(tmp_path)


# --- the command ---------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """``quicferry sweep`` on a machine that makes run directories and nothing else."""
    made = []

    def launch(spec: RunSpec, _topology: Any, store: Any, *_: Any) -> RunPaths:
        made.append(spec)
        return RunPaths(Path(run_directory(store.root, spec, number=len(made)).run_dir or ""))

    monkeypatch.setattr(performing, "ask_machine", lambda _: None)
    monkeypatch.setattr(performing, "launch", launch)
    monkeypatch.setattr(performing, "derive", lambda path, **_: sweeping.read_result(path))
    (tmp_path / "two.toml").write_text(
        "repetitions = 6\n[run]\nrtt_ms = 20.0\n"
        '[sweep]\nstrategy = ["symmetric", "pool"]\nrate_mbps = [5.0, 9.0]\n'
    )

    def call(*words: str) -> int:
        return main.call([*words, "--runs", str(tmp_path / "runs")])

    return call


def test_a_sweep_from_the_command_line_to_its_tables(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("sweep", str(tmp_path / "two.toml"))
    assert command(*words, "--repetitions", "3") == 0
    out, err = capsys.readouterr()
    assert "symmetric, rate_mbps 5" in out
    assert "3 of 3" in out
    assert "left)" in err
    assert command(*words) == 1
    assert "--resume" in capsys.readouterr().err
    assert command(*words, "--resume", "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["outcome"] for line in lines] == ["succeeded"] * 12  # the other three repetitions
    table = pl.read_parquet(tmp_path / "runs" / "sweeps" / "two" / "table.parquet")
    assert table.columns == list(columns())
    assert table.filter("sample").height == 24
    assert table.filter(~pl.col("sample")).height == 1
    assert set(table["rate_mbps"]) == {5.0, 9.0}
    metadata = json.loads(
        pl.read_parquet_metadata(tmp_path / "runs/sweeps/two/table.parquet")["quicferry.columns"]
    )
    assert metadata["service_migration_time_ms"]["unit"] == "ms"

    for form, ending in (("csv", "csv"), ("parquet", "parquet"), ("json", "json"), ("latex", "tex")):
        path = tmp_path / f"two.{ending}"
        assert command("export", form, "two", "-o", str(path)) == 0
        assert path.stat().st_size > 300
    exported = pl.read_csv(tmp_path / "two.csv")
    assert exported.height == 24
    assert (
        exported["service_migration_time_ms"].to_list()
        == table.filter("sample")["service_migration_time_ms"].to_list()
    )
    assert pl.read_parquet(tmp_path / "two.parquet").equals(table.filter("sample"))
    document = json.loads((tmp_path / "two.json").read_text())
    assert len(document["runs"]) == 24
    assert document["runs"][0]["contender"] in ("symmetric", "pool")
    tex = (tmp_path / "two.tex").read_text()
    assert tex.count(r" \\") == 5
    assert r"symmetric, rate\_mbps 5 & handoff & " in tex


def test_export_names_what_is_not_there(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("export", "csv", "nothing") == 1
    assert "no run 'nothing'" in capsys.readouterr().err
    assert command("export", "csv") == 1
    assert "no runs" in capsys.readouterr().err
    assert command("export", "xls", "nothing") == 2
    command("sweep", str(tmp_path / "two.toml"), "--repetitions", "1")
    assert command("export", "csv", "two", "-o", str(tmp_path / "no" / "x.csv")) == 1
    assert "cannot write" in capsys.readouterr().err


def test_a_sweep_of_what_this_machine_cannot_do_is_refused(
    command: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(_: Any) -> None:
        raise Unsupported("no root")

    monkeypatch.setattr(performing, "ask_machine", refuse)
    assert command("sweep", str(tmp_path / "two.toml")) == 127


def test_runs_of_two_machines_are_not_exported_as_one(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, cpu in enumerate(("one", "one", "two")):
        result = run_directory(tmp_path / "runs", RunSpec(seed=number), number=number)
        write_json(
            Path(result.run_dir or "") / "manifest.json",
            Manifest(
                id=str(number),
                created="",
                spec=RunSpec(),
                topology=TOPOLOGY,
                machine={"cpu": cpu},
                kernel="L",
            ),
        )
    assert command("export", "csv") == 2
    assert "cpu: one and two" in capsys.readouterr().err
    assert command("export", "csv", "--mixed") == 0
    assert capsys.readouterr().out.count("\n") == 4


# --- tables ---------------------------------------------------------------------------------------------


def test_every_axis_and_every_number_of_a_result_is_a_column() -> None:
    named = set(columns())
    assert [name for name in axes() if name not in named and f"{name}_asked" not in named] == []
    fields = set(RunResult.__struct_fields__)
    assert fields - named - LEFT_OUT == set()
    assert fields >= LEFT_OUT
    assert all(column.text.endswith(".") for column in columns().values())


def test_a_row_has_its_values_in_their_columns() -> None:
    result = result_of(RunSpec(rtt_ms=30.0, baseline="tcp-dns"), "failed", error="why")
    result.rtt_ms, result.phases_ms, result.breakdown_ms = 30.5, {"transfer": 4.0}, {"in-flight": 2.0}
    (row,) = tidy([Row("s", 4, 0, result)]).to_dicts()
    assert (row["sweep"], row["index"], row["sample"], row["outcome"]) == ("s", 4, False, "failed")
    assert (row["rtt_ms"], row["rtt_ms_asked"], row["contender"], row["kind"]) == (
        30.5,
        30.0,
        "tcp-dns",
        "baseline",
    )
    assert (row["phase_transfer_ms"], row["part_in_flight_ms"], row["phase_restore_ms"]) == (4.0, 2.0, None)


def test_latex_has_medians_with_intervals_and_escapes_what_means_something() -> None:
    rows = []
    for number in range(8):
        result = result_of(RunSpec(seed=number), "succeeded" if number else "failed")
        result.service_migration_time_ms = 10.0 + number
        rows.append(Row("", 0, 1, result))
    text = latex(rows)
    assert "proactive-explicit & handoff & 14.0 [11.0, 17.0] & -- & -- & 7/8" in text
    assert escape(r"a_b 5% & {c}\d~^#$") == (
        r"a\_b 5\% \& \{c\}\textbackslash{}d\textasciitilde{}\textasciicircum{}\#\$"
    )


def test_conditions_that_only_one_knows_do_not_count() -> None:
    one = Manifest(id="", created="", spec=RunSpec(), topology=TOPOLOGY, kernel="L", link_backend="plain")
    assert conditions_of(one) == {"kernel": "L"}
    assert differing({"kernel": "L", "criu": "4"}, {"kernel": "L", "runc": "1"}) == []


def test_the_time_left_is_told_in_words() -> None:
    assert time_left(0, 0, 10, 5) == ""
    assert time_left(0, 1, 10, 5) == "about 0:45 left"
    assert time_left(0, 10, 110, 60) == "about 10 min left"
    assert time_left(0, 10, 2010, 60) == "about 3 h 20 min left"


# --- combinations that are repeated less -----------------------------------------------------------------


def of_fewer(**values: Any) -> Scenario:
    given: dict[str, Any] = {"fewer": [{"baseline": "tcp-dns", "repetitions": 2, "warm_up": 0}], **values}
    sweep = {"strategy": ["symmetric"], "baseline": ["tcp-dns", "no-migration"]}
    return Scenario(repetitions=5, sweep=sweep, run={"engine": "criu-cold"}, **given)


def test_what_is_long_is_repeated_less_and_has_fewer_warm_ups() -> None:
    runs = plan(of_fewer())
    samples = collections.Counter(run.spec.baseline for run in runs if run.is_sample)
    assert samples == {None: 5, "no-migration": 5, "tcp-dns": 2}
    assert [run.spec.baseline for run in runs if not run.is_sample].count("tcp-dns") == 0
    assert collections.Counter(spec.baseline for spec in of_fewer().runs()) == samples


def test_runs_keep_their_places_when_more_are_asked_for() -> None:
    """A journal names runs by their place: that must not depend on what is left out."""
    places = {run.place: run for run in plan(of_fewer(fewer=[]))}
    fewer = plan(of_fewer())
    assert all(places[run.place] == run for run in fewer)
    assert len(fewer) < len(places)


def test_a_baseline_has_no_strategy_to_be_left_out_by() -> None:
    usual = RunSpec().strategy
    without = [{"strategy": str(usual)}]
    sweep = {"strategy": [str(usual), "pool"], "baseline": ["tcp-dns"]}
    cells = Scenario(sweep=sweep, run={"engine": "criu-cold"}, without=without).cells()
    assert [(cell.strategy, cell.baseline) for cell in cells if cell.baseline is None] == [("pool", None)]
    assert [cell.baseline for cell in cells if cell.baseline] == ["tcp-dns"]


def test_published_figures_fit_into_twenty_minutes() -> None:
    """By docs/reproduce.md: how many runs there are of what takes a minute, and of all."""
    for name, at_most, long_ones in (("fig4", 70, 3), ("fig5", 130, 2), ("fig6", 30, 2)):
        runs = plan(read_scenario(CHECKOUT / "scenarios" / "published" / f"{name}.toml"))
        assert len(runs) <= at_most, name
        assert sum(run.spec.baseline == "tcp-dns" for run in runs) == long_ones, name
