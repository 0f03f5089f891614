"""Help for the baselines' runs: perform one as its user would, and read what it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from quicferry import process
from quicferry.events import Event, read_events
from quicferry.paths import CHECKOUT
from quicferry.record import Manifest, RunPaths, read_manifest


class Performed(NamedTuple):
    """A run that succeeded."""

    result: dict[str, Any]
    events: list[Event]
    manifest: Manifest
    paths: RunPaths

    def at_ms(self, name: str) -> float:
        """When the first event of that name happened, after the server froze."""
        frozen = next(event.t_ns for event in self.events if event.name == "server.frozen")
        return (next(event.t_ns for event in self.events if event.name == name) - frozen) / 1e6

    def tshark(self, host: str, wanted: str, *fields: str) -> list[list[str]]:
        """Fields of the packets of a host's capture that a display filter keeps."""
        argv: list[str | Path] = [
            "tshark",
            "-n",
            "-r",
            self.paths.captures / f"{host}.pcapng",
            "-Y",
            wanted,
            "-T",
            "fields",
        ]
        done = process.run([*argv, *(word for field in fields for word in ("-e", field))], timeout_s=120)
        return [line.split("\t") for line in done.stdout.splitlines()]


def command(tmp_path: Path, *arguments: str) -> process.Result:
    """``quicferry run`` to its end."""
    return process.run(
        [CHECKOUT / "bin" / "quicferry", "run", "--json", "--runs", tmp_path, *arguments],
        check=False,
        timeout_s=120.0,
    )


def perform(tmp_path: Path, baseline: str, *arguments: str) -> Performed:
    """A run of a baseline in which nothing went wrong."""
    done = command(tmp_path, "--baseline", baseline, *arguments)
    assert done.status == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    assert (result["outcome"], result["kind"], result["strategy"]) == ("succeeded", "baseline", baseline)
    assert (result["requests_lost"], result["requests_duplicated"]) == (0, 0), result
    assert result["requests_sent"] > 50
    assert result["state_ok"] is True
    assert result["packets_undecrypted"] == 0
    paths = RunPaths(Path(result["run_dir"]))
    return Performed(result, read_events(paths.events), read_manifest(paths.root), paths)
