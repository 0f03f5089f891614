"""Every strategy, whoever speaks first, whatever is under way, one to three moves, any datagram lost.

All combinations of the other axes are played; of the datagrams that could be lost, each combination draws
a few by its own seed, so that together they cover the whole of a move.
"""

from __future__ import annotations

import random

import pytest

from quicferry.strategies import RULES, Strategy

from .traffic import KINDS, life

DRAWN = 4  # lost datagrams per combination, besides the life without loss


@pytest.mark.parametrize("moves", [1, 2, 3])
@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", list(RULES))
def test_a_life_loses_nothing(strategy: Strategy, kind: str, server_first: bool, moves: int) -> None:
    draw = random.Random(f"{strategy}-{kind}-{server_first}-{moves}")
    hand_off = draw.random() < 0.5
    _, _, datagrams = life(strategy, kind, server_first=server_first, moves=moves, hand_off=hand_off)
    assert datagrams > 0
    for _ in range(DRAWN):
        life(
            strategy,
            kind,
            server_first=server_first,
            moves=moves,
            hand_off=not hand_off,
            lost=draw.randrange(datagrams),
        )
