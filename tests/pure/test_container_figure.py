"""The figure of the containers' bench: what stands in its rows, and that their phases are the downtime."""

import pytest

from bench.bench_containers import Row, draw, draw_overview, refusals
from bench.container_figure import bars, comparison
from quicferry.record import RunResult


def line(engine, **more):
    given = {
        "memory_mib": 0, "inter_edge_mbps": 100.0, "runs": 1, "downtime_ms": 500.0,
        "downtime_least_ms": 500.0,
        "downtime_most_ms": 500.0, "dump_ms": 100.0, "restore_ms": 900.0, "restore_began_ms": 150.0,
        "service_migration_ms": 520.0,
        "request_hit_ms": 530.0, "transferred_mb": 6.0,
    }  # fmt: skip
    return Row(engine, **(given | more))


def test_rows_are_by_technique_and_phases_add_up_to_the_downtime(tmp_path):
    lines = [
        line("published-cold", downtime_ms=900.0),
        line("runc-cold"),
        line("podman-cold", downtime_ms=700.0),
        line("runc-hybrid", downtime_ms=None),
        line("runc-post-copy", inter_edge_mbps=1000.0),
    ]
    rows = bars(lines, 0, 100.0)
    assert [row.label for row in rows] == [
        "paper, cold", "published-cold", "runc-cold", "podman-cold",
        "paper, pre-copy", "paper, post-copy", "paper, hybrid",
    ]  # fmt: skip
    assert [round(row.downtime_ms) for row in rows[:4]] == [3230, 900, 500, 700]
    cut = (rows[2].rest_ms, rows[2].restore_ms)
    assert cut == (50.0, 350.0), "what follows the server's first word is no downtime"

    assert not bars([line("runc-cold", memory_mib=5)], 5, 1.0)
    draw(tmp_path, lines)
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {
        f"containers-0-mib-{rate}-mbps.{form}" for rate in (100, 1000) for form in ("png", "svg")
    }


@pytest.mark.parametrize(
    ("engine", "downtime_ms", "said"),
    [
        ("published-cold", 900.0, ""),
        ("runc-cold", 450.0, "2.0x shorter (goal 1.5)"),
        ("podman-cold", 1800.0, "2.0x longer"),
        ("runc-post-copy", 200.0, "3.0x shorter (goal 3)"),
        ("runc-hybrid", 300.0, "3.0x shorter than published-cold"),
        ("runc-pre-copy", None, ""),
    ],
)
def test_each_is_beside_the_same_technique_as_published_in_the_same_cell(engine, downtime_ms, said):
    measured = line(engine, downtime_ms=downtime_ms)
    published = [line("published-cold", downtime_ms=900.0), line("published-post-copy", downtime_ms=600.0)]
    assert comparison(measured, [*published, measured]) == said
    elsewhere = [line(each.engine, memory_mib=240) for each in published]
    assert not comparison(measured, elsewhere)


def test_what_the_machine_cannot_run_has_a_row_with_the_reason(tmp_path):
    results = [
        RunResult(
            outcome="unsupported", strategy="reactive-explicit", engine="published-hybrid", seed=1,
            error="oci-pre-dump: this kernel does not track which pages were written",
        ),
        RunResult(
            outcome="unsupported", strategy="reactive-explicit", engine="podman-cold", seed=1,
            error="podman: there is no podman",
        ),
    ]  # fmt: skip
    refused = refusals(results)
    assert refused == {
        "published-hybrid": "not on this machine: needs soft-dirty tracking",
        "podman-cold": "not on this machine: podman",
    }
    lines = [line("published-cold"), line("runc-hybrid"), line("runc-hybrid", memory_mib=240)]
    rows = {row.label: row for row in bars(lines, 0, 100.0, refused)}
    assert (rows["published-hybrid"].downtime_ms, rows["podman-cold"].note) == (0.0, refused["podman-cold"])
    draw_overview(tmp_path, lines, refused)
    assert {path.name for path in tmp_path.iterdir()} == {"containers.png", "containers.svg"}
    assert (tmp_path / "containers.png").stat().st_size > 10_000
