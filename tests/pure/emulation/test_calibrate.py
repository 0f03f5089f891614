"""The arithmetic of calibration, and the decisions of the link layer that need no kernel."""

from __future__ import annotations

import msgspec
import pytest

from quicferry.emulation.links.calibrate import nearest_rank, rate_of, wire_bytes_of
from quicferry.emulation.links.layer import GSO_MAX_SEGMENTS, choose_backend, train_segments, warnings_about
from quicferry.emulation.links.probes import PROBES
from quicferry.errors import InvalidInput
from quicferry.model import LinkReading, Shape


def test_percentiles_are_values_that_were_seen() -> None:
    assert nearest_rank([3.0, 1.0, 2.0], 50) == 2.0
    assert nearest_rank([3.0, 1.0, 2.0], 99) == 3.0
    assert nearest_rank([], 50) is None


def test_rate_of_an_even_train() -> None:
    # 1250 bytes each millisecond are 10 Mbit/s.
    assert rate_of([i * 1_000_000 for i in range(200)], 1250, 10) == pytest.approx(10)


def test_rate_does_not_count_pauses_of_the_sender() -> None:
    stamps = [i * 1_000_000 + (50_000_000 if i > 77 else 0) for i in range(200)]
    assert rate_of(stamps, 1250, 10) == pytest.approx(10)


@pytest.mark.parametrize("stamps", [[], [5], [5, 5]])
def test_rate_of_too_little_is_none(stamps: list[int]) -> None:
    assert rate_of(stamps, 1250, 10) is None


def test_two_frames_have_a_rate() -> None:
    assert rate_of([0, 1_000_000], 1250, 10) == pytest.approx(10)


@pytest.mark.parametrize(
    ("shape", "segments"),
    [
        (Shape(delay_ms=5), GSO_MAX_SEGMENTS),
        (Shape(delay_ms=5, loss_percent=0.1), 1),  # loss is per packet
        (Shape(delay_ms=5, jitter_ms=1), 1),  # so is jitter
        (Shape(delay_ms=5, rate_mbps=1000), 20),  # a quarter of a millisecond
        (Shape(delay_ms=5, rate_mbps=10), 1),
        (Shape(delay_ms=5, rate_mbps=1000, queue_packets=50), 5),  # a tenth of the queue
        (Shape(delay_ms=5, queue_packets=5), 1),
    ],
)
def test_offloaded_frames_are_short_where_it_matters(shape: Shape, segments: int) -> None:
    assert train_segments(shape, 1500) == segments


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InvalidInput, match="no link backend") as caught:
        choose_backend("ether")
    assert caught.value.hint == "use auto, netem or cable"


def test_the_probes_have_the_names_that_tests_and_doctor_use() -> None:
    assert {probe.name for probe in PROBES} == {"netns", "veth", "netem", "shaped-link"}


def reading(**words: str | int | float) -> LinkReading:
    return LinkReading(
        link="a--b", sender="a", receiver="b", backend="cable", asked=Shape(), read_back=dict(words)
    )


def test_a_punctual_cable_is_nothing_to_warn_about() -> None:
    assert warnings_about([reading(late_p99_us=900.0, overrun_frames=0, scheduler="fifo"), reading()]) == []


def test_lateness_lost_frames_and_a_common_scheduler_are_told() -> None:
    told = warnings_about([reading(late_p99_us=2500.0, overrun_frames=3, scheduler="other")])
    assert told[0] == "a to b: 1 % of the packets were more than 2.5 ms late"
    assert told[1].startswith("a to b: 3 frames were lost")
    assert "SCHED_FIFO" in told[2]


def test_a_rate_is_a_number_that_a_result_can_hold() -> None:
    frame_bytes = wire_bytes_of(bytes(10 + 1514))
    assert frame_bytes == 1514
    rate = rate_of([0, 1_000_000, 2_000_000], frame_bytes, 1)
    assert msgspec.json.encode((frame_bytes, rate)) == b"[1514,12.112]"
