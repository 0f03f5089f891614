"""What goes wrong in the protocol's world, as a table: how often it is drawn, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulation.network import (
    BOTH,
    Address,
    Blackhole,
    BurstLoss,
    Corrupt,
    Duplicate,
    Impairment,
    Jitter,
    SmallMtu,
    Where,
)
from simulation.protocol.story import Fault

if TYPE_CHECKING:
    from simulation.protocol.world import ProtocolWorld

FOREVER = 1e6  # seconds


@dataclass(frozen=True)
class Kind:
    """One kind of fault. ``begin`` does it and returns what ends it again, if anything does."""

    title: str
    weight: int
    begin: Callable[[ProtocolWorld, Fault], Callable[[], None] | None]
    seconds: tuple[float, ...] = (0.0,)
    amounts: tuple[float, ...] = (0.0,)


def edge_address(number: int) -> Address:
    """Where the service is at an edge."""
    return (f"10.0.{number}.2", 4433)


def where(fault: Fault, direction: str | None = None) -> Where:
    """The datagrams that a fault is about."""
    edges = frozenset() if fault.edge is None else frozenset({edge_address(fault.edge)})
    return Where(direction or fault.direction, edges)


def _impair(
    make: Callable[[Fault], Impairment],
) -> Callable[[ProtocolWorld, Fault], Callable[[], None] | None]:
    def begin(world: ProtocolWorld, fault: Fault) -> Callable[[], None]:
        made = make(fault)
        world.wire.impairments.append(made)
        return lambda: world.wire.impairments.remove(made)

    return begin


def _rebind(world: ProtocolWorld, _: Fault) -> None:
    world.rebind()


def _relay(world: ProtocolWorld, fault: Fault) -> Callable[[], None]:
    world.relay_ahead_s = fault.amount
    return world.end_relay


def _server_updates_key(world: ProtocolWorld, _: Fault) -> None:
    if world.server is not None and not world.server.stopped:
        world.server.connection.request_key_update()
        world.server.connection.send_ping(1)
        world.server.proceed()


def _client_updates_key(world: ProtocolWorld, _: Fault) -> None:
    world.client.connection.request_key_update()
    world.client.connection.send_ping(1)
    world.client.proceed()


def _server_closes(world: ProtocolWorld, _: Fault) -> None:
    world.close_by_service()


def _announce_victims(world: ProtocolWorld, fault: Fault) -> Callable[[], None]:
    return world.misuse(victims=7, every_s=fault.amount)


_WHILE = (0.02, 0.1, 0.3, 0.7, 2.0)

KINDS: dict[str, Kind] = {
    "blackhole": Kind("nothing gets through", 8, _impair(lambda f: Blackhole(where(f))), seconds=_WHILE),
    "loss-bursts": Kind(
        "Gilbert-Elliott loss; the amount is the chance that a burst begins",
        4,
        _impair(lambda f: BurstLoss(f.amount, 0.3, 1.0, where(f))),
        seconds=(0.5, 2.0, 5.0),
        amounts=(0.01, 0.05, 0.15),
    ),
    "jitter": Kind(
        "up to the amount in seconds later: reorders",
        2,
        _impair(lambda f: Jitter(f.amount, where(f))),
        seconds=(1.0, 5.0),
        amounts=(0.002, 0.02),
    ),
    "duplicate": Kind(
        "the amount is the share",
        1,
        _impair(lambda f: Duplicate(f.amount, 0.005, where(f))),
        seconds=(1.0, 5.0),
        amounts=(0.1, 1.0),
    ),
    "replay": Kind(
        "every datagram comes again, up to the amount in seconds later",
        1,
        _impair(lambda f: Duplicate(1.0, f.amount, where(f))),
        seconds=(1.0, 5.0),
        amounts=(0.5, 2.0),
    ),
    "corrupt": Kind(
        "one bit changed; the amount is the share",
        1,
        _impair(lambda f: Corrupt(f.amount, where(f))),
        seconds=(0.5, 2.0),
        amounts=(0.02, 0.3),
    ),
    "small-mtu": Kind(
        "larger UDP payloads are lost",
        1,
        _impair(lambda f: SmallMtu(round(f.amount), where(f, BOTH))),
        seconds=(FOREVER,),
        amounts=(1280.0,),
    ),
    "rebind": Kind("a NAT gives the client a new address", 3, _rebind),
    "relay": Kind(
        "an off-path forwarder's copies come first (RFC 9000 §9.3.3), then it stops",
        3,
        _relay,
        seconds=(0.5, 1.5),
        amounts=(0.001,),
    ),
    "server-key-update": Kind("the server updates its keys (RFC 9001 §6)", 2, _server_updates_key),
    "client-key-update": Kind("the client updates its keys", 2, _client_updates_key),
    "server-closes": Kind("the service closes the connection", 1, _server_closes),
    "victims": Kind(
        "a malicious server announces moves to strangers, one every so many seconds",
        1,
        _announce_victims,
        seconds=(3.0,),
        amounts=(0.02, 1.05),
    ),
}
