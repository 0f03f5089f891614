"""Where runs are played: one process for each, or one for all; with a process that only pretends to play."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from quicferry.errors import StoreError
from quicferry.events import Event
from quicferry.experiment import stage
from quicferry.experiment.stage import LOG, FreshStage, KeptStage
from quicferry.process import Popen, spawn
from quicferry.record import RunPaths

#: Plays as ``session.play`` does. A run whose id begins with "die" ends it in the middle.
PLAYER = """
    import json, os, sys

    print("loading", file=sys.stderr, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps({"name": "run.deploy.started", "t_ns": os.getpid(), "vantage": "run"}), flush=True)
        print("a library prints something", flush=True)
        if order["run_id"].startswith("die"):
            sys.exit(7)
        print(json.dumps({"over": order["run_id"]}, separators=(",", ":")), flush=True)
        if sys.argv[1] == "--once":
            break
"""


class Pretended:
    """A private root that is none: the command runs as it is."""

    def __init__(self, process: Popen[bytes], run_id: str | None) -> None:
        self.process, self.run_id = process, run_id
        self.poll, self.wait = process.poll, process.wait

    def kill(self) -> int:
        self.process.kill()
        return self.process.wait()

    def stands_still(self) -> bool:
        """The guard asks as soon as a run takes 0.2 s, as it may on a busy machine."""
        return False


@pytest.fixture
def roots(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Pretended]]:
    """The private roots that were made, in their order."""
    (tmp_path / "player.py").write_text(textwrap.dedent(PLAYER))
    made: list[Pretended] = []

    def start(
        argv: Sequence[str],
        *,
        run_id: str | None,
        stdin: int,
        stdout: int,
        stderr: IO[bytes],
        env: Mapping[str, str],
        cwd: Path,
    ) -> Any:
        env = {**env, "PYTHONPATH": str(tmp_path)}
        made.append(
            Pretended(spawn(argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd), run_id)
        )
        return made[-1]

    monkeypatch.setattr(stage.private_root, "start", start)
    monkeypatch.setattr(stage.cgroups, "remove_of_run", lambda _: [])
    yield made
    assert all(root.process.poll() is not None for root in made), "something was left running"


def paths_of(tmp_path: Path, run_id: str) -> RunPaths:
    paths = RunPaths(tmp_path / run_id)
    paths.logs.mkdir(parents=True)
    return paths


def played(where: KeptStage | FreshStage, tmp_path: Path, run_id: str) -> tuple[str, list[int]]:
    """How the process ended, and who told its events."""
    told: list[Event] = []
    status = where.play(paths_of(tmp_path, run_id), run_id, told.append)
    return status, [event.t_ns for event in told]


def test_a_kept_stage_has_one_process_for_all_runs(tmp_path: Path, roots: list[Pretended]) -> None:
    kept = KeptStage("player", tmp_path / "runs")
    first, second = played(kept, tmp_path, "one"), played(kept, tmp_path, "two")
    (root,) = roots
    assert first == second == ("", [root.process.pid])
    # its folder carries the name by which `clean` sees that somebody needs it
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == f"{root.run_id}.partial"
    kept.close()
    assert list((tmp_path / "runs").iterdir()) == []
    kept.close()


def test_a_process_that_dies_is_replaced_and_its_words_are_kept(
    tmp_path: Path, roots: list[Pretended]
) -> None:
    kept = KeptStage("player", tmp_path / "runs")
    assert played(kept, tmp_path, "one")[0] == ""
    assert "status 7" in played(kept, tmp_path, "die")[0]
    assert "loading" in (tmp_path / "die" / "logs" / LOG).read_text()
    assert played(kept, tmp_path, "three") == ("", [roots[1].process.pid])
    roots[1].kill()  # between two runs
    assert played(kept, tmp_path, "four") == ("", [roots[2].process.pid])
    kept.close()


def test_an_interruption_ends_the_process(tmp_path: Path, roots: list[Pretended]) -> None:
    def interrupted(_: Event) -> None:
        raise KeyboardInterrupt

    for where in (KeptStage("player", tmp_path / "runs"), FreshStage("player")):
        with pytest.raises(KeyboardInterrupt):
            where.play(paths_of(tmp_path, f"one-{len(roots)}"), "one", interrupted)
        assert roots[-1].process.poll() is not None


def test_a_fresh_stage_has_a_process_for_each_run_and_may_start_it_ahead(
    tmp_path: Path, roots: list[Pretended]
) -> None:
    fresh = FreshStage("player")
    fresh.prepare()
    fresh.prepare()
    assert len(roots) == 1
    how, told = played(fresh, tmp_path, "one")  # its process ends with the run
    assert "status 0" in how
    assert told == [roots[0].process.pid]
    assert roots[0].run_id == "one"
    how, told = played(fresh, tmp_path, "die")
    assert "status 7" in how
    assert told == [roots[1].process.pid]
    fresh.prepare()
    fresh.close()
    assert roots[2].process.poll() is not None
    assert sys.executable in roots[2].process.args


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, roots: list[Pretended]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot make a folder for the network"):
        played(KeptStage("player", tmp_path / "file"), tmp_path, "one")
    assert roots == []
