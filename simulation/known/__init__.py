"""Faults that are known and not mended yet, each with a story in which it shows.

A test plays every story and demands that the fault is still there: when it is mended, the test fails and
says so. Then delete the entry here, and move its story to ``tests/simulation/mended/``, where it is
played for ever and must violate nothing.

Until then a campaign may find the *families* listed here, and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).parent


@dataclass(frozen=True)
class KnownFault:
    """``name``: its story is the file ``<name>.json`` here. ``kind``: what the story violates.

    ``seed``: whose story that was, before it was minimised. ``family``: the beginning of all kinds that
    this fault is met as.
    """

    name: str
    world: str
    kind: str
    seed: int
    issue: str
    family: str

    @property
    def story(self) -> Path:
        """Where the story is written down."""
        return DIRECTORY / f"{self.name}.json"


def families(world: str) -> tuple[str, ...]:
    """What a campaign in that world may find."""
    return tuple(sorted({fault.family for fault in KNOWN if fault.world == world}))


KNOWN: tuple[KnownFault, ...] = (
    KnownFault(
        "challenge-delay-as-rtt",
        "protocol",
        "rtt-estimate",
        133,
        "a challenge that was answered after the downtime is taken for a sample of the RTT",
        "rtt-estimate",
    ),
    KnownFault(
        "rollback-forgets",
        "protocol",
        "answer-forgotten:proactive-explicit:fenced",
        140,
        "what a fenced destination has answered, the source does not know",
        "answer-forgotten:",
    ),
    KnownFault(
        "swallowed-challenge",
        "protocol",
        "hang:server-to-dead-path:symmetric",
        301,
        "the client's address changed during the downtime; the server's challenge of it is swallowed",
        "hang:server-to-dead-path:",
    ),
    KnownFault(
        "destination-agent-gone",
        "ownership",
        "state-forked",
        9,
        "the destination's agent dies when its server has resumed: what that has answered within "
        "its lease, the source does not know",
        "state-forked",
    ),
    KnownFault(
        "fence-obeyed-late",
        "ownership",
        "state-forked",
        239,
        "the same where the destination cannot hear of the commit before a short lease is over",
        "state-forked",
    ),
    KnownFault(
        "relay-draws-while-nobody-serves",
        "protocol",
        "drawn-away:had-moved",
        10,
        "a forwarder's path that has answered is taken when the old one is silent, though the "
        "server names another",
        "drawn-away:",
    ),
    KnownFault(
        "rebound-client-not-found",
        "protocol",
        "hang:client-elsewhere:proactive-explicit",
        118,
        "the client's address changed in the downtime, and a notice was answered with busy: they "
        "do not meet again",
        "hang:client-elsewhere:",
    ),
    KnownFault(
        "rollback-reuses-sequence-numbers",
        "protocol",
        "connection-lost:sm_address:-one-number,-two-addresses:reactive-explicit:fenced",
        25,
        "a fenced destination has named addresses with numbers that the source uses again",
        "connection-lost:sm_address:",
    ),
    KnownFault(
        "rollback-reuses-streams",
        "protocol",
        "connection-lost:data-received-beyond-final-size:pool+server-first:fenced",
        93,
        "a fenced destination has sent on streams what the source does not know of",
        "connection-lost:data-received-beyond-final-size:",
    ),
    KnownFault(
        "rollback-stalls",
        "protocol",
        "hang:stalled:symmetric:fenced",
        196,
        "what a fenced destination has acknowledged, the source waits for for ever",
        "hang:stalled:",
    ),
    KnownFault(
        "no-spare-id-after-a-fence",
        "protocol",
        "hang:no-id-left:reactive-explicit:fenced",
        476,
        "a client spends its connection IDs on the addresses of a large pool while a relay draws it and a "
        "fenced destination goes: none is left for the next move",
        "hang:no-id-left:",
    ),
    KnownFault(
        "standard-finds-no-rebound-listener",
        "protocol",
        "hang:mute:preferred-address",
        319,
        "the address of a client that only listens changed in the downtime; a server that moves by a "
        "standard may only probe, and its probes go where the client was",
        "hang:mute:preferred-address",
    ),
    KnownFault(
        "draft-finds-no-rebound-client",
        "protocol",
        "hang:mute:alternative-address",
        1437,
        "the same by the draft, where the notice has gone there as well",
        "hang:mute:alternative-address",
    ),
    KnownFault(
        "too-many-streams-after-a-fence",
        "ownership",
        "client-lost",
        83,
        "a client that got more streams from a destination whose lease then ended is closed by the source",
        "client-lost",
    ),
)
