"""A story of the protocol's world: all that is decided before it is played, as plain data.

A story can be written down as JSON, read by people, and shortened step by step. ``draw`` makes one from a
seed. It knows the windows in which moves go wrong (notice given, frozen, resumed, the client switching) and
puts most faults there; the rest of the faults fall anywhere.
"""

from __future__ import annotations

import enum
import random

import msgspec

from quicferry.strategies import EXTENSION_STRATEGIES, RULES, STANDARD_STRATEGIES, Strategy
from simulation.protocol.fault_kinds import KINDS


class Traffic(enum.StrEnum):
    """What the application does while the server moves."""

    ECHO = "echo"  # small requests at an interval
    PUSH = "push"  # the server sends a small piece at an interval, the client only acknowledges
    DOWNLOAD = "download"  # one large answer, as fast as it goes
    UPLOAD = "upload"  # one large request
    IDLE = "idle"  # nothing; one request at the end
    DATAGRAMS = "datagrams"  # the server sends unreliable datagrams (RFC 9221) in bursts
    RESETS = "resets"  # as ECHO, but every third request is given up half-way


class Ending(enum.StrEnum):
    """How a move ends."""

    COMMIT = "commit"
    CALLED_OFF = "called-off"  # after the notice, before the freeze
    ROLLED_BACK = "rolled-back"  # after the freeze; the destination never ran
    FENCED = "fenced"  # the destination ran for a while and was taken down; the source goes on


class ServerAddress(enum.StrEnum):
    """What a server knows of the address at which the client reaches it."""

    KNOWN = "known"  # it says it (Here) with each word of where it is
    UNKNOWN = "unknown"  # it leaves it out
    TRANSLATED = "translated"  # as UNKNOWN, and its own addresses are others than those that the client sees


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One move. ``after_s``: since the server served again after the one before."""

    to: int  # number of the edge
    strategy: Strategy
    after_s: float = 0.5
    server_first: bool = False
    downtime_s: float = 0.1
    announced_s: float | None = None  # None: as it will be
    notice_s: float = 1.0  # how long the source waits for the client's answer at most
    company: bool = False  # other clients have agreed: one that refuses does not stop the move
    ready_wait_s: float = 0.0  # ... and slower ones are waited for, after this client's answer
    forwarding: bool = True
    ending: Ending = Ending.COMMIT
    served_s: float = 0.0  # FENCED: how long the destination ran


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the network, the peer or the service does. ``kind`` is a key of ``fault_kinds.KINDS``.

    It begins ``delay_s`` after the first time that ``anchor`` happens ("start", or "frozen 2": the second
    move's freeze), and lasts ``seconds``.
    """

    kind: str
    anchor: str = "start"
    delay_s: float = 0.0
    seconds: float = 0.0
    direction: str = "both"
    edge: int | None = None  # None: all
    amount: float = 0.0  # what it means says the kind


class Story(msgspec.Struct, frozen=True, kw_only=True):
    """All of one play."""

    seed: int
    moves: list[Move]
    faults: list[Fault] = []
    traffic: Traffic = Traffic.ECHO
    interval_s: float = 0.02
    size_bytes: int = 200  # of an answer; of the whole transfer where there is one
    rtt_s: float = 0.018
    process_moves: bool = False  # as CRIU does; else snapshots are handed over
    strategies: list[Strategy] = msgspec.field(
        default_factory=lambda: list(EXTENSION_STRATEGIES)
    )  # that the client agrees to
    pool: list[int] = []  # edges that the client is told of at the beginning
    before_s: float = 0.3
    max_datagram_bytes: int = 1200
    server_address: ServerAddress = ServerAddress.KNOWN

    @property
    def faults_delay(self) -> bool:
        """Whether the network delays datagrams, so that a round trip is not what it is."""
        return any(fault.kind in ("jitter", "replay", "duplicate") for fault in self.faults)


EDGES_MOST = 4
FLOOD_BYTES = 10_000_000
POOL_MOST = 7  # addresses that a client takes
#: anchors that come with a move, and how often a fault is aimed at them
WINDOWS = (
    ("prepare", 4),  # the notice leaves
    ("ready", 2),  # the client has answered
    ("frozen", 4),
    ("resumed", 5),  # ... and is not committed yet
    ("switched", 3),
    ("committed", 1),
    ("back", 3),  # the source goes on
)


#: how many of the stories are told with a standard instead of the extension
STANDARDS = 0.15
#: in how many of them the server does not know its address, half of those behind a NAT
ADDRESSLESS = 0.15


def draw(seed: int) -> Story:
    """The story of a seed."""
    story = _draw(seed)
    own = random.Random(f"server address {seed}")
    if own.random() < ADDRESSLESS:
        unknown = own.choice((ServerAddress.UNKNOWN, ServerAddress.TRANSLATED))
        story = msgspec.structs.replace(story, server_address=unknown)
    rng = random.Random(f"standards {seed}")
    if not story.moves or rng.random() >= STANDARDS:
        return story
    standard = rng.choice(STANDARD_STRATEGIES)
    moves = [msgspec.structs.replace(move, strategy=standard, server_first=False) for move in story.moves]
    return msgspec.structs.replace(story, moves=moves, strategies=[standard], pool=[])


def _draw(seed: int) -> Story:
    rng = random.Random(f"protocol {seed}")
    edges = rng.choice(range(2, EDGES_MOST + 1))
    moves: list[Move] = []
    favourite = rng.choice(EXTENSION_STRATEGIES)
    mixed = rng.random() < 0.4
    here = 1
    for number in range(rng.choice((1, 1, 2, 2, 3))):
        to = rng.choice([edge for edge in range(1, edges + 1) if edge != here])
        move = _move(rng, to, rng.choice(EXTENSION_STRATEGIES) if mixed else favourite, first=number == 0)
        moves.append(move)
        if move.ending is Ending.COMMIT:
            here = to
    # what is drawn besides has a source of its own, so that the rest of a seed's story stays as it is
    besides = random.Random(f"protocol besides {seed}")
    traffic = rng.choices(tuple(Traffic)[:6], weights=(5, 4, 4, 3, 3, 2))[0]
    if traffic is Traffic.ECHO and besides.random() < 0.3:
        traffic = Traffic.RESETS
    flooded = rng.random() < 0.01
    if flooded:  # a destination that sends more packets than its lease has numbers, and is taken down
        traffic = Traffic.DOWNLOAD
        last = msgspec.structs.replace(moves[-1], ending=Ending.FENCED, server_first=True, served_s=2.0)
        moves = [*moves[:-1], last]
    told = {favourite} | {move.strategy for move in moves}
    all_agreed = rng.random() < 0.5
    faults = [_fault(rng, moves, edges) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
    if rng.random() < 0.15:
        faults += _recipe(rng, rng.randrange(len(moves)) + 1)
    if besides.random() < 0.05:
        faults.append(_made(besides, "replay-elsewhere", moves, edges))
    if any(fault.kind == "victims" for fault in faults):  # it plays its own moves
        faults = [Fault(kind="victims", seconds=3.0, amount=rng.choice((0.02, 1.05)))]
        moves = []
    pool = _pool(rng, moves, edges)
    return Story(
        seed=seed,
        moves=moves,
        faults=faults,
        traffic=traffic,
        interval_s=rng.choice((0.005, 0.01, 0.02, 0.05, 0.2)),
        size_bytes=FLOOD_BYTES if flooded else _size(rng, traffic),
        rtt_s=0.004 if flooded else rng.choice((0.004, 0.018, 0.018, 0.06, 0.2)),
        process_moves=rng.random() < 0.4,
        strategies=list(EXTENSION_STRATEGIES) if all_agreed else sorted(told),
        pool=pool if any(RULES[strategy].pool for strategy in told) or rng.random() < 0.1 else [],
        before_s=0.03 if flooded else rng.choice((0.1, 0.3, 1.1)),
        max_datagram_bytes=rng.choice((1200, 1200, 1400)),
    )


def _pool(rng: random.Random, moves: list[Move], edges: int) -> list[int]:
    """Every edge that the server goes to; where it began may be missing, and others may be named besides."""
    pool = {move.to for move in moves} | set(rng.sample(range(1, edges + 1), edges - 1))
    if rng.random() < 0.5:
        pool.discard(1)
    if rng.random() < 0.15:
        pool |= set(rng.sample(range(2, 10), 6))
    return sorted(pool)[:POOL_MOST]


def _recipe(rng: random.Random, number: int) -> list[Fault]:
    """Faults that are dangerous together, and would meet by chance too seldom."""
    late_s = rng.choice((0.0, 0.005))
    recipes = (
        # the first packets with the new key are lost, and then the server is frozen
        [
            Fault(kind="blackhole", anchor=f"ready {number}", seconds=0.05, direction="down"),
            Fault(kind="server-key-update", anchor=f"ready {number}"),
        ],
        # the client does not hear of the move
        [Fault(kind="blackhole", anchor=f"prepare {number}", delay_s=late_s, seconds=1.5, direction="down")],
        # the client's address changes while nobody is there to see it, and the first answer is lost
        [
            Fault(kind="rebind", anchor=f"frozen {number}", delay_s=0.02),
            Fault(
                kind="blackhole",
                anchor=f"resumed {number}",
                seconds=rng.choice((0.01, 0.03)),
                direction="down",
            ),
        ],
        # the destination runs, and nobody hears it
        [Fault(kind="blackhole", anchor=f"resumed {number}", seconds=2.0)],
        # the service ends just when it has moved
        [Fault(kind="server-closes", anchor=f"resumed {number}")],
    )
    return list(rng.choice(recipes))


def _size(rng: random.Random, traffic: Traffic) -> int:
    if traffic in (Traffic.DOWNLOAD, Traffic.UPLOAD):
        return rng.choice((60_000, 200_000, 400_000))
    if traffic is Traffic.DATAGRAMS:
        return rng.choice((1, 10, 100))  # datagrams at a time
    return rng.choice((100, 300, 3_000))


def _move(rng: random.Random, to: int, strategy: Strategy, *, first: bool) -> Move:
    ending = rng.choices(tuple(Ending), weights=(75, 5, 10, 10))[0]
    downtime_s = rng.choice((0.02, 0.1, 0.3, 0.3, 1.9))
    return Move(
        to=to,
        strategy=strategy,
        after_s=rng.choice((0.0, 0.05, 0.3)) if first else rng.choice((0.0, 0.03, 0.3, 1.1, 1.5, 10.0)),
        server_first=rng.random() < 0.4,
        downtime_s=downtime_s,
        announced_s=rng.choice((None, None, None, downtime_s / 2, downtime_s * 3)),
        notice_s=rng.choice((1.0, 1.0, 0.3)),
        company=rng.random() < 0.3,
        ready_wait_s=rng.choice((0.0, 0.0, 0.06, 0.3)),
        forwarding=rng.random() < 0.8,
        ending=ending,
        served_s=rng.choice((0.05, 0.5, 1.0, 2.0)) if ending is Ending.FENCED else 0.0,
    )


def _fault(rng: random.Random, moves: list[Move], edges: int) -> Fault:
    kind = rng.choices(list(KINDS), weights=[each.weight for each in KINDS.values()])[0]
    return _made(rng, kind, moves, edges)


def _made(rng: random.Random, kind: str, moves: list[Move], edges: int) -> Fault:
    if rng.random() < 0.8:
        window = rng.choices([name for name, _ in WINDOWS], weights=[weight for _, weight in WINDOWS])[0]
        anchor = f"{window} {rng.randrange(len(moves)) + 1}"
        delay_s = rng.choice((0.0, 0.0, 0.0, 0.005, 0.02, 0.1))
    else:
        anchor, delay_s = "start", rng.uniform(0.0, 2.0)
    made = KINDS[kind]
    return Fault(
        kind=kind,
        anchor=anchor,
        delay_s=delay_s,
        seconds=rng.choice(made.seconds),
        direction=rng.choice(("up", "down", "both")),
        edge=rng.choice((None, rng.randrange(edges) + 1)),
        amount=rng.choice(made.amounts),
    )
