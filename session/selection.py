"""Which runs a command is about: sweeps and runs by name or directory, all of which can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quicferry.analysis.derive import read_result
from quicferry.analysis.tidy import Row
from quicferry.errors import InvalidInput, StoreError
from quicferry.experiment.store import RunStore
from quicferry.record import conditions_of, differing, read_manifest
from session.sweep import SweepStore

SWEEPS = "sweeps"  # below the folder of the runs


def sweep_root(name: str, runs_root: Path | None) -> Path:
    """The directory of the sweep of that name."""
    return RunStore(runs_root).root / SWEEPS / name


def select(words: Sequence[str], runs_root: Path | None, *, mixed: bool = False) -> list[Row]:
    """The runs that these words name: a sweep's or a run's directory or name; warm-ups are left out.

    Without words, all single runs. Raises ``StoreError`` when there is none of that name, or no run at
    all, and ``InvalidInput`` when runs were made on different machines or by different versions, unless
    ``mixed``.
    """
    store = RunStore(runs_root)
    rows: list[Row] = []
    for word in words or [str(path) for path in store.all()]:
        rows += _of_word(word, store, runs_root)
    if not rows:
        raise StoreError("no runs", hint="`quicferry runs list` shows what there is")
    if not mixed:
        require_comparable(rows)
    return rows


def _of_word(word: str, store: RunStore, runs_root: Path | None) -> list[Row]:
    for root in (Path(word), sweep_root(word, runs_root)):
        if (root / "sweep.json").is_file():
            return [row for row in SweepStore.open_(root).rows() if row.repetition > 0]
    direct = Path(word)
    path = direct if (direct / "manifest.json").is_file() else store.find(word)
    return [Row("", 0, 1, read_result(path))]


def require_comparable(rows: Sequence[Row]) -> None:
    """Raise ``InvalidInput`` when two of these runs cannot be compared, with all that differs."""
    known: dict[str, str] = {}
    first: dict[str, str] = {}  # condition -> the run that said so first
    for row in rows:
        if row.result.run_dir is None:
            continue
        conditions = conditions_of(read_manifest(Path(row.result.run_dir)))
        differences = differing(known, conditions)
        if differences:
            others = sorted({first[words.partition(":")[0]] for words in differences})
            raise InvalidInput(
                f"{row.result.run_id} cannot be compared with {', '.join(others)}: " + "; ".join(differences),
                hint="choose runs of one machine and version, or give --mixed to have them all the same",
            )
        for name, value in conditions.items():
            if name not in known:
                known[name], first[name] = value, str(row.result.run_id)
