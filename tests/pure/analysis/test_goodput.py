"""The rate of bulk traffic around a move, and what the emulator and the machine did meanwhile."""

from __future__ import annotations

import polars as pl
import pytest

import topologies
from quicferry.analysis.fidelity import add_fidelity
from quicferry.analysis.goodput import direction_of, goodput
from quicferry.capture.quic.packets import Direction
from quicferry.experiment.machine_load import LoadWatch
from quicferry.model import LinkReading, Shape
from quicferry.record import MachineLoad, Manifest, result_of
from quicferry.spec import RunSpec

MS = 1_000_000
FROZEN = 5_000 * MS


def traffic(rows: list[tuple[int, int, int]], direction: str = "to-client") -> pl.DataFrame:
    """Frames of (t_ms, length, new bytes)."""
    return pl.DataFrame(
        {
            "t_ns": [t * MS for t, _, _ in rows],
            "direction": [direction] * len(rows),
            "frame": ["STREAM"] * len(rows),
            "length": [length for _, length, _ in rows],
            "new_bytes": [new for _, _, new in rows],
        }
    )


def test_the_rate_comes_back_where_ninety_percent_of_it_are_reached_again() -> None:
    steady = [(t, 1250, 1250) for t in range(3_000, 5_000)]  # 10 Mbit/s
    slow = [(t, 1250, 1250) for t in range(5_200, 5_700, 2)]  # half of it
    again = [(t, 1250, 1250) for t in range(5_700, 7_000)]
    found = goodput(traffic([*steady, *slow, *again]), FROZEN, Direction.TO_CLIENT)
    assert found is not None
    assert found.before_mbps == pytest.approx(10)
    assert found.recovered_ms == pytest.approx(780, abs=20)  # the window must be nine tenths full
    rates = dict(found.curve)
    assert rates[-100.0] == pytest.approx(10, abs=0.2)
    assert rates[500.0] == pytest.approx(5, abs=0.2)
    assert found.sent_twice_bytes == 0


def test_what_was_sent_twice_after_the_freeze_is_counted() -> None:
    rows = [(t, 1000, 1000) for t in range(3_000, 5_000)]
    rows += [(t, 1000, 0) for t in range(5_100, 5_110)] + [(t, 1000, 1000) for t in range(5_110, 6_000)]
    found = goodput(traffic(rows), FROZEN, Direction.TO_CLIENT)
    assert found is not None
    assert found.sent_twice_bytes == 10_000


def test_a_rate_that_never_comes_back_is_not_known() -> None:
    rows = [(t, 1250, 1250) for t in range(3_000, 5_000)] + [(t, 100, 100) for t in range(5_200, 9_000, 5)]
    found = goodput(traffic(rows), FROZEN, Direction.TO_CLIENT)
    assert found is not None
    assert found.recovered_ms is None


def test_without_traffic_before_the_freeze_there_is_no_rate() -> None:
    assert goodput(traffic([(6_000, 1, 1)]), FROZEN, Direction.TO_CLIENT) is None
    assert goodput(traffic([(3_000, 1, 1)], "to-server"), FROZEN, Direction.TO_CLIENT) is None


def test_bulk_traffic_goes_one_way_or_is_not_measured() -> None:
    assert direction_of("requests", 0, 0) is None
    assert direction_of("requests", 5, 5) is None
    assert direction_of("download", 0, 0) is Direction.TO_CLIENT
    assert direction_of("requests", 0, 5) is Direction.TO_SERVER


def manifest(load: MachineLoad | None, **read_back: float) -> Manifest:
    reading = LinkReading(
        link="a--b", sender="a", receiver="b", backend="cable", asked=Shape(delay_ms=1),
        read_back=dict(read_back),
    )  # fmt: skip
    return Manifest(
        id="x",
        created="",
        spec=RunSpec(),
        topology=topologies.get("two_edges").build(),
        links=[reading],
        machine_load=load,
    )


QUIET = MachineLoad(others_percent=2.0, steal_percent=0.0, pressure_percent=10.0)


@pytest.mark.parametrize(
    ("load", "read_back", "word"),
    [
        (QUIET, {"late_p99_us": 90.0, "queue_full_packets": 7}, None),
        (QUIET, {"late_p99_us": 2400.0}, "2.4 ms late"),
        (QUIET, {"late_p99_us": 90.0, "overrun_frames": 3}, "too slow"),
        (MachineLoad(others_percent=60.0, steal_percent=0.0, pressure_percent=None), {}, "others took 60 %"),
        (
            MachineLoad(others_percent=0.0, steal_percent=12.0, pressure_percent=None),
            {},
            "hypervisor took 12 %",
        ),
    ],
)
def test_a_disturbed_run_is_marked_with_what_disturbed_it(
    load: MachineLoad, read_back: dict[str, float], word: str | None
) -> None:
    result = result_of(RunSpec(), "succeeded")
    add_fidelity(result, manifest(load, **read_back))
    assert result.disturbed is (word is not None)
    assert [warning for warning in result.warnings if word is None or word not in warning] == []
    assert (result.queue_full_packets or 0) == read_back.get("queue_full_packets", 0)
    assert result.cpu_others_percent == load.others_percent


def test_of_a_run_that_did_not_watch_nothing_is_said() -> None:
    result = result_of(RunSpec(), "succeeded")
    add_fidelity(result, manifest(None))
    assert (result.disturbed, result.warnings) == (None, [])


def test_the_load_by_others_and_what_is_stolen_are_shares_of_the_machine() -> None:
    load = LoadWatch().load()
    assert 0 <= load.others_percent <= 100
    assert 0 <= load.steal_percent <= 100
    assert load.pressure_percent is None or load.pressure_percent >= 0
