"""``announced-symmetric``: the client is told where the server goes, and waits there for its first packet.

Between Reactive Explicit and Symmetric: as the address is known beforehand, one packet from it is enough;
as the server speaks first, nobody waits for a timer.
"""

from __future__ import annotations

from quicferry.strategies import FIRST_FREE_BIT, ProbeOn, StrategyRules

RULES = StrategyRules(
    name="announced-symmetric",
    title="Announced Symmetric",
    wire_bit=FIRST_FREE_BIT,
    notice=True,
    carries_address=True,
    pool=False,
    probe_on=ProbeOn.SERVER_PACKET,
    server_first=True,
)
