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
        "pool-download",
        "protocol",
        "hang:mute:pool",
        963,
        "a client that only acknowledges never probes, and the server waits for it: nobody "
        "restarts the traffic",
        "hang:mute:",
    ),
    KnownFault(
        "pool-second-move",
        "protocol",
        "hang:mute:pool",
        24,
        "the pool lacks the address that the server came from; after the second move the client "
        "cannot find it",
        "hang:mute:",
    ),
    KnownFault(
        "silent-client",
        "protocol",
        "hang:mute:proactive-explicit",
        948,
        "a client that has not heard of the move does not look for a server that waits for it",
        "hang:mute:",
    ),
    KnownFault(
        "busy-client",
        "protocol",
        "hang:mute:proactive-explicit",
        118,
        "a second notice within a second is answered with busy, and the move goes on without that client",
        "hang:mute:",
    ),
    KnownFault(
        "key-update-lost",
        "protocol",
        "hang:mute:proactive-explicit",
        593,
        "the first packets with a new key are lost and the server is frozen: no probe can be decrypted",
        "hang:mute:",
    ),
    KnownFault(
        "close-not-heard",
        "protocol",
        "close-not-heard:pool",
        49,
        "a service that closes while its server is mute is not heard until the idle timeout",
        "close-not-heard:",
    ),
    KnownFault(
        "connection-ids-used-up",
        "protocol",
        "no-spare-id:no-move",
        50,
        "a race takes every connection ID, and they are retired on a path that may be dead",
        "no-spare-id:",
    ),
    KnownFault(
        "amplification",
        "protocol",
        "amplification",
        50,
        "one announcement makes a client send far more to strangers than the server has sent",
        "amplification",
    ),
    KnownFault(
        "nonce-reuse-process",
        "protocol",
        "nonce-reuse:process",
        14,
        "a process that was moved and taken back goes on with packet numbers that the destination has used",
        "nonce-reuse:process",
    ),
    KnownFault(
        "nonce-reuse-hand-off",
        "protocol",
        "nonce-reuse:hand-off",
        2871,
        "a destination that clients hear sends more packets than its lease has numbers before it is fenced",
        "nonce-reuse:hand-off",
    ),
    KnownFault(
        "off-path-relay",
        "protocol",
        "drawn-away:never-moved",
        1447,
        "copies of packets that come first draw a client to whoever forwards them, though no server moved",
        "drawn-away:",
    ),
    KnownFault(
        "off-path-relay-after-move",
        "protocol",
        "drawn-away:had-moved",
        110,
        "the same after a move",
        "drawn-away:",
    ),
    KnownFault(
        "challenge-delay-as-rtt",
        "protocol",
        "rtt-estimate",
        133,
        "a challenge that was answered after the downtime is taken for a sample of the RTT",
        "rtt-estimate",
    ),
    KnownFault(
        "response-from-elsewhere",
        "protocol",
        "switched-to-left-edge",
        101,
        "a challenge to an edge that the server has left is handed on, answered elsewhere, and "
        "validates the edge",
        "switched-to-left-edge",
    ),
    KnownFault(
        "rollback-after-being-heard",
        "protocol",
        "hang:client-elsewhere:reactive-explicit:fenced",
        116,
        "a destination served, was fenced and taken down; its clients do not come back to the source",
        "hang:client-elsewhere:",
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
        "rollback-uses-up-connection-ids",
        "protocol",
        "hang:no-id-left:pool+server-first:fenced",
        370,
        "a client that has followed a fenced destination has no connection ID left to find the source again",
        "hang:no-id-left:",
    ),
    KnownFault(
        "smaller-mtu",
        "protocol",
        "hang:stalled:reactive-explicit+server-first",
        2628,
        "the size of datagrams belongs to the old path: on a smaller one nothing large gets through",
        "hang:stalled:",
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
        "bulk-overhead",
        "protocol",
        "overhead:download",
        2365,
        "a restored server first repeats all that was in flight, and brings nothing new for round trips",
        "overhead:download",
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
        "client-of-a-fenced-destination",
        "ownership",
        "unanswered:stayed-stayed",
        8,
        "a client that has followed a fenced destination does not come back to the source",
        "unanswered:",
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
)
