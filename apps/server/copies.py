"""Connections that cross before the freeze: what the source has copied, and what is made of it.

A copy of every connection goes ahead while the server serves. Of those that are as they were copied when
it is frozen, no more crosses then than that they are; the others are copied once more, into objects that are
made (``quicferry.quic.copies``).
"""

from __future__ import annotations

import asyncio
import functools

import msgspec
from aioquic.quic.connection import QuicConnection

from apps.server.connections import ConnectionTable, Peer
from quicferry.errors import MigrationError
from quicferry.quic.connection import MigratableConnection
from quicferry.quic.copies import (
    Copy,
    changes,
    copy_connection,
    is_at_rest,
    next_number,
    owes_acknowledgement,
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


class CopiesOut:
    """At the source: which connections of this move were copied, and in which state."""

    def __init__(self, table: ConnectionTable, epoch: int) -> None:
        self._table = table
        self.epoch = epoch
        #: key -> in which round, changes (None: it was not at rest), and when
        self._copied: dict[str, tuple[int, int | None, float]] = {}

    async def copy_some(self, round_: int) -> list[Copied]:
        """Copy some that this round has not copied and that are not there as they are. Empty: it is over."""
        made: list[Copied] = []
        for peer in list(self._table.peers.values()):
            known = self._copied.get(peer.key)
            if (known is not None and known[0] == round_) or self._is_there(peer):
                continue
            if peer.key not in self._table.peers:
                continue  # gone, while others were copied
            now = now_s()
            at_rest = is_at_rest(peer.connection)
            data = copy_connection(peer.connection, now, epoch=self.epoch)
            # after the copy: to look at a connection counts as well
            self._copied[peer.key] = round_, changes(peer.connection) if at_rest else None, now
            if data is not None:
                made.append(Copied(peer.key, data))
            if len(made) >= AT_MOST:
                break
            if len(made) % AT_ONCE == 0:
                await asyncio.sleep(0)
        return made

    def _is_there(self, peer: Peer) -> bool:
        known = self._copied.get(peer.key)
        return known is not None and known[1] is not None and known[1] == changes(peer.connection)

    def unchanged(self, now: float) -> dict[str, Unchanged]:
        """The connections that are as they were copied. To be asked before they are held."""
        return {
            peer.key: Unchanged(
                peer.key,
                now - self._copied[peer.key][2],
                next_number(peer.connection),
                owes_acknowledgement(peer.connection, now),
            )
            for peer in self._table.peers.values()
            if self._is_there(peer)
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

    async def take_in(self, copied: list[Copied]) -> None:
        """Make the connections, or bring those that are made up to date. Raises ``MigrationError``."""
        for count, each in enumerate(copied, 1):
            known = self._copies.get(each.key)
            if known is not None:
                known[0].update(each.data, now_s())
                self._name(*known)
            else:
                copy = Copy(
                    each.data,
                    configuration=self._table.configuration,
                    build=self._build,
                    now=now_s(),
                    epoch=self.epoch,
                    into=self._blank(),
                )
                self._copies[each.key] = copy, self._peer(each.key, copy.connection)
            if count % AT_ONCE == 0:
                await asyncio.sleep(0)

    def _blank(self) -> QuicConnection | None:
        return self._blanks.pop() if self._blanks else None

    @staticmethod
    def _name(copy: Copy, peer: Peer) -> None:
        """Note the connection IDs that a newer copy of a peer's connection has."""
        peer.connection_ids = set(connection_ids(copy.connection))

    def _peer(self, key: str, connection: QuicConnection) -> Peer:
        assert isinstance(connection, MigratableConnection)
        return self._table.make_peer(connection, set(connection_ids(connection)), key)

    def restored(self, key: str, snapshot: bytes) -> Peer:
        """The peer of a snapshot, made of its copy if there is one. Raises ``MigrationError``."""
        known = self._copies.pop(key, None)
        if known is not None:
            known[0].refresh(snapshot, now_s())
            self._name(*known)
            return known[1]
        made = restore_snapshot(
            snapshot,
            configuration=self._table.configuration,
            build=self._build,
            now=now_s(),
            epoch=self.epoch,
            into=self._blank(),
        )
        return self._peer(key, made)

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
