"""When netem and the cable agree."""

from __future__ import annotations

import pytest

from bench.side_by_side import LOSS_FRAMES, Seen, spread, table, verdict
from quicferry.model import Shape

DELAY = Shape(delay_ms=10)


def rtts(*values: float, late_ms: float = 0.0) -> list[Seen]:
    return [Seen(rtt_ms=value, late_ms=late_ms) for value in values]


def test_how_far_rounds_lie_apart() -> None:
    assert spread([20.0, 20.5, 19.75]) == 0.5
    assert spread([7.0]) == 0.0


@pytest.mark.parametrize(("cable_ms", "agree"), [(20.59, True), (20.3, True), (20.62, False), (19.3, False)])
def test_round_trips_that_lie_as_near_as_a_link_may_be_off(cable_ms: float, agree: bool) -> None:
    found = verdict(DELAY, rtts(20.3, 20.3), rtts(cable_ms, cable_ms))
    assert (found.what, found.asked, found.allowed) == ("RTT", 20.0, 0.3)
    assert found.agree is agree


def test_what_widens_the_calibrations_error() -> None:
    netem, cable = rtts(20.0, 20.0, 20.4), rtts(21.0, 20.8, 21.1, late_ms=0.2)
    found = verdict(DELAY, netem, cable)
    assert found.allowed == pytest.approx(0.3 + 0.4 + 0.2 + 0.2)
    assert (found.netem, found.cable) == (20.0, 21.0)
    assert found.agree
    assert not verdict(DELAY, netem, [seen._replace(late_ms=0.0) for seen in cable]).agree


def test_long_delays_may_be_off_by_a_hundredth() -> None:
    assert verdict(Shape(delay_ms=100), rtts(200), rtts(201.9)).agree
    assert not verdict(Shape(delay_ms=100), rtts(200), rtts(202.1)).agree


@pytest.mark.parametrize(("mbps", "agree"), [(2.039, True), (1.961, True), (2.041, False)])
def test_rates(mbps: float, agree: bool) -> None:
    shape = Shape(delay_ms=1, rate_mbps=2)
    found = verdict(shape, [Seen(rtt_ms=2.1, rate_mbps=2.0)], [Seen(rtt_ms=9.0, rate_mbps=mbps)])
    assert (found.what, found.agree) == ("rate", agree)


def test_losses_are_judged_by_how_many_frames_were_sent() -> None:
    shape = Shape(delay_ms=1, loss_percent=3)
    one = verdict(shape, [Seen(loss_percent=3.0)], [Seen(loss_percent=4.5)])
    assert one.agree
    # 2.576 deviations of the difference of two shares
    assert one.allowed == pytest.approx(257.6 * (0.0375 * 0.9625 * 2 / LOSS_FRAMES) ** 0.5)
    assert not verdict(shape, [Seen(loss_percent=3.0)] * 9, [Seen(loss_percent=4.5)] * 9).agree


def test_a_round_in_which_nothing_arrived() -> None:
    with pytest.raises(ValueError, match="nothing arrived"):
        verdict(DELAY, [Seen()], rtts(20.0))
    with pytest.raises(ValueError, match="nothing arrived"):
        verdict(DELAY, [*rtts(20.0), Seen()], rtts(20.0))


def test_the_table_says_which_do_not_agree() -> None:
    lines = table([verdict(DELAY, rtts(20.0), rtts(20.1)), verdict(DELAY, rtts(20.0), rtts(23.0))])
    assert lines.splitlines()[2] == "| RTT | 20 ms | 20.000 | 20.100 | +0.100 | 0.300 | yes |"
    assert lines.splitlines()[3].endswith("| **no** |")
