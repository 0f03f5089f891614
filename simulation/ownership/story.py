"""A story of the world of ownership: moves, and what happens to processes, links and disks meanwhile."""

from __future__ import annotations

import random

import msgspec

from quicferry.strategies import EXTENSION_STRATEGIES, Strategy
from simulation.ownership.fault_kinds import KINDS


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One move that the orchestrator is told to make."""

    to: int  # number of the edge
    strategy: Strategy = Strategy.SYMMETRIC
    server_first: bool = False
    after_s: float = 0.3


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something goes wrong. ``kind`` is a key of ``fault_kinds.KINDS``; ``at`` is the host it happens to.

    It begins ``delay_s`` after the first time that ``anchor`` happens: the name of an event with the host
    that saw it ("edge-2 server.resumed"), or a line of a journal ("edge-1 wrote restore").
    """

    kind: str
    anchor: str
    at: str
    delay_s: float = 0.0
    seconds: float = 0.0  # until it is mended; 0: it is not, or needs not be


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """All of one play. The server starts at edge 1."""

    seed: int
    moves: list[Move]
    faults: list[Fault] = []
    edges: int = 2
    rtt_s: float = 0.018  # of the clients
    edge_rtt_s: float = 0.001  # between the edges
    core_rtt_s: float = 0.01  # by the detour, and to the orchestrator
    commit_s: float = 0.6  # a deadline: the fence lies so far behind the lease
    interval_s: float = 0.05  # between two requests
    forwarding: bool = False  # agents hand late datagrams on, and keep early ones
    clocks_ahead_s: list[float] = []  # of the edges, from the first on; none: all have the true time


#: The fence of a source begins half a second behind the lease, so that the server there has surely ended. So
#: much may the clocks of two hosts differ; they are one clock in a run, and those of real hosts are set.
SKEW_MOST_S = 0.1

#: where a move can be hit, most dangerous first, with the weight of each; {s} source, {d} destination
ANCHORS: tuple[tuple[str, int], ...] = (
    ("{s} wrote restore", 5),  # End has left or is about to
    ("{d} wrote restore", 4),
    ("{d} migration.restore.started", 3),  # between the lease check and the resume
    ("{d} server.resumed", 6),  # resumed, not committed
    ("{d} wrote commit", 5),
    ("{s} wrote commit", 5),
    ("{s} migration.commit.started", 3),
    ("{s} wrote checkpoint", 3),
    ("{s} server.frozen", 4),
    ("{s} wrote transfer", 3),
    ("{d} wrote transfer", 2),
    ("{s} wrote abort", 3),
    ("{s} server.aborted", 2),
    ("{d} wrote abort", 2),
    ("{s} wrote preparing", 1),
    ("{d} wrote preparing", 1),
    ("{s} wrote ready", 2),
    ("{d} wrote moved", 2),
    ("{s} wrote moved", 2),
    ("orch migration.ordered", 2),
    ("orch wrote restore", 3),  # the source is about to be told
)


def draw(seed: int) -> Story:
    """The story of a seed."""
    rng = random.Random(f"ownership {seed}")
    edges = rng.choice((2, 2, 3, 4))
    moves: list[Move] = []
    here = 1
    for number in range(rng.choice((1, 1, 1, 2, 3))):
        to = rng.choice([edge for edge in range(1, edges + 1) if edge != here])
        moves.append(
            Move(
                to=to,
                strategy=rng.choice((Strategy.SYMMETRIC, Strategy.SYMMETRIC, *EXTENSION_STRATEGIES)),
                server_first=rng.random() < 0.7,
                after_s=0.3 if number == 0 else rng.choice((0.0, 0.3, 1.5, 6.0, 10.0)),
            )
        )
        here = to
    faults: list[Fault] = []
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        number = rng.randrange(len(moves))
        source = 1 if number == 0 else moves[number - 1].to
        names = {"s": f"edge-{source}", "d": f"edge-{moves[number].to}"}
        template = rng.choices([name for name, _ in ANCHORS], weights=[weight for _, weight in ANCHORS])[0]
        kind = rng.choices(list(KINDS), weights=[each.weight for each in KINDS.values()])[0]
        made = KINDS[kind]
        faults.append(
            Fault(
                kind=kind,
                anchor=template.format(**names),
                at=rng.choice((names["s"], names["d"], names["s"], names["d"], "orch"))
                if made.orchestrator_too
                else rng.choice((names["s"], names["d"])),
                delay_s=rng.choice((0.0, 0.0, 0.0, 0.0005, 0.002, 0.02, 0.2)),
                seconds=rng.choice(made.seconds),
            )
        )
    return Story(
        seed=seed,
        moves=moves,
        faults=faults,
        edges=edges,
        edge_rtt_s=rng.choice((0.001, 0.001, 0.02)),
        core_rtt_s=rng.choices((0.01, 0.2, 0.6), weights=(96, 2, 2))[0],
        commit_s=rng.choice((0.6, 5.0)),
        forwarding=rng.random() < 0.7,
        clocks_ahead_s=[round(rng.uniform(-SKEW_MOST_S, SKEW_MOST_S), 4) for _ in range(edges)]
        if rng.random() < 0.25
        else [],
    )
