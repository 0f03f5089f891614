"""A sweep: the runs of a scenario in random order, in a store of their own, and how it goes on after an end.

``plan`` says which runs there are, from the scenario alone: whoever goes on with a sweep plans the same. The
store is a directory:

    sweep.json      the scenario and the conditions: machine, kernel, versions, source
    journal.jsonl   one line for each run that is over, written through to the disk
    <run id>/       the raw runs, as any other
    table.parquet   one row for each run that is over, made from the rest (``quicferry.analysis.tidy``)

Nothing is lost at any moment: a run that is complete and has no line yet is found again, a torn line
is one that was not written, and a run that was cut off is made again. Failures are kept and are not repeated.
"""

from __future__ import annotations

import collections
import datetime
import errno
import fcntl
import os
import platform
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from quicferry import __version__
from quicferry.analysis.derive import read_result
from quicferry.analysis.tidy import Row, tidy, write_table
from quicferry.emulation.sandbox import ownership
from quicferry.errors import UNDECODABLE, FerryError, InvalidInput, StoreError
from quicferry.experiment.machine import machine
from quicferry.experiment.run import package_versions
from quicferry.record import RunResult, differing, read_manifest, write_json
from quicferry.spec import RunSpec
from session.scenario import Scenario

FORMAT_VERSION = 1
#: A run is not begun with less free space; the largest runs have captures of some tens of MiB.
LEAST_FREE_BYTES = 256 << 20
WARM_UP_SEEDS = 10_000  # added to the seed of a warm-up: more than there can be repetitions


class PlannedRun(NamedTuple):
    """One run of a sweep. ``place`` is its place in the plan, by which the journal names it."""

    place: int
    repetition: int  # from 1; 0: a warm-up, which is no sample
    spec: RunSpec

    @property
    def is_sample(self) -> bool:
        """Whether the run counts."""
        return self.repetition > 0


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A run that is over: a line of ``journal.jsonl``. ``result`` stands there when there is no directory."""

    place: int
    repetition: int
    run_id: str | None = None
    result: RunResult | None = None


class SweepRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``sweep.json``."""

    format_version: int = FORMAT_VERSION
    title: str
    created: str  # ISO 8601, UTC
    scenario: Scenario
    conditions: dict[str, str]
    tool_version: str = __version__


class SweepEnd(NamedTuple):
    """How a session of a sweep ended. ``missing``: runs that are still to be made."""

    missing: int
    reason: str | None  # why there are any


def conditions_now() -> dict[str, str]:
    """The conditions under which a run would be made now; what is only known in a run is not among them."""
    kernel = f"{platform.system()} {platform.release()}"
    return {"kernel": kernel, "quicferry": __version__, **package_versions(), **machine()}


def plan(scenario: Scenario) -> list[PlannedRun]:
    """All runs of a scenario in the order in which they are made. Raises ``InvalidInput``.

    Warm-ups come first: of each kind, by engine and baseline, as many as the scenario says. Then one
    repetition of all cells after the other, each in an order of its own that the seed decides: what changes
    slowly on a machine meets all cells alike, and what one run leaves behind not always the same next one.
    """
    cells = scenario.cells()
    drawn = random.Random(f"order {cells[0].seed}")
    kinds = {(spec.engine, spec.baseline): spec for spec in reversed(cells)}
    order = [
        # with seeds that no sample has: a warm-up is never taken for one
        (0, spec, msgspec.structs.replace(spec, seed=spec.seed + WARM_UP_SEEDS + number))
        for number in range(scenario.warm_up)
        for spec in reversed(list(kinds.values()))
    ]
    for repetition in range(1, scenario.repetitions + 1):
        block = list(cells)
        drawn.shuffle(block)
        order += [(repetition, s, msgspec.structs.replace(s, seed=s.seed + repetition - 1)) for s in block]
    # what is repeated less keeps the places of what is left out: they stay the same when more is asked for
    planned: list[PlannedRun] = []
    warmed: collections.Counter[int] = collections.Counter()
    for place, (repetition, cell, spec) in enumerate(order):
        if repetition == 0:
            warmed[id(cell)] += 1
            if warmed[id(cell)] > scenario.warm_ups_of(cell):
                continue
        elif repetition > scenario.repetitions_of(cell):
            continue
        planned.append(PlannedRun(place, repetition, spec))
    return planned


class SweepStore:
    """The directory of a sweep. Made by ``create`` or ``open_``."""

    def __init__(self, root: Path, record: SweepRecord) -> None:
        self.root = root
        self.record = record
        self.table = root / "table.parquet"
        self._journal = root / "journal.jsonl"

    @classmethod
    def create(cls, root: Path, scenario: Scenario, conditions: dict[str, str]) -> SweepStore:
        """Make the directory of a new sweep. Raises ``StoreError`` when there is something already."""
        if (root / "sweep.json").exists():
            raise StoreError(
                f"there is a sweep in {root} already",
                hint="give --resume to go on with it, or another directory with -o",
            )
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = SweepRecord(title=scenario.title, created=now, scenario=scenario, conditions=conditions)
        try:
            write_json(root / "sweep.json", record)
        except OSError as error:
            raise StoreError(
                f"cannot make the sweep's directory {root}: {error.strerror}", hint="give another with -o"
            ) from error
        return cls(root, record)

    @classmethod
    def open_(cls, root: Path) -> SweepStore:
        """The sweep in a directory. Raises ``StoreError``."""
        path = root / "sweep.json"
        try:
            raw = path.read_bytes()
        except OSError as error:
            raise StoreError(f"there is no sweep in {root}", hint="`quicferry sweep` makes one") from error
        try:
            version = msgspec.json.decode(raw, type=dict[str, msgspec.Raw]).get("format_version")
            if version is None or msgspec.json.decode(version) != FORMAT_VERSION:
                raise StoreError(
                    f"{path} is of format version {bytes(version or b'none').decode()}, this program reads "
                    f"{FORMAT_VERSION}",
                    hint="read it with the version that made it (tool_version)",
                )
            return cls(root, msgspec.json.decode(raw, type=SweepRecord))
        except UNDECODABLE as error:
            raise StoreError(f"{path} cannot be read: {error}", hint="it was damaged") from error

    def require_same(self, scenario: Scenario, conditions: dict[str, str]) -> None:
        """Raise ``InvalidInput`` when a scenario, or the machine of now, does not go with what is there.

        Other numbers of repetitions than before and another time budget are no difference.
        """

        def fixed(scenario: Scenario) -> Scenario:
            return msgspec.structs.replace(scenario, repetitions=1, fewer=[], time_budget_min=None, title="")

        if fixed(scenario) != fixed(self.record.scenario):
            raise InvalidInput(
                f"the sweep in {self.root} is of another scenario",
                hint="give another directory with -o: runs of two scenarios are not mixed",
            )
        differences = differing(self.record.conditions, conditions)
        if differences:
            raise InvalidInput(
                f"the runs in {self.root} cannot be compared with new ones: " + "; ".join(differences),
                hint="begin a new one elsewhere: with -o, or with --runs for `quicferry reproduce`",
            )

    def with_scenario(self, scenario: Scenario) -> SweepStore:
        """The same sweep with a scenario that ``require_same`` has let pass, as one of more repetitions."""
        record = msgspec.structs.replace(self.record, scenario=scenario)
        write_json(self.root / "sweep.json", record)
        return SweepStore(self.root, record)

    def write_table(self) -> None:
        """Make ``table.parquet`` of the runs that are over. Raises ``StoreError``."""
        try:
            write_table(tidy(self.rows()), self.table)
        except OSError as error:
            raise StoreError(f"cannot write {self.table}: {error.strerror}", hint="make room") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else may go on with this sweep meanwhile. Raises ``StoreError`` when somebody does."""
        try:
            file = (self.root / ".lock").open("w")
        except OSError as error:
            raise StoreError(f"cannot write in {self.root}: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreError(f"somebody goes on with the sweep in {self.root} at this moment") from error
            yield

    def entries(self) -> list[JournalEntry]:
        """The runs that are over, each once. A line that is torn or damaged counts as not written."""
        found: dict[int, JournalEntry] = {}
        for entry in self._lines():
            found.setdefault(entry.place, entry)
        return list(found.values())

    def _lines(self) -> Iterator[JournalEntry]:
        try:
            lines = self._journal.read_bytes().split(b"\n")
        except OSError:
            return
        for line in lines:
            try:
                yield msgspec.json.decode(line, type=JournalEntry)
            except UNDECODABLE:
                continue

    def note(self, planned: PlannedRun, result: RunResult) -> None:
        """Write down that a run is over, through to the disk. Raises ``OSError``."""
        has_directory = bool(result.run_dir)
        self._append(
            JournalEntry(
                place=planned.place,
                repetition=planned.repetition,
                run_id=result.run_id if has_directory else None,
                result=None if has_directory else result,
            )
        )

    def _append(self, entry: JournalEntry) -> None:
        # an empty line first: what a crash has torn off before it stays by itself
        data = b"\n" + msgspec.json.encode(entry) + b"\n"
        with self._journal.open("ab") as file:
            before = file.tell()
            try:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self._journal, before)
                raise

    def adopt(self, pending: Sequence[PlannedRun]) -> list[PlannedRun]:
        """Note complete runs that have no line, as after a SIGKILL between the two; returns what is left.

        Directories of runs that were cut off are removed.
        """
        ownership.clean(self.root, partial=True)
        known = {entry.run_id for entry in self._lines()}
        left = list(pending)
        for path in sorted(self.root.glob("*/manifest.json")):
            run_id = path.parent.name
            if run_id in known or run_id.endswith(ownership.PARTIAL_SUFFIX):
                continue
            spec = read_manifest(path.parent).spec
            match = next((planned for planned in left if planned.spec == spec), None)
            if match is not None:
                self._append(JournalEntry(place=match.place, repetition=match.repetition, run_id=run_id))
                left.remove(match)
        return left

    def rows(self) -> list[Row]:
        """The runs that are over, warm-ups too, each with its result, in the plan's order.

        A run whose directory somebody has removed is left out. Raises ``StoreError``.
        """
        planned = {run.place: run for run in plan(self.record.scenario)}
        found = []
        for entry in sorted(self.entries(), key=lambda entry: entry.place):
            result = entry.result
            if entry.run_id is not None:
                if not (self.root / entry.run_id / "manifest.json").is_file():
                    continue
                result = read_result(self.root / entry.run_id)
            if result is not None:
                if entry.place in planned:
                    # without the downtime that a baseline borrowed: that differs from run to run
                    result.spec = planned[entry.place].spec
                found.append(Row(self.root.name, entry.place, entry.repetition, result))
        return found


Perform = Callable[[RunSpec, int], RunResult]
OnResult = Callable[[PlannedRun, RunResult], None]


def pending(store: SweepStore, scenario: Scenario) -> list[PlannedRun]:
    """The runs that are still to be made; warm-ups of what is among them come first, again.

    Who goes on does so on a machine that is as cold as it was at the beginning.
    """
    runs = plan(scenario)
    over = {entry.place for entry in store.entries() if entry.repetition > 0}
    samples = store.adopt([run for run in runs if run.is_sample and run.place not in over])
    kinds = {(run.spec.engine, run.spec.baseline) for run in samples}
    warm_ups = [run for run in runs if not run.is_sample and (run.spec.engine, run.spec.baseline) in kinds]
    return [*warm_ups, *samples]


def go_on(
    store: SweepStore,
    runs: Sequence[PlannedRun],
    perform: Perform,
    on_result: OnResult,
    budget_min: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> SweepEnd:
    """Make runs, one after another, and note each; until all are over or the time budget is used up.

    Raises ``StoreError`` when the disk is full: the run that met it is thrown away, as it says nothing, and
    what was measured before is kept.
    """
    until = None if budget_min is None else clock() + budget_min * 60
    for done, planned in enumerate(runs):
        if until is not None and clock() >= until:
            return SweepEnd(len(runs) - done, f"the time budget of {budget_min:g} min is used up")
        require_space(store.root)
        try:
            result = perform(planned.spec, done)
        except (OSError, FerryError) as error:
            _raise_if_full(store.root, error)
            raise
        finish(store, planned, result, on_result)
    return SweepEnd(0, None)


def finish(store: SweepStore, planned: PlannedRun, result: RunResult, on_result: OnResult) -> None:
    """Note a run that is over. Raises ``StoreError`` as ``go_on`` does."""
    if result.outcome != "succeeded" and is_full(store.root):
        if result.run_dir:
            shutil.rmtree(result.run_dir, ignore_errors=True)
        require_space(store.root)
    try:
        store.note(planned, result)
    except OSError as error:
        _raise_if_full(store.root, error)
        raise StoreError(f"cannot write into {store.root}: {error.strerror}") from error
    on_result(planned, result)


def is_full(root: Path) -> bool:
    """Whether there is too little space for another run."""
    return shutil.disk_usage(root).free < LEAST_FREE_BYTES


def require_space(root: Path) -> None:
    """Raise ``StoreError`` when there is too little space for another run."""
    if is_full(root):
        raise _full(root)


def _raise_if_full(root: Path, error: Exception) -> None:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or is_full(root):
        raise _full(root) from error


def _full(root: Path) -> StoreError:
    free_mib = shutil.disk_usage(root).free >> 20
    return StoreError(
        f"the disk is full: {free_mib} MiB are left at {root}, a run wants {LEAST_FREE_BYTES >> 20}",
        hint="make room, then go on with --resume: what was measured is kept",
    )
