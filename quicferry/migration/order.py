"""What is ordered of a move: which server goes where, how, and within which deadlines.

``PlannedMove`` is what can be said in advance. ``MoveOrder`` adds what is known only when the move begins
(its number, the edge it begins at, the destination's lease) and is the same on every host that takes part.
"""

from __future__ import annotations

import msgspec

from quicferry.errors import MigrationError
from quicferry.model import Endpoint
from quicferry.strategies import StrategyName
from quicferry.units import NS_PER_MS, NS_PER_S, now_ns

#: How memory images are compressed for the transfer. ``auto`` is what measurements favour (docs/adr/0004).
COMPRESSIONS = ("auto", "none", "zstd", "zstd-1", "zstd-3")
#: Who moves the memory of a server before and after the downtime: the agents, or CRIU's own machinery
#: (tracked dumps, page server, lazy-pages daemon). ``auto`` is what measurements favour (docs/adr/0011).
MEMORY_BY = ("auto", "agents", "criu")
AUTO_MEMORY_BY = "agents"
CHUNK_BYTES = 1 << 20  # the largest chunk of state that an engine yields


class Deadlines(msgspec.Struct, frozen=True, kw_only=True):
    """How long each step of a move may take, in seconds; a step that takes longer has failed."""

    prepare_s: float = 20.0  # both sides get ready (a standby process starts in this time)
    precopy_s: float = 120.0  # memory is copied ahead, while the server serves
    notice_s: float = 1.0  # clients are told and answer; late ones are left out, it is not a failure
    #: From the freeze to the moment after which the destination must not resume any more: half the idle
    #: timeout of the clients, which is also how long they look for their server.
    freeze_s: float = 30.0
    checkpoint_s: float = 15.0  # from the freeze to the first chunk
    transfer_s: float = 60.0  # first to last chunk
    restore_s: float = 15.0  # from the last chunk to the destination's word that the server runs
    commit_s: float = 5.0  # the source gives up its server, or an abort is carried out
    pages_s: float = 120.0  # after the commit: the rest of the memory follows


LEASE_S = 3.0  # the destination may resume for so long after the source was heard last
NOTICE_RTTS = 2.5  # for the end of a handshake, and for an answer that has to be asked for twice
NOTICE_PER_CLIENT_S = 0.003  # where one process is all clients: 1.9 ms each for 2000 on busy cores


def deadlines_over(rtt_s: float, slower: float = 1.0, clients: int = 1) -> Deadlines:
    """The usual deadlines, longer where so many clients are to answer over that round trip, in seconds.

    What a processor has to do is given ``slower`` times as long, but no step in which the server stands still
    longer than it may (``freeze_s``); what clients and leases go by stays (docs/adr/0018).
    """
    usual = Deadlines()
    return Deadlines(
        prepare_s=usual.prepare_s * slower,
        precopy_s=usual.precopy_s * slower,
        notice_s=max(usual.notice_s, NOTICE_RTTS * rtt_s, NOTICE_PER_CLIENT_S * clients),
        checkpoint_s=min(usual.freeze_s, usual.checkpoint_s * slower),
        restore_s=min(usual.freeze_s, usual.restore_s * slower),
        pages_s=usual.pages_s * slower,
    )


class PlannedMove(msgspec.Struct, frozen=True, kw_only=True):
    """All of a move that can be said before it is known from where and as which epoch it begins."""

    strategy: StrategyName
    engine: str
    destination: str  # name of the edge host
    service: Endpoint  # where clients reach the server at the destination
    server_first: bool = False
    downtime_ms: float = 500.0  # what the clients are told to expect
    forwarding: bool = True  # late datagrams are forwarded from the source to the destination
    compression: str = "auto"  # of memory images, one of COMPRESSIONS
    memory_by: str = "auto"  # who moves the memory before and after the downtime, one of MEMORY_BY
    deadlines: Deadlines = Deadlines()

    def order(self, source: str, epoch: int) -> MoveOrder:
        """The order to move the server away from ``source`` in this epoch."""
        planned = {name: getattr(self, name) for name in PlannedMove.__struct_fields__}
        return MoveOrder(source=source, epoch=epoch, **planned)


class MoveOrder(PlannedMove, frozen=True, kw_only=True):
    """One move of the server, the same on all hosts that take part.

    ``epoch`` numbers the moves of a service from 1 and makes orders idempotent: an order whose epoch is
    over is answered again, not carried out again. ``resume_before_ns`` (CLOCK_MONOTONIC) is the
    destination's lease: from that moment on it must not resume, so that a source that cannot reach it
    may roll back afterwards. The source agent sets it at the freeze.
    """

    epoch: int
    source: str  # name of the edge host
    resume_before_ns: int = 0  # 0: not frozen yet


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The right to serve at a destination until the move is committed, in nanoseconds of CLOCK_MONOTONIC.

    The server's process itself obeys it (``serving_lease``): it does not begin from ``begin_before_ns`` on,
    and sends nothing from ``serve_until_ns`` on, until it is told that the move was committed.
    """

    begin_before_ns: int
    serve_until_ns: int


def lease_of(order: MoveOrder) -> Lease | None:
    """The lease that an order carries; None for one that has none, as its server was not frozen yet."""
    if not order.resume_before_ns:
        return None
    return Lease(
        begin_before_ns=order.resume_before_ns, serve_until_ns=fence_ns(order.resume_before_ns, order)
    )


def fence_ns(resume_before_ns: int, order: MoveOrder) -> int:
    """The moment from which on a destination that has not heard of the commit does not serve.

    It may resume until the lease; then it has ``commit_s`` to hear of the commit.
    """
    return resume_before_ns + round(order.deadlines.commit_s * NS_PER_S)


def check_lease(lease: Lease | None, destination: str) -> None:
    """Raise ``MigrationError`` when the destination may not begin to serve any more: the source serves again.

    The server's process checks the same once more; here it saves the work that would be in vain.
    """
    late_ns = now_ns() - lease.begin_before_ns if lease is not None else -1
    if late_ns >= 0:
        raise MigrationError(
            f"the server came {late_ns / NS_PER_MS:.1f} ms too late to {destination}",
            hint="the source serves again; give the move longer deadlines",
        )
