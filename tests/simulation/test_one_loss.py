"""A seeded sample of the lives in which any one datagram is lost; ``make one-loss`` plays all of them."""

from __future__ import annotations

import random
from pathlib import Path
from unittest import mock

import pytest
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.stream import QuicStreamSender

from quicferry.strategies import RULES, Strategy
from simulation import one_loss
from simulation.campaign import quiet
from simulation.protocol.play import play
from simulation.protocol.story import Traffic
from simulation.worlds import WORLDS

SAMPLE = 18  # lives; of each of them so many datagrams are lost, one at a time
LOST = 3


def test_every_combination_is_a_life() -> None:
    every = list(one_loss.lives())
    assert {move.strategy for life in every for move in life.moves} == set(RULES)
    assert {(life.traffic, len(life.moves)) for life in every} == {
        (traffic, moves) for traffic in Traffic for moves in (1, 2, 3)
    }
    assert {life.process_moves for life in every} == {False, True}
    assert len({str(life) for life in every}) == len(every)


def test_each_datagram_from_the_beginning_on_is_lost_once() -> None:
    quiet()
    life = one_loss.life(Strategy.SYMMETRIC, Traffic.IDLE, server_first=True, moves=1, process=False)
    stories = one_loss.stories(life, 1, 0)
    assert [story.faults[0].amount for story in stories] == list(range(one_loss.datagrams(life)))
    apart = [number for offset in range(5) for number in range(offset, len(stories), 5)]
    drawn = [story.faults[0].amount for seed in range(40) for story in one_loss.stories(life, 5, seed)]
    assert set(drawn) == set(apart)
    unharmed = play(life).digest
    assert all(play(story).digest != unharmed for story in stories[:10])


def test_a_loss_after_which_nobody_goes_on_is_found(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Stream data that is never sent again is missed when a datagram with it is lost, and only then."""
    settle = QuicStreamSender.on_data_delivery

    def once(self: QuicStreamSender, delivery: QuicDeliveryState, start: int, stop: int, fin: bool) -> None:
        if delivery is QuicDeliveryState.ACKED:
            settle(self, delivery, start, stop, fin)

    life = one_loss.life(Strategy.SYMMETRIC, Traffic.PUSH, server_first=True, moves=1, process=False)
    with (
        mock.patch.object(QuicStreamSender, "on_data_delivery", once),
        mock.patch.object(one_loss, "lives", lambda: [life]),
    ):
        assert one_loss.main(["--jobs", "1", "--save", str(tmp_path)]) == 1
    told = capsys.readouterr().out
    assert "kind=lose-one" in told and "hang:" in told
    saved = [WORLDS["protocol"].read(path.read_bytes()) for path in tmp_path.glob("hang-*.json")]
    assert saved and all(story.faults[0].kind == "lose-one" for story in saved)
    assert not any(play(story).violations for story in saved)


def test_wrong_usage() -> None:
    with pytest.raises(SystemExit) as ended:
        one_loss.main(["--every", "0"])
    assert ended.value.code == 2


@pytest.mark.parametrize("seed", [1])
def test_a_sample_violates_nothing(seed: int) -> None:
    quiet()
    rng = random.Random(seed)
    for life in rng.sample(list(one_loss.lives()), SAMPLE):
        for number in rng.sample(range(one_loss.datagrams(life)), LOST):
            story = one_loss.without(life, number)
            violations = play(story).violations
            assert not violations, f"{violations}\n{WORLDS['protocol'].tell(story)}"
