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
        "torn-journal-line",
        "ownership",
        "two-owners:abort-commit",
        2,
        "a torn journal line of the source reads as the step before it: the source goes on without asking",
        "two-owners:",
    ),
    KnownFault(
        "destination-agent-gone",
        "ownership",
        "two-owners:abort-restore",
        9,
        "the destination's agent dies when its server has resumed; nobody fences that server, the "
        "source rolls back",
        "two-owners:",
    ),
    KnownFault(
        "torn-journal-after-commit",
        "ownership",
        "two-owners:abort-moved",
        325,
        "the same torn line when the destination has served for long",
        "two-owners:",
    ),
    KnownFault(
        "torn-journal-of-destination",
        "ownership",
        "nobody-serves:moved-stayed",
        162,
        "a torn line of the destination reads as not committed: it takes down a server that the "
        "source has given up",
        "nobody-serves:",
    ),
    KnownFault(
        "journal-cannot-be-written",
        "ownership",
        "nobody-serves:checkpoint-stayed",
        155,
        "an error of the journal ends the source's move where it is: no rollback, nobody serves",
        "nobody-serves:",
    ),
    KnownFault(
        "verdict-after-journal-error",
        "ownership",
        "wrong-verdict:stayed",
        16,
        "after an error at the source the orchestrator says stayed, wherever the server is",
        "wrong-verdict:",
    ),
    KnownFault(
        "orchestrator-journal-error",
        "ownership",
        "crashed:orchestrator:OSError",
        21,
        "an orchestrator whose journal cannot be written ends with a traceback",
        "crashed:orchestrator:OSError",
    ),
    KnownFault(
        "agent-journal-error",
        "ownership",
        "crashed:agent:OSError",
        51,
        "an agent whose journal cannot be written while it recovers ends with a traceback",
        "crashed:agent:OSError",
    ),
    KnownFault(
        "long-rtt",
        "ownership",
        "crashed:orchestrator:Unreachable",
        13,
        "three round trips to connect do not fit into the half second that gRPC gives an attempt",
        "crashed:orchestrator:Unreachable",
    ),
    KnownFault(
        "fence-obeyed-late",
        "ownership",
        "two-owners:abort-commit",
        239,
        "the destination's last questions before its fence take longer than it leaves time for, if "
        "commit_s is short",
        "two-owners:",
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
        "state-forked-by-a-fence",
        "ownership",
        "state-forked",
        8,
        "requests that a fenced destination has answered are unknown to the source",
        "state-forked",
    ),
    KnownFault(
        "too-many-streams-after-a-fence",
        "ownership",
        "client-lost",
        50,
        "a client that was given more streams by a fenced destination is closed by the source",
        "client-lost",
    ),
)
