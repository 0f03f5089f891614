"""The cable's decision for each frame, in virtual time."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quicferry.emulation.links.cable import fate
from quicferry.emulation.links.cable.due import Heap, pop, push
from quicferry.emulation.links.cable.fate import LOST, QUEUE_FULL
from quicferry.emulation.links.cable.lanes import DRAWS, LOSS, Lanes, wants
from quicferry.model import Shape
from tests.cable_support import Direction

MS = 1_000_000


def direction(**shape: float | int) -> Direction:
    return Direction(Shape(**shape))  # type: ignore[arg-type] # mixed numbers


def test_a_shape_that_does_nothing_releases_at_arrival() -> None:
    assert direction().schedule(123_456, 1514) == 123_456


def test_delay_is_added_to_the_time_of_arrival() -> None:
    assert direction(delay_ms=20).schedule(5 * MS, 60) == 25 * MS


def test_frames_at_the_rate_follow_each_other_without_a_gap_or_a_burst() -> None:
    lane = direction(rate_mbps=10)
    # 1250 bytes at 10 Mbit/s take 1 ms.
    assert [lane.schedule(0, 1250) for _ in range(5)] == [1 * MS, 2 * MS, 3 * MS, 4 * MS, 5 * MS]


def test_an_idle_link_saves_nothing_up() -> None:
    lane = direction(rate_mbps=10)
    lane.schedule(0, 1250)
    assert [lane.schedule(100 * MS, 1250), lane.schedule(100 * MS, 1250)] == [101 * MS, 102 * MS]


def test_fractions_of_nanoseconds_add_up_to_the_exact_rate() -> None:
    lane = direction(rate_mbps=7, queue_packets=1_000_000)
    last = [lane.schedule(0, 1514) for _ in range(10_000)][-1]
    assert last == pytest.approx(10_000 * 1514 * 8 / 7e6 * 1e9, abs=10)


def test_an_offloaded_frame_takes_as_long_as_its_packets() -> None:
    lane = direction(rate_mbps=1000)
    assert lane.schedule(0, 20 * 1514, packets=20) == 20 * 1514 * 8


def test_the_queue_drops_the_newcomer_and_takes_frames_again_when_one_has_left() -> None:
    lane = direction(rate_mbps=10, queue_packets=3)
    assert [lane.schedule(0, 1250) for _ in range(4)] == [1 * MS, 2 * MS, 3 * MS, QUEUE_FULL]
    assert lane.lane["queue_full_packets"] == 1
    assert lane.schedule(1 * MS, 1250) == 4 * MS
    assert lane.schedule(1 * MS, 1250) == QUEUE_FULL


def test_the_queue_counts_frames_under_way_as_netem_does() -> None:
    lane = direction(delay_ms=10, queue_packets=2)
    assert [lane.schedule(0, 60) for _ in range(3)] == [10 * MS, 10 * MS, QUEUE_FULL]
    assert lane.schedule(10 * MS, 60) == 20 * MS


def test_the_queue_counts_packets_not_offloaded_frames() -> None:
    lane = direction(rate_mbps=100, queue_packets=30)
    assert lane.schedule(0, 20 * 1514, packets=20) > 0
    assert lane.schedule(0, 20 * 1514, packets=20) == QUEUE_FULL
    assert lane.lane["queue_full_packets"] == 20


def test_loss_is_what_was_asked_for_and_takes_no_time_on_the_wire() -> None:
    lane = direction(loss_percent=3, rate_mbps=10, queue_packets=1_000_000)
    answers = [lane.schedule(0, 1250) for _ in range(50_000)]
    lost = answers.count(LOST)
    assert lost == lane.lane["lost_packets"]
    assert lost / 50_000 == pytest.approx(0.03, abs=0.004)  # five standard deviations
    assert max(answers) == (50_000 - lost) * MS


def test_all_or_nothing_can_be_lost() -> None:
    assert direction(loss_percent=100).schedule(0, 60) == LOST
    assert direction(loss_percent=0).schedule(0, 60) == 0


def test_jitter_has_the_spread_that_was_asked_for() -> None:
    lane = direction(delay_ms=50, jitter_ms=2)
    # A frame each 100 ms: none waits for its predecessor.
    delays = [lane.schedule(i * 100 * MS, 60) - i * 100 * MS for i in range(5_000)]
    assert statistics.fmean(delays) / MS == pytest.approx(50, abs=0.2)
    assert statistics.stdev(delays) / MS == pytest.approx(2, abs=0.15)


def test_equal_seeds_give_equal_fates_and_others_do_not() -> None:
    shape = Shape(delay_ms=10, jitter_ms=3, loss_percent=10)

    def fates(seed: str) -> list[int]:
        lane = Direction(shape, seed=seed)
        return [lane.schedule(i * MS, 60) for i in range(200)]

    assert fates("1") == fates("1")
    assert fates("1") != fates("2")


def test_jitter_does_not_change_which_frames_are_lost() -> None:
    plain = direction(delay_ms=10, loss_percent=10)
    jittered = direction(delay_ms=10, loss_percent=10, jitter_ms=5)
    lost = [plain.schedule(i * MS, 60) == LOST for i in range(500)]
    assert lost == [jittered.schedule(i * MS, 60) == LOST for i in range(500)]


@given(
    gaps_us=st.lists(st.integers(0, 3000), min_size=1, max_size=60),
    size=st.integers(60, 1514),
    delay_ms=st.floats(0, 20),
    jitter_share=st.floats(0, 1),
    rate_mbps=st.none() | st.floats(0.5, 1000),
    loss_percent=st.floats(0, 50),
)
def test_whatever_the_shape_frames_never_overtake_and_never_leave_before_they_came(
    gaps_us: list[int],
    size: int,
    delay_ms: float,
    jitter_share: float,
    rate_mbps: float | None,
    loss_percent: float,
) -> None:
    shape = Shape(
        delay_ms=delay_ms,
        jitter_ms=delay_ms * jitter_share,
        rate_mbps=rate_mbps,
        loss_percent=loss_percent,
    )
    lane = Direction(shape)
    now = previous = 0
    for gap_us in gaps_us:
        now += gap_us * 1000
        release = lane.schedule(now, size)
        if release >= 0:
            assert release >= now
            assert release >= previous
            previous = release


@settings(deadline=None)
@given(
    frames=st.lists(
        st.tuples(st.integers(0, 3000), st.integers(60, 9000), st.integers(1, 40)), min_size=1, max_size=300
    ),
    delay_ms=st.floats(0, 20),
    jitter_share=st.floats(0, 1),
    rate_mbps=st.none() | st.floats(0.5, 1000),
    loss_percent=st.floats(0, 50),
    burst=st.none() | st.floats(1, 20),
    reorder_percent=st.floats(0, 30),
    queue_packets=st.none() | st.integers(1, 2000),
    outages=st.lists(st.tuples(st.floats(0, 0.2), st.floats(0.001, 0.2)), max_size=3),
)
def test_compiled_the_rules_are_those_that_are_written(
    frames: list[tuple[int, int, int]],
    delay_ms: float,
    jitter_share: float,
    rate_mbps: float | None,
    loss_percent: float,
    burst: float | None,
    reorder_percent: float,
    queue_packets: int | None,
    outages: list[tuple[float, float]],
) -> None:
    shape = Shape(
        delay_ms=delay_ms,
        jitter_ms=delay_ms * jitter_share,
        rate_mbps=rate_mbps,
        loss_percent=loss_percent,
        loss_burst_packets=burst,
        reorder_percent=reorder_percent if delay_ms else 0,
        queue_packets=queue_packets,
        outages=tuple(outages),
    )
    written, compiled = Direction(shape, compiled=False), Direction(shape)
    now = 0
    for lane in (written, compiled):
        lane.begin(50 * MS)
    for gap_us, size, packets in frames:
        now += gap_us * 1000
        assert written.schedule(now, size, packets) == compiled.schedule(now, size, packets)
    assert written.lane.tolist() == compiled.lane.tolist()


@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=400))
def test_frames_leave_in_the_order_of_their_time_and_equal_ones_as_they_came(
    steps: list[tuple[int, bool]],
) -> None:
    heap = Heap(*(np.zeros(size, np.int64) for size in (1, 401, 401, 401)))
    waiting: list[tuple[int, int]] = []
    for serial, (release_ns, is_popped) in enumerate(steps):
        if is_popped and waiting:
            first = min(waiting)
            waiting.remove(first)
            assert pop(heap) == first[1]
        push(heap, release_ns, serial, serial)
        waiting.append((release_ns, serial))
    assert [pop(heap) for _ in range(len(waiting))] == [serial for _, serial in sorted(waiting)]
    assert heap.size[0] == 0


def test_a_long_queue_keeps_its_order_while_it_gets_more_room() -> None:
    lane = direction(rate_mbps=8, queue_packets=5_000)
    # 1000 bytes take 1 ms; at 2,500 ms half of them have left, and the ring has turned
    assert [lane.schedule(0, 1000) for _ in range(5_000)] == [MS * n for n in range(1, 5_001)]
    assert lane.schedule(0, 1000) == QUEUE_FULL
    assert [lane.schedule(2_500 * MS, 1000) for _ in range(2_500)] == [MS * n for n in range(5_001, 7_501)]
    assert lane.schedule(2_500 * MS, 1000) == QUEUE_FULL


def test_drawn_numbers_do_not_depend_on_when_they_are_drawn() -> None:
    shape = Shape(delay_ms=10, loss_percent=30, jitter_ms=2)
    often, seldom = Lanes([(shape, "x")], mtu_bytes=[1500]), Lanes([(shape, "x")], mtu_bytes=[1500])
    seen: list[list[float]] = [[], []]
    for number in range(3 * DRAWS):
        for found, lanes in zip(seen, (often, seldom), strict=True):
            if wants(lanes.table, 0, 1) or (lanes is often and number % 100 == 0):
                lanes.provide(0, 1)
            found.append(fate._draw(lanes.table, lanes.table.lanes[0], LOSS))
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 3 * DRAWS
