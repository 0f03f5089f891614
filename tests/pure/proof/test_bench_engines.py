"""The benches measure containers beside bare processes: which engines they run follows from the table."""

from __future__ import annotations

import msgspec

from bench import bench_cost, bench_migration
from quicferry.migration.engines.registry import image_engines
from tests import explored

TECHNIQUES = ("cold", "pre-copy", "post-copy", "hybrid")


def test_each_technique_is_there_for_a_process_and_for_a_container() -> None:
    ours = [f"{kind}-{technique}" for kind in ("criu", "runc") for technique in TECHNIQUES]
    assert image_engines()[: len(ours)] == ours
    assert {spec.engine for spec in bench_migration.cells()} == {"handoff", *ours}
    assert {curve.series for curve in bench_cost.memory()} == {"handoff", *ours}
    assert {curve.series for curve in bench_cost.moves()} == {"handoff", "criu-hybrid", "runc-hybrid"}


def test_bytes_that_cross_in_the_downtime_are_a_limit_of_cold_moves_alone() -> None:
    limits = {curve.series: curve.points[-1].limit for curve in bench_cost.memory()}
    assert {engine for engine, limit in limits.items() if limit is not None and limit > 2000} == {
        "criu-cold",
        "runc-cold",
    }


def test_an_engine_that_the_machine_cannot_run_has_no_line() -> None:
    results = [
        msgspec.structs.replace(explored.GOOD, engine="runc-cold", container_downtime_ms=100.0),
        msgspec.structs.replace(explored.GOOD, engine="criu-cold", container_downtime_ms=90.0),
    ]
    every = {line.what for line in bench_migration.promises(results, 1.0, {})}
    fewer = {line.what for line in bench_migration.promises(results, 1.0, {"runc-cold", "runc-hybrid"})}
    assert "runc-cold, +0 MiB, 1 Gbit/s: container downtime" in every - fewer
    assert {line.partition(":")[0].partition(",")[0] for line in every - fewer} == {
        "runc-cold",
        "runc-hybrid",
    }
