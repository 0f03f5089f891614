"""What each kind of fault does to the protocol's world, as a table. How it is drawn: ``fault_kinds``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from simulation.network import (
    BOTH,
    Address,
    Blackhole,
    BurstLoss,
    Corrupt,
    Duplicate,
    Impairment,
    Jitter,
    LoseOne,
    SmallMtu,
    Where,
    Wire,
)
from simulation.protocol.endpoint import Endpoint
from simulation.protocol.story import Fault

End = Callable[[], None]


class FaultTarget(Protocol):
    """What the faults use of the world that they act on."""

    replayed_after_s: float | None  # None: nobody replays

    @property
    def wire(self) -> Wire:
        """What carries the datagrams, and impairs them."""
        ...

    @property
    def client(self) -> Endpoint:
        """The client's end."""
        ...

    @property
    def server(self) -> Endpoint | None:
        """The server's end; None while the server is nowhere."""
        ...

    def rebind(self) -> None:
        """A NAT gives the client another address."""
        ...

    def begin_relay(self, ahead_s: float) -> None:
        """A relay's copies come so much earlier."""
        ...

    def end_relay(self) -> None:
        """The relay stops."""
        ...

    def close_by_service(self) -> None:
        """The service ends the connection."""
        ...

    def misuse(self, victims: int, every_s: float) -> End:
        """The server announces moves to strangers until the returned call."""
        ...


#: does a fault and returns what ends it again, if anything does
Action = Callable[[FaultTarget, Fault], End | None]


def edge_address(number: int) -> Address:
    """Where the service is at an edge."""
    return (f"10.0.{number}.2", 4433)


def where(fault: Fault, direction: str | None = None) -> Where:
    """The datagrams that a fault is about."""
    edges = frozenset() if fault.edge is None else frozenset({edge_address(fault.edge)})
    return Where(direction or fault.direction, edges)


def _impair(make: Callable[[Fault], Impairment]) -> Action:
    def begin(world: FaultTarget, fault: Fault) -> End:
        made = make(fault)
        world.wire.impairments.append(made)
        return lambda: world.wire.impairments.remove(made)

    return begin


def _rebind(world: FaultTarget, _: Fault) -> None:
    world.rebind()


def _relay(world: FaultTarget, fault: Fault) -> End:
    world.begin_relay(fault.amount)
    return world.end_relay


def _replay_elsewhere(world: FaultTarget, fault: Fault) -> End:
    world.replayed_after_s = fault.amount

    def end() -> None:
        world.replayed_after_s = None

    return end


def _server_updates_key(world: FaultTarget, _: Fault) -> None:
    if world.server is not None and not world.server.stopped:
        world.server.connection.request_key_update()
        world.server.connection.send_ping(1)
        world.server.proceed()


def _client_updates_key(world: FaultTarget, _: Fault) -> None:
    world.client.connection.request_key_update()
    world.client.connection.send_ping(1)
    world.client.proceed()


def _server_closes(world: FaultTarget, _: Fault) -> None:
    world.close_by_service()


def _announce_victims(world: FaultTarget, fault: Fault) -> End:
    return world.misuse(victims=7, every_s=fault.amount)


#: kind -> what it does; the names are those of ``fault_kinds.KINDS``
ACTIONS: dict[str, Action] = {
    "blackhole": _impair(lambda f: Blackhole(where(f))),
    "loss-bursts": _impair(lambda f: BurstLoss(f.amount, 0.3, 1.0, where(f))),
    "jitter": _impair(lambda f: Jitter(f.amount, where(f))),
    "duplicate": _impair(lambda f: Duplicate(f.amount, 0.005, where(f))),
    "replay": _impair(lambda f: Duplicate(1.0, f.amount, where(f))),
    "corrupt": _impair(lambda f: Corrupt(f.amount, where(f))),
    "small-mtu": _impair(lambda f: SmallMtu(round(f.amount), where(f, BOTH))),
    "rebind": _rebind,
    "relay": _relay,
    "replay-elsewhere": _replay_elsewhere,
    "server-key-update": _server_updates_key,
    "client-key-update": _client_updates_key,
    "server-closes": _server_closes,
    "victims": _announce_victims,
    "lose-one": _impair(lambda f: LoseOne(round(f.amount), where(f))),
}
