"""What both sides of a move share on one edge host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from quicferry.errors import FerryError, MigrationError
from quicferry.events import EventLog
from quicferry.migration.control import ControlClient
from quicferry.migration.datagrams.forwarder import Forwarder
from quicferry.migration.datagrams.moving_address import MovingAddress
from quicferry.migration.datagrams.waiting_room import WaitingRoom
from quicferry.migration.engines.base import Engine, ServiceContainer
from quicferry.migration.journal import Journal
from quicferry.migration.order import MoveOrder
from quicferry.migration.rpc.channel import RpcClient
from quicferry.migration.states import MoveMachine, Signal, Step
from quicferry.urgency import Urgency


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
    urgency: Urgency = field(default_factory=Urgency)
    linger_s: float  # late datagrams are handed on this long after the commit


def note_step(
    host: Host, machine: MoveMachine, signal: Signal, order: MoveOrder, part: str, recorded: frozenset[Step]
) -> Step:
    """Advance a state machine, and journal the new step.

    A step in ``recorded`` is not taken when it cannot be written: the machine stays where it was, and
    ``MigrationError`` is raised. Any other is taken all the same: it ends a move, or a server that is asked
    tells the same as the record.
    """
    before = machine.step
    step = machine.take(signal)
    if step is before:
        return step
    try:
        host.journal.note(order.epoch, part, step, order)
    except OSError as error:
        if step not in recorded:
            host.journal.remember(order.epoch, part, step, order)
            return step
        machine.step = before
        raise MigrationError(
            f"the journal of {host.edge} cannot be written: {error}",
            hint="without a record of what is begun, nothing is begun; is the disk full?",
        ) from error
    return step


def describe(error: BaseException) -> str:
    """An error as one line of text, never empty."""
    if isinstance(error, FerryError):
        return str(error)
    if isinstance(error, TimeoutError):
        return "a step took longer than its deadline"
    return f"{type(error).__name__}: {error}"
