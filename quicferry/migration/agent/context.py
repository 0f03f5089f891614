"""What both sides of a move share on one edge host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from quicferry.errors import FerryError
from quicferry.events import EventLog
from quicferry.migration.control import ControlClient
from quicferry.migration.datagrams.forwarder import Forwarder
from quicferry.migration.datagrams.moving_address import MovingAddress
from quicferry.migration.datagrams.waiting_room import WaitingRoom
from quicferry.migration.engines.base import Engine, ServiceContainer
from quicferry.migration.journal import Journal
from quicferry.migration.order import MoveOrder
from quicferry.migration.rpc.channel import RpcClient
from quicferry.units import NS_PER_S


@dataclass(kw_only=True)
class Host:
    """What both sides of a move share on this edge host. ``engine`` and ``peer`` look things up by name.

    ``forwarder`` and ``room`` are None on a host without client-facing interfaces.
    """

    edge: str
    events: EventLog
    control: ControlClient
    container: ServiceContainer
    engine: Callable[[str], Engine]
    peer: Callable[[str], RpcClient]
    journal: Journal
    forwarder: Forwarder | None
    room: WaitingRoom | None
    address: MovingAddress | None = None  # one that moves with the server
    linger_s: float  # late datagrams are handed on this long after the commit


def fence_ns(resume_before_ns: int, order: MoveOrder) -> int:
    """The moment by which a destination that has not heard of the commit has taken its server down.

    The destination may resume until the lease; then it takes at most ``commit_s`` to hear of the
    commit, or to act on the fence.
    """
    return resume_before_ns + round(order.deadlines.commit_s * NS_PER_S)


def describe(error: BaseException) -> str:
    """An error as one line of text, never empty."""
    if isinstance(error, FerryError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "a step took longer than its deadline"
    return f"{type(error).__name__}: {error}"
