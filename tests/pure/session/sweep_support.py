"""Run directories with a manifest and a result, and nothing that was ever measured."""

from __future__ import annotations

from pathlib import Path

import topologies
from quicferry.record import Manifest, RunPaths, RunResult, result_of, write_json
from quicferry.spec import RunSpec

TOPOLOGY = topologies.get("two_edges").build_from_axes({}, {})


def run_directory(store: Path, spec: RunSpec, *, number: int, time_ms: float | None = None) -> RunResult:
    """Write a complete run that succeeded; returns its result."""
    root = store / f"20260101-{number:06}-run"
    write_json(
        root / "manifest.json",
        Manifest(id=root.name, created="", spec=spec, topology=TOPOLOGY, outcome="succeeded", kernel="Linux"),
    )
    result = result_of(spec, "succeeded")
    result.service_migration_time_ms = 20.0 + number / 10 if time_ms is None else time_ms
    result.run_id, result.run_dir = root.name, str(root)
    write_json(RunPaths(root).result, result)
    return result
