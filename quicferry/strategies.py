"""How client and server find each other again: the strategies as one table.

Every strategy works with every migration engine; nothing here knows how the process moves.
Source: Puliafito et al. 2022 (the first three), Casu 2022 (the symmetric ones), RFC 9000 §9.6 and
draft-munizaga-quic-alternative-server-address-02 (the last two, which have no frame of the extension).

A strategy is a row of rules, so that one can be added from outside: as an entry point of the group
``quicferry.strategies``, or in the tuple ``STRATEGIES`` of a plug-in file (``quicferry.plugins``). Client and
server must both have the plug-in: what crosses the wire is ``wire_bit``.
"""

from __future__ import annotations

import enum
import functools
import os
import re
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

from quicferry import plugins
from quicferry.errors import InvalidInput

GROUP = "quicferry.strategies"
#: Bits of the transport parameter from which a strategy from outside takes one: 2^16 to 2^31.
FIRST_FREE_BIT, LAST_FREE_BIT = 1 << 16, 1 << 31


class ProbeOn(enum.StrEnum):
    """What makes the client probe a new address."""

    NOTICE = "notice"  # at once when the server announces the move
    LOSS = "loss"  # when the old address has been silent for one PTO
    SERVER_PACKET = "server-packet"  # when an authentic packet comes from the new address


class Carrier(enum.StrEnum):
    """By what the client learns where the server may be."""

    EXTENSION = "extension"  # the frames of docs/wire-format.md
    PREFERRED_ADDRESS = "preferred-address"  # a transport parameter of the server (RFC 9000 §9.6)
    ALTERNATIVE_ADDRESS = "alternative-address"  # a frame of draft-munizaga-quic-alternative-server-address


#: Where any strategy may stand, also one from outside: its name.
StrategyName: TypeAlias = str


class StrategyRules(NamedTuple):
    """What tells one strategy from another."""

    name: str  # on the command line and in every file
    title: str
    wire_bit: int  # its bit in the transport parameter, and its number in SM_PREPARE
    notice: bool  # the client is told before the checkpoint (SM_PREPARE)
    carries_address: bool  # the client is told which address is the destination
    pool: bool  # possible addresses are given right after the handshake
    probe_on: ProbeOn
    server_first: bool  # as published, the restored server sends first
    #: with one that is no part of the extension the bit is 0: it is never named in a frame of ours
    carrier: Carrier = Carrier.EXTENSION

    @property
    def extended(self) -> bool:
        """Whether it stands on the frames of the extension."""
        return self.carrier is Carrier.EXTENSION


class Strategy(enum.StrEnum):
    """The strategies of this distribution; one from outside is a plain ``str``."""

    PROACTIVE_EXPLICIT = "proactive-explicit"
    REACTIVE_EXPLICIT = "reactive-explicit"
    POOL = "pool"
    SYMMETRIC = "symmetric"
    SYNCHRONIZED_SYMMETRIC = "synchronized-symmetric"
    PREFERRED_ADDRESS = "preferred-address"
    ALTERNATIVE_ADDRESS = "alternative-address"


_NOTICE, _LOSS, _SERVER_PACKET = ProbeOn.NOTICE, ProbeOn.LOSS, ProbeOn.SERVER_PACKET
_OWN = (
    StrategyRules(
        name=Strategy.PROACTIVE_EXPLICIT, title="Proactive Explicit", wire_bit=0x01,
        notice=True, carries_address=True, pool=False, probe_on=_NOTICE, server_first=False,
    ),
    StrategyRules(
        name=Strategy.REACTIVE_EXPLICIT, title="Reactive Explicit", wire_bit=0x02,
        notice=True, carries_address=True, pool=False, probe_on=_LOSS, server_first=False,
    ),
    StrategyRules(
        name=Strategy.POOL, title="Pool of Addresses", wire_bit=0x04,
        notice=False, carries_address=False, pool=True, probe_on=_LOSS, server_first=False,
    ),
    StrategyRules(
        name=Strategy.SYMMETRIC, title="Symmetric", wire_bit=0x08,
        notice=False, carries_address=False, pool=False, probe_on=_SERVER_PACKET, server_first=True,
    ),
    StrategyRules(
        name=Strategy.SYNCHRONIZED_SYMMETRIC, title="Synchronized Symmetric", wire_bit=0x10,
        notice=True, carries_address=False, pool=False, probe_on=_SERVER_PACKET, server_first=True,
    ),
    StrategyRules(
        name=Strategy.PREFERRED_ADDRESS, title="Preferred Address (RFC 9000)", wire_bit=0,
        notice=False, carries_address=True, pool=False, probe_on=_LOSS, server_first=False,
        carrier=Carrier.PREFERRED_ADDRESS,
    ),
    StrategyRules(
        name=Strategy.ALTERNATIVE_ADDRESS, title="Alternative Address (IETF draft)", wire_bit=0,
        notice=True, carries_address=True, pool=False, probe_on=_NOTICE, server_first=False,
        carrier=Carrier.ALTERNATIVE_ADDRESS,
    ),
)  # fmt: skip

#: The rules of the strategies of this distribution.
RULES: dict[Strategy, StrategyRules] = {Strategy(rules.name): rules for rules in _OWN}
#: Those that stand on the frames of the extension, and those that are standards of their own.
EXTENSION_STRATEGIES = tuple(strategy for strategy, rules in RULES.items() if rules.extended)
STANDARD_STRATEGIES = tuple(strategy for strategy, rules in RULES.items() if not rules.extended)


def strategies() -> Mapping[StrategyName, StrategyRules]:
    """All strategies by name, those from outside included.

    Raises ``InvalidInput`` for a broken plug-in, a name that cannot be, and a bit that is not free. Plug-ins
    are loaded by the first call, and not when this module is imported: they import it themselves.
    """
    return _table_with(os.environ.get(plugins.VARIABLE, ""))


def rules_of(name: StrategyName) -> StrategyRules:
    """The rules of a strategy. Raises ``InvalidInput`` for an unknown one."""
    known = strategies()
    if name not in known:
        raise InvalidInput(f"there is no strategy {name!r}", hint="there are: " + ", ".join(known))
    return known[name]


@functools.cache
def _table_with(_files: str) -> Mapping[StrategyName, StrategyRules]:
    """The table while these plug-in files are named: packages do not change while a process runs."""
    rows = plugins.table(GROUP, StrategyRules, _OWN, lambda rules: str(rules.name))
    bits: dict[int, str] = {rules.wire_bit: rules.name for rules in _OWN if rules.extended}
    for rules in list(rows.values())[len(_OWN) :]:
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", rules.name):
            raise InvalidInput(
                f"a strategy cannot be named {rules.name!r}", hint="use a-z, 0-9 and '-', a letter first"
            )
        if not rules.extended:
            raise InvalidInput(
                f"the strategy {rules.name} cannot have the carrier {rules.carrier}",
                hint="one from outside stands on the frames of the extension: leave carrier out",
            )
        bit = rules.wire_bit
        if bit.bit_count() != 1 or not FIRST_FREE_BIT <= bit <= LAST_FREE_BIT or bit in bits:
            raise InvalidInput(
                f"the strategy {rules.name} cannot have the bit {bit:#x} on the wire",
                hint=f"give it one bit from {FIRST_FREE_BIT:#x} to {LAST_FREE_BIT:#x} that no other has",
            )
        bits[bit] = rules.name
    return rows


def may_speak_first(strategy: StrategyName) -> bool:
    """Whether a server may send data from its new address before its client has come there.

    RFC 9000 §9.6.2 forbids it, and the draft follows that section: a server may only probe from there.
    """
    return rules_of(strategy).extended


def speaks_first(strategy: StrategyName, server_first: bool) -> bool:
    """Whether the restored server sends before it has heard from the client.

    ``server_first`` is the variant in which nobody waits for a timer; it is open to every strategy that
    stands on the extension.
    """
    return may_speak_first(strategy) and (server_first or rules_of(strategy).server_first)
