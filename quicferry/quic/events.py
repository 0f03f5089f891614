"""What the extension tells the application, through ``MigratableConnection.next_event()``.

Addresses are (host, port). ``epoch`` numbers the server's moves, from 1; it is 0 where this side has not
been told the number yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from aioquic.quic.events import QuicEvent

from quicferry.quic.request_wire import Reply
from quicferry.quic.wire import Address, Result
from quicferry.strategies import StrategyName


@dataclass(frozen=True)
class MigrationReady(QuicEvent):
    """Server: the client has answered, or need not or cannot be asked (see ``result``)."""

    epoch: int
    result: Result


@dataclass(frozen=True)
class MigrationCommitted(QuicEvent):
    """Server: the client has switched; the first non-probing packet came to the new address."""

    epoch: int


@dataclass(frozen=True)
class MigrationAnnounced(QuicEvent):
    """Client: SM_PREPARE has come and was accepted."""

    epoch: int
    strategy: StrategyName
    addresses: tuple[Address, ...]


@dataclass(frozen=True)
class LossNoticed(QuicEvent):
    """Client: the old address is silent. ``silent_s``: since the oldest packet left that has no answer."""

    pto_s: float
    silent_s: float


@dataclass(frozen=True)
class ProbeStarted(QuicEvent):
    """Client: the first PATH_CHALLENGE leaves for this address."""

    address: Address


@dataclass(frozen=True)
class PeerMigrated(QuicEvent):
    """Client: the first authentic packet came from an address that is not yet validated."""

    epoch: int
    address: Address


@dataclass(frozen=True)
class PathValidated(QuicEvent):
    """Client: a PATH_RESPONSE came; ``rtt_s`` is counted from the challenge it answers."""

    address: Address
    rtt_s: float


@dataclass(frozen=True)
class PathSwitched(QuicEvent):
    """Client: everything goes to the new address from now on."""

    old: Address
    new: Address


@dataclass(frozen=True)
class MigrationAborted(QuicEvent):
    """Client: the server stays where it is. ``reason`` is a number of ``wire.AbortReason``."""

    epoch: int
    reason: int


@dataclass(frozen=True)
class MigrationFellBack(QuicEvent):
    """Client: it gave up on the move and keeps to the old path; the connection stays open."""

    reason: str


@dataclass(frozen=True)
class MoveRequested(QuicEvent):
    """Server: the client asks for a move. To be answered with ``MigratableConnection.answer_request``."""

    request: int


@dataclass(frozen=True)
class MoveAnswered(QuicEvent):
    """Client: the server has answered the request for a move."""

    request: int
    reply: Reply
