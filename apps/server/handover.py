"""What crosses at a hand-off: written by the frozen server, read by the one that takes over.

Connections that were copied ahead and are unchanged are only named (``apps.server.copies``); all others cross
as snapshots, and with them the service's state and the TLS sessions that may be resumed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from apps.server.connections import ConnectionTable, Peer
from apps.server.copies import CopiesIn, Unchanged
from apps.server.service import ApplicationService
from apps.server.shell import write_state
from apps.server.tickets import PlainTicket, from_plain, to_plain
from quicferry.errors import MigrationError
from quicferry.migration import control
from quicferry.quic.snapshot import Bundle, freeze, pack_bundle, take_snapshot
from quicferry.strategies import StrategyName
from quicferry.units import now_s


class HandedOver(msgspec.Struct, kw_only=True):
    """The service's half of a hand-off: its state, and whose connection is which snapshot."""

    service: bytes
    keys: list[str]
    strategies: list[StrategyName | None] = []  # of each: how its client follows this move
    unchanged: list[Unchanged] = []  # those that are as they were copied ahead; they have no snapshot
    unchanged_strategies: list[StrategyName | None] = []
    tickets: list[PlainTicket] = []  # whoever takes over must know the sessions that may be resumed


#: made when the process starts: to read the annotations of a type takes milliseconds, which would be downtime
_handed_over = msgspec.msgpack.Decoder(HandedOver)


def give(
    table: ConnectionTable,
    service: ApplicationService,
    order: control.Freeze,
    path: str,
    changed: list[Peer],
    unchanged: dict[str, Unchanged],
) -> dict[str, Any]:
    """Freeze the connections that go along, and write the state; returns Freeze's detail.

    The fence is closed, and ports and timers are off. ``unchanged``: those that are as they were copied, by
    their keys.
    """
    now, epoch = now_s(), order.epoch
    peers: list[Peer] = []
    as_copied = [table.peers[key] for key in unchanged]
    for peer in as_copied:
        peer.stopped = True
    for peer in changed:
        try:
            freeze(peer.connection, now)
        except MigrationError:
            continue  # in the middle of its handshake, or closing: it stays, the others go
        peers.append(peer)
    # Directly after the answer: the keys of those that lie still are sealed while the state crosses.
    # Until then nobody touches them: port and timers are off, and orders come later in the loop's turn.
    asyncio.get_running_loop().call_soon(_seal, as_copied, now)
    snapshots = [take_snapshot(peer.connection, now, epoch=epoch) for peer in peers]
    handed = HandedOver(
        service=service.dump(),
        keys=[peer.key for peer in peers],
        strategies=[peer.strategy for peer in peers],
        unchanged=list(unchanged.values()),
        unchanged_strategies=[peer.strategy for peer in as_copied],
    )
    if table.tickets:
        handed.tickets = [to_plain(ticket) for ticket in table.tickets.values()]
    bundle = pack_bundle(epoch, snapshots, msgspec.msgpack.encode(handed))
    return {
        **write_state(path, bundle, order.inline_bytes),
        "connections": len(snapshots) + len(as_copied),
        "unchanged": len(as_copied),
        "left": len(table.peers) - len(snapshots) - len(as_copied),
    }


def _seal(peers: list[Peer], now: float) -> None:
    for peer in peers:
        peer.connection.hold()
        freeze(peer.connection, now)
        peer.stopped = False


def take(table: ConnectionTable, content: Bundle, ahead: CopiesIn) -> bytes:
    """Put another server's connections and sessions in the place of all; returns its service's state.

    The connections are held until they are resumed. Raises ``MigrationError``; the table is then as it was.
    """
    handed = _handed_over.decode(content.service)
    now = now_s()
    peers = [ahead.taken(each, now) for each in handed.unchanged]
    peers += [ahead.restored(key, data) for key, data in zip(handed.keys, content.snapshots, strict=True)]
    for peer, strategy in zip(peers, handed.unchanged_strategies + handed.strategies, strict=True):
        peer.strategy = strategy
    table.remove_all()
    if table.tickets is not None:
        table.tickets |= {ticket.ticket: from_plain(ticket) for ticket in handed.tickets}
    table.admit(peers, ahead.routes())
    return handed.service
