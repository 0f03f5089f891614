"""Moves the server of the protocol's world as node agents do it, or does half of that and takes it back."""

from __future__ import annotations

import asyncio
import copy
import copyreg
import functools
from dataclasses import dataclass
from unittest import mock

from aioquic import tls
from aioquic._crypto import AEAD, HeaderProtection
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.configuration import QuicConfiguration

from quicferry.errors import MigrationError
from quicferry.quic import MigratableConnection
from quicferry.quic.snapshot import freeze, restore_snapshot, take_snapshot, thaw
from quicferry.quic.wire import Result
from quicferry.strategies import RULES, speaks_first
from simulation.protocol.applications import Service
from simulation.protocol.endpoint import Endpoint
from simulation.protocol.faults import edge_address
from simulation.protocol.story import Ending, Move, ServerAddress
from simulation.protocol.world import ProtocolWorld, Room

LINGER_S = 10.0  # late datagrams are handed on this long after the commit
AWAITED_S = 3.0  # ... and kept for a client that has not come itself so long after the server runs
COMMIT_S = 0.004  # from the destination's word to its hearing that the commit is recorded
FENCE_S = 0.05  # from the end of the destination to the source's going on
#: a server that speaks first is heard after half a round trip; twice that and some milliseconds is late
OVERHEAD_RTTS = 1.0
OVERHEAD_S = 0.015
NOTICE_LEAST_S = 0.2
NOTICE_PTOS = 6
#: answers of clients that will not be where the server is
STAYS = frozenset(
    {
        *(Result.NOT_NEGOTIATED, Result.REFUSED, Result.ADDRESS_FILTERED, Result.NO_CID, Result.NO_POOL),
        *(Result.NO_ADDRESS, Result.UNTOLD),
    }
)


@dataclass
class Image:
    """What crosses the network: a snapshot, or the process as it is."""

    snapshot: bytes | None
    process: MigratableConnection | None
    service: Service


class Mover:
    """Carries out moves, one after another."""

    def __init__(self, world: ProtocolWorld) -> None:
        self._world = world

    async def carry_out(self, number: int, move: Move) -> None:
        """One move, to the end that its story wants; or as far as the connection lets it."""
        world = self._world
        world.number = number
        if world.server is None or world.server.connection.is_closing or move.to == world.here:
            return
        if not await self._notice(number, move):
            return
        image = self._freeze(number, move)
        if image is None:
            self._call_off(number, "cannot freeze")
            return
        source, origin = world.server, world.here
        assert source is not None
        world.server = None
        world.left_at[edge_address(origin)] = world.loop.time()
        await asyncio.sleep(move.downtime_s)
        if move.ending is not Ending.ROLLED_BACK:
            destination = self._resume(number, move, image)
            if move.ending is Ending.COMMIT:
                world.loop.physics(COMMIT_S, self._record_commit, destination)
                world.loop.call_later(LINGER_S, world.forwards.pop, origin, None)
                return
            await asyncio.sleep(move.served_s)
            destination.stop()
            world.server = None
            world.left_at[edge_address(move.to)] = world.loop.time()
            world.history.note("world", "destination taken down")
            await asyncio.sleep(FENCE_S)
        world.forwards.pop(origin, None)
        world.handed_on_by.pop(origin, None)
        world.room = None
        world.left_at.pop(edge_address(origin), None)
        world.here, world.server, world.service = origin, source, image.service
        world.close_thrown_away |= world.closed_by_service
        world.closed_by_service = False
        self._go_on_at_source(number)

    async def _notice(self, number: int, move: Move) -> bool:
        """Tell the client as the strategy wants it; returns whether the server may freeze."""
        world = self._world
        server = world.server
        assert server is not None
        rules = RULES[move.strategy]
        announced_s = move.downtime_s if move.announced_s is None else move.announced_s
        world.mark(
            f"prepare {number}", strategy=str(move.strategy), server_first=move.server_first, to=move.to
        )
        server.connection.prepare_migration(
            number,
            move.strategy,
            [edge_address(move.to)] if rules.carries_address else [],
            1000 * announced_s,
            move.server_first,
            world.loop.time(),
        )
        server.proceed()
        patience_s = min(move.notice_s, max(NOTICE_LEAST_S, NOTICE_PTOS * server.connection.pto_s))
        if rules.notice:
            await world.until(lambda: number in world.answers, world.loop.time() + patience_s, 0.001)
        answer = world.answers.get(number)
        if answer is not None:
            world.mark(f"ready {number}", answer=str(answer))
        refused = answer is not None and answer is not Result.OK
        if answer in STAYS or (refused and not move.company) or move.ending is Ending.CALLED_OFF:
            self._call_off(number, str(answer))
            return False
        await asyncio.sleep(move.ready_wait_s)
        return not server.connection.is_closing

    def _call_off(self, number: int, why: str) -> None:
        world = self._world
        server = world.server
        if server is None or server.connection.is_closing:
            return
        server.connection.abort_migration(number, "operator", world.loop.time())
        world.mark(f"back {number}", why=why)
        world.calm()
        server.start()
        server.proceed()

    def _freeze(self, number: int, move: Move) -> Image | None:
        world = self._world
        server = world.server
        assert server is not None
        connection, now = server.connection, world.loop.time()
        server.stop()
        connection.hold()
        service = copy.deepcopy(world.service)
        if world.story.process_moves:
            image = Image(None, forked(connection), service)
        else:
            try:
                freeze(connection, now)
            except MigrationError:
                return None
            image = Image(take_snapshot(connection, now, epoch=number), None, service)
        if move.forwarding:
            world.forwards[world.here] = world.handed_on_by[world.here] = move.to
            world.room = Room(move.to)
        else:
            world.room = None
        world.mark(f"frozen {number}")
        return image

    def _resume(self, number: int, move: Move, image: Image) -> Endpoint:
        world = self._world
        now = world.loop.time()
        connection = image.process
        if image.snapshot is not None:
            restored = restore_snapshot(
                image.snapshot,
                configuration=world.server_configuration,
                build=functools.partial(MigratableConnection, extension=world.extension),
                now=now,
                epoch=number,
            )
            assert isinstance(restored, MigratableConnection)
            connection = restored
        assert connection is not None
        first = speaks_first(move.strategy, move.server_first)
        world.here = move.to
        world.left_at.pop(edge_address(move.to), None)
        world.ever_at.add(edge_address(move.to))
        world.forwards.pop(move.to, None)
        world.handed_on_by.pop(move.to, None)
        world.service = copy.deepcopy(image.service)
        is_known = world.story.server_address is ServerAddress.KNOWN
        address = edge_address(move.to) if is_known else None
        connection.resume(number, move.strategy, first, now, address=address, withhold=True)
        world.server = world.serve(move.to, connection)
        world.mark(f"resumed {number}", edge=move.to, first=first)
        world.calm()
        world.heard_at = None
        if first and move.ending is Ending.COMMIT:
            world.loop.physics(
                OVERHEAD_RTTS * world.story.rtt_s + OVERHEAD_S,
                functools.partial(world.check_overhead, frozenset(image.service.obeyed)),
            )
        room = world.room
        if room is not None and (first or room.client_came):
            world.open_room()
        elif room is not None:
            world.loop.call_later(AWAITED_S, world.open_later, room)
        world.server.proceed()
        return world.server

    def _record_commit(self, destination: Endpoint) -> None:
        """Both agents have written down that the source never goes on."""
        if self._world.server is destination and not destination.stopped:
            destination.connection.record_commit()
            destination.proceed()

    def _go_on_at_source(self, number: int) -> None:
        world = self._world
        server = world.server
        assert server is not None
        now = world.loop.time()
        if not world.story.process_moves:
            thaw(server.connection, now)
        server.connection.abort_migration(number, "deadline", now)
        world.mark(f"back {number}", edge=world.here)
        world.calm()
        server.start()
        server.proceed()


def forked(connection: MigratableConnection) -> MigratableConnection:
    """A second process with the same memory, as a restored image is one."""
    with mock.patch.dict(copyreg.dispatch_table, dict.fromkeys(_SHARED, _keep)):
        return copy.deepcopy(connection)


#: what both copies may use: C objects without a state that matters, what never changes, and the TLS
#: context, which has nothing to say once the handshake is over
_SHARED = (AEAD, HeaderProtection, Buffer, QuicConfiguration, tls.Context)


def _keep(_: object) -> str:
    """For ``deepcopy``, a string instead of a recipe means: the same object."""
    return "shared"
