"""Connections that cross before the freeze: what the source has copied, and what is made of it.

A copy of every connection goes ahead while the server serves. Of those that are as they were copied when
it is frozen, no more crosses then than that they are; the others are copied once more, into objects that are
made (``quicferry.quic.copies``).
"""

from __future__ import annotations

import asyncio
import functools
from typing import NamedTuple

import msgspec
from aioquic.quic.connection import QuicConnection

from apps.server.connections import ConnectionTable, Peer
from quicferry.errors import MigrationError
from quicferry.quic.connection import MigratableConnection
from quicferry.quic.copies import (
    Copy,
    ack_fresh_until,
    changes,
    copy_connection,
    is_at_rest,
    next_number,
)
from quicferry.quic.snapshot import connection_ids, restore_snapshot
from quicferry.units import now_s

AT_ONCE = 8  # connections copied between two turns of the loop: a millisecond, for which clients wait
AT_MOST = 64  # in one answer: the destination works on these while the next are copied


class Copied(msgspec.Struct, frozen=True, array_like=True):
    """A connection on its way ahead."""

    key: str
    data: bytes


class Unchanged(msgspec.Struct, frozen=True, array_like=True):
    """A connection that was frozen as it was copied, so long before."""

    key: str
    age_s: float
    number: int  # its next packet number
    owes_ack: bool


read_copied = msgspec.msgpack.Decoder(list[Copied]).decode


class Known(NamedTuple):
    """What is known of a connection that was copied: at the freeze there is no time to look at hundreds."""

    round: int
    changes: int | None  # None: it was not at rest
    at_s: float
    number: int  # its next packet number
    owes_ack_until_s: float


class CopiesOut:
    """At the source: which connections of this move were copied, and in which state."""

    def __init__(self, table: ConnectionTable, epoch: int) -> None:
        self._table = table
        self.epoch = epoch
        self._copied: dict[str, Known] = {}  # by the peer's key

    async def copy_some(self, round_: int) -> list[Copied]:
        """Copy some that this round has not copied and that are not there as they are. Empty: it is over."""
        made: list[Copied] = []
        for peer in list(self._table.peers.values()):
            known = self._copied.get(peer.key)
            if known is not None and (known.round == round_ or self._is_there(peer, known)):
                continue
            if peer.key not in self._table.peers:
                continue  # gone, while others were copied
            now = now_s()
            at_rest = is_at_rest(peer.connection)
            data = copy_connection(peer.connection, now, epoch=self.epoch)
            self._copied[peer.key] = Known(
                round_,
                changes(peer.connection) if at_rest else None,  # after the copy: to look at it counts as well
                now,
                next_number(peer.connection),
                ack_fresh_until(peer.connection) if at_rest else 0.0,
            )
            if data is not None:
                made.append(Copied(peer.key, data))
            if len(made) >= AT_MOST:
                break
            if len(made) % AT_ONCE == 0:
                await asyncio.sleep(0)
        return made

    @staticmethod
    def _is_there(peer: Peer, known: Known) -> bool:
        return known.changes is not None and known.changes == changes(peer.connection)

    def unchanged(self, now: float) -> dict[str, Unchanged]:
        """The connections that are as they were copied. To be asked before they are held."""
        peers = self._table.peers
        return {
            key: Unchanged(key, now - known.at_s, known.number, now < known.owes_ack_until_s)
            for key, known in self._copied.items()
            if key in peers and self._is_there(peers[key], known)
        }


class CopiesIn:
    """At the destination: connections that lie ready. None of them can send or hear anything."""

    def __init__(
        self,
        table: ConnectionTable,
        build: functools.partial[MigratableConnection],
        blanks: list[QuicConnection],
        epoch: int,
    ) -> None:
        self._table, self._build, self._blanks = table, build, blanks
        self.epoch = epoch
        self._copies: dict[str, tuple[Copy, Peer]] = {}
        self._by_id: dict[bytes, Peer] = {}

    async def take_in(self, copied: list[Copied]) -> None:
        """Make the connections, or bring those that are made up to date. Raises ``MigrationError``."""
        for count, each in enumerate(copied, 1):
            known = self._copies.get(each.key)
            if known is not None:
                known[0].update(each.data, now_s())
                self._name(known[1])
            else:
                copy = Copy(
                    each.data,
                    configuration=self._table.configuration,
                    build=self._build,
                    now=now_s(),
                    epoch=self.epoch,
                    into=self._blank(),
                )
                self._copies[each.key] = copy, self._made(each.key, copy.connection)
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _blank(self) -> QuicConnection | None:
        return self._blanks.pop() if self._blanks else None

    def _name(self, peer: Peer) -> None:
        """Note the connection IDs that a newer copy of a peer's connection has."""
        before, ids = peer.connection_ids, set(connection_ids(peer.connection))
        peer.connection_ids = ids
        for gone in before - ids:
            self._by_id.pop(gone, None)
        for new in ids - before:
            self._by_id[new] = peer

    def _made(self, key: str, connection: QuicConnection) -> Peer:
        assert isinstance(connection, MigratableConnection)
        peer = self._table.make_peer(connection, set(), key)
        self._name(peer)
        return peer

    def restored(self, key: str, snapshot: bytes) -> Peer:
        """The peer of a snapshot, made of its copy if there is one. Raises ``MigrationError``."""
        known = self._copies.pop(key, None)
        if known is not None:
            known[0].refresh(snapshot, now_s())
            self._name(known[1])
            return known[1]
        made = restore_snapshot(
            snapshot,
            configuration=self._table.configuration,
            build=self._build,
            now=now_s(),
            epoch=self.epoch,
            into=self._blank(),
        )
        return self._made(key, made)

    def routes(self) -> dict[bytes, Peer]:
        """Which connection ID leads to whom, of those that were taken or restored: the others are gone."""
        for _, peer in self._copies.values():
            for each in peer.connection_ids:
                self._by_id.pop(each, None)
        self._copies.clear()
        return self._by_id

    def taken(self, unchanged: Unchanged, now: float) -> Peer:
        """The peer as it was copied; its times are moved when it wakes, as of ``now``.

        Raises ``MigrationError`` when there is no such copy.
        """
        known = self._copies.pop(unchanged.key, None)
        if known is None:
            raise MigrationError("a connection is to be as it was copied ahead, and no copy of it is here")
        copy, peer = known
        copy.check(unchanged.number)
        # of hundreds the last need not be through before the first has its turn
        peer.late = functools.partial(
            copy.take, now, age_s=unchanged.age_s, number=unchanged.number, owes_ack=unchanged.owes_ack
        )
        return peer
