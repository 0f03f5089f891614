"""Runs in places that cannot take them, and over a path that cannot: said in words, none stays "running"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from quicferry.paths import CHECKOUT
from quicferry.process import Result, run

TOOL = str(CHECKOUT / "bin" / "quicferry")
SHORT = ("--before-s", "0.3", "--after-s", "0.2", "--json")
#: Mounts a tmpfs with the options $2 on $1, and becomes the rest.
ON_TMPFS = 'mount -t tmpfs -o "$2" tmpfs "$1" && shift 2 && exec "$@"'


class Ended(NamedTuple):
    """How the tool ended whose runs are in a file system of their own, and what it has left there."""

    done: Result
    outcomes: list[str]

    @property
    def error(self) -> str:
        """What ``--json`` said."""
        return str(json.loads(self.done.stdout)["error"])


def run_on_tmpfs(folder: Path, options: str) -> Ended:
    """Perform a run whose directory is on a new tmpfs, mounted with these options."""
    folder.mkdir()
    after = 'cat "$1"/*/manifest.json >&3 2>/dev/null; ls "$1" >&3'
    script = f'("$2" run --runs "$1" {" ".join(SHORT)}); status=$?; exec 3>"$3"; {after}; exit $status'
    told = folder.parent / "told"
    argv = ["unshare", "--mount", "sh", "-c", ON_TMPFS, "sh", str(folder), options]
    done = run([*argv, "sh", "-c", script, "sh", str(folder), TOOL, str(told)], check=False, timeout_s=300)
    assert "Traceback" not in done.stderr
    words = told.read_text()
    assert ".partial" not in words
    return Ended(done, [line.split('"')[3] for line in words.splitlines() if '"outcome"' in line])


@pytest.mark.needs("mininet", "tshark", "shaped-link")
@pytest.mark.parametrize(
    ("options", "said", "outcomes"),
    [
        ("size=64k", "cannot make a run directory: No space left on device", []),
        ("ro", "cannot make a run directory: Read-only file system", []),
        ("size=420k", "the disk with the run directory is full", ["failed"]),
    ],
    ids=["full", "read-only", "fills up"],
)
def test_a_run_whose_directory_cannot_be_written(
    tmp_path: Path, options: str, said: str, outcomes: list[str]
):
    ended = run_on_tmpfs(tmp_path / "runs", options)
    assert said in ended.error
    assert ended.done.status == 1
    assert ended.outcomes == outcomes


@pytest.mark.needs("mininet", "tshark", "shaped-link")
def test_requests_of_twenty_mbit_over_two_are_no_measurement(tmp_path: Path):
    load = ("--rate-mbps", "2", "--interval-ms", "10", "--response-bytes", "25000")
    argv = [TOOL, "run", "--runs", str(tmp_path), *load, *SHORT, "--before-s", "1"]
    done = run(argv, check=False, timeout_s=300)
    result: dict[str, Any] = json.loads(done.stdout)
    assert (done.status, result["outcome"]) == (3, "overloaded")
    assert "the path carried less than was offered" in result["error"]
    assert result["service_migration_time_ms"] is None
    assert result["connection_overhead_ms"] is None


def test_an_output_that_cannot_be_written():
    script = 'exec "$0" topo list >/dev/full'
    done = run(["sh", "-c", script, TOOL], check=False)
    assert done.status == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
