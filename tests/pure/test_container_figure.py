"""The figure of the containers' bench: what stands in its rows, and that their phases are the downtime."""

from bench.bench_containers import Row, draw
from bench.container_figure import bars


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
