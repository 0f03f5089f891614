"""How client and server find each other again: the five strategies as one table.

Every strategy works with every migration engine; nothing here knows how the process moves.
Source: Puliafito et al. 2022 (the first three), Casu 2022 (the symmetric ones).
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Strategy(enum.StrEnum):
    """The name of a strategy, as used on the command line and in every file."""

    PROACTIVE_EXPLICIT = "proactive-explicit"
    REACTIVE_EXPLICIT = "reactive-explicit"
    POOL = "pool"
    SYMMETRIC = "symmetric"
    SYNCHRONIZED_SYMMETRIC = "synchronized-symmetric"


class ProbeOn(enum.StrEnum):
    """What makes the client probe a new address."""

    NOTICE = "notice"  # at once when the server announces the move
    LOSS = "loss"  # when the old address has been silent for one PTO
    SERVER_PACKET = "server-packet"  # when an authentic packet comes from the new address


class StrategyRules(NamedTuple):
    """What tells one strategy from another."""

    title: str
    notice: bool  # the client is told before the checkpoint (SM_PREPARE)
    carries_address: bool  # ... and the notice names the destination
    pool: bool  # possible addresses are given right after the handshake
    probe_on: ProbeOn
    server_first: bool  # as published, the restored server sends first


RULES: dict[Strategy, StrategyRules] = {
    Strategy.PROACTIVE_EXPLICIT: StrategyRules(
        "Proactive Explicit", True, True, False, ProbeOn.NOTICE, False
    ),
    Strategy.REACTIVE_EXPLICIT: StrategyRules("Reactive Explicit", True, True, False, ProbeOn.LOSS, False),
    Strategy.POOL: StrategyRules("Pool of Addresses", False, False, True, ProbeOn.LOSS, False),
    Strategy.SYMMETRIC: StrategyRules("Symmetric", False, False, False, ProbeOn.SERVER_PACKET, True),
    Strategy.SYNCHRONIZED_SYMMETRIC: StrategyRules(
        "Synchronized Symmetric", True, False, False, ProbeOn.SERVER_PACKET, True
    ),
}


def speaks_first(strategy: Strategy, server_first: bool) -> bool:
    """Whether the restored server sends before it has heard from the client.

    ``server_first`` is the variant in which nobody waits for a timer; it is open to every strategy.
    """
    return server_first or RULES[strategy].server_first
