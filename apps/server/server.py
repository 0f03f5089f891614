"""The extended QUIC server process: serves, is frozen, and goes on elsewhere.

    python -m apps.server.server --config FILE

The node agent of its host gives it orders (``quicferry.migration.control``). Stdin, stdout and
stderr may be closed or lost: what it has to tell goes to its event file.
"""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    DatagramFrameReceived,
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
)

from apps.config import ALPN, MAX_DATAGRAM_FRAME_BYTES, MOVED_ERROR, ServerConfig
from apps.server.connections import ConnectionTable, Peer
from apps.server.copies import CopiesIn, CopiesOut, Unchanged, read_copied
from apps.server.due_answers import DueAnswers
from apps.server.notice_window import NoticeWindow
from apps.server.service import ApplicationService
from apps.server.shell import ServerShell, read_state, run_server, write_state
from apps.server.tickets import PlainTicket, from_plain, to_plain
from apps.server.warm_up import Rehearsal
from apps.udp import BATCH, Datagram, UdpPort
from quicferry.errors import MigrationError
from quicferry.migration import control
from quicferry.model import Endpoint
from quicferry.quic import (
    ExtensionConfig,
    MigratableConnection,
    MigrationCommitted,
    MigrationReady,
    MoveRequested,
    Reply,
)
from quicferry.quic.fence import Fence
from quicferry.quic.snapshot import (
    blank,
    freeze,
    is_frozen,
    pack_bundle,
    record_commit,
    take_snapshot,
    thaw,
    unpack_bundle,
)
from quicferry.quic.wire import Result
from quicferry.strategies import Carrier, StrategyName, rules_of, speaks_first, strategies
from quicferry.units import now_ns, now_s

AGENT_DECIDES_S = 1.0  # an agent that says nothing for so long has nowhere to go
NOTICE_LEAST_S = 0.2
NOTICE_PTOS = 6  # two repetitions of a lost notice or answer, as recovery sends them
WAITING_PER_CLIENT = 2  # datagrams handled before the first flight of a server with many clients
WAITING_AT_ONCE = 8  # datagrams between two looks at the clock
BEFORE_FIRST_FLIGHT_S = 0.002
WAITING_MOST = 8192  # datagrams looked at then
#: answers of clients that will not be where the server is
STAYS = frozenset(
    {
        *(Result.NOT_NEGOTIATED, Result.REFUSED, Result.ADDRESS_FILTERED, Result.NO_CID),
        *(Result.NO_ADDRESS, Result.UNTOLD),
    }
)


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


class QuicServer(ServerShell):
    """A server whose QUIC connections can move. See ``ServerShell``."""

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(config)
        self.fence = Fence(Path(config.fence))
        quic = QuicConfiguration(is_client=False, alpn_protocols=[ALPN], idle_timeout=config.idle_timeout_s)
        quic.max_datagram_frame_size = MAX_DATAGRAM_FRAME_BYTES
        quic.load_cert_chain(config.certificate, config.key)
        preferred = config.preferred_address
        extension = None
        if config.extension:
            extension = ExtensionConfig(
                strategies=frozenset(config.strategies),
                congestion=config.congestion,
                preferred_address=() if preferred is None else ((preferred.host, preferred.port),),
            )
        self.port = UdpPort(config.listen, self._received)
        self.table = ConnectionTable(
            self.port, quic, extension, self._on_event, self._pump, self.lease.may_send
        )
        if config.tickets:
            self.table.tickets = {}
        self.table.accepting = not config.standby
        self._answers: dict[str, Result] = {}  # connection key -> SM_READY's result, in the notice phase
        self._answered = asyncio.Event()  # set when nobody is waited for any more
        self._awaited: dict[str, float] = {}  # connection key -> until when it is waited for
        self._shaken = asyncio.Event()  # set when a handshake has come to its end
        self._new_address = ""  # where the clients are to be told to go
        self._build = functools.partial(MigratableConnection, extension=extension)
        self._window: NoticeWindow | None = None  # while something is told to all clients
        self._asking: set[asyncio.Task[None]] = set()  # requests of clients that the agent decides about
        self._due = DueAnswers(lambda: self.frozen_epoch is None and self.lease.may_send(), self._answer_due)
        self._blanks: list[QuicConnection] = []  # for connections that are to be taken over
        self._copies_out: CopiesOut | None = None
        self._copies_in: CopiesIn | None = None
        self._rehearsal = Rehearsal()

    @property
    def connections(self) -> int:
        return len(self.table.peers)

    def _start_serving(self) -> None:
        self.port.start()

    def _make_ready(self) -> None:
        self._rehearsal.play(self.table.configuration, self.table.extension)
        # most of the time of an import would go to making connections, which need not know whose they are
        for _ in range(self.config.expected_connections):
            self._blanks.append(blank(configuration=self.table.configuration, build=self._build))

    # --- the service -------------------------------------------------------------------------

    def _received(self, batch: list[Datagram]) -> None:
        window = self._window
        if window is None or window.over.is_set():
            self.table.received(batch)
            return
        for peer in self.table.deliver(batch):
            if not window.heard(peer):
                self.table.proceed(peer)
        window.go_on()

    def _first_flight(self, peer: Peer) -> bool:
        return peer.key in self.table.peers and self.table.proceed(peer)

    def _end_window(self, order: control.Order) -> None:
        """What comes next finds that everybody was told; who was not yet, need not hear that it is off."""
        if self._window is None or isinstance(order, control.Status | control.Commit):
            return
        if isinstance(order, control.Abort):
            self._window.drop()
        else:
            self._window.finish()
        self._window = None

    def _on_event(self, peer: Peer, event: QuicEvent) -> None:
        if isinstance(event, StreamDataReceived):
            try:
                self.service.received(
                    peer.key,
                    event.stream_id,
                    event.data,
                    event.end_stream,
                    functools.partial(self._write, peer),
                )
                if event.end_stream:
                    self._due.arm(self.service)
            except (ValueError, msgspec.DecodeError):
                peer.connection.reset_stream(event.stream_id, 1)
        elif isinstance(event, DatagramFrameReceived):
            # a state of the game for each input; a lost one is not missed
            peer.connection.send_datagram_frame(event.data)
        elif isinstance(event, HandshakeCompleted):
            peer.shaking = False
            self._shaken.set()
            self.events.emit("server.connected", negotiated=bool(peer.connection.negotiated))
            if self.config.pool and any(rules_of(name).pool for name in peer.connection.negotiated):
                peer.connection.offer_addresses(
                    [(address.host, address.port) for address in self.config.pool], now_s()
                )
        elif isinstance(event, MigrationReady):
            self.events.emit("server.client.ready", epoch=event.epoch, result=str(event.result))
            self._answers[peer.key] = event.result
            self._no_longer_awaited(peer)
        elif isinstance(event, MoveRequested):
            self.events.emit("server.move.requested", request=event.request)
            self._hand_on(peer, event.request)
        elif isinstance(event, MigrationCommitted):
            self.committed_epoch = event.epoch
            self.events.emit("server.committed", epoch=event.epoch)
        elif isinstance(event, ConnectionTerminated):
            self.service.forget(peer.key)
            self._no_longer_awaited(peer)

    def _hand_on(self, peer: Peer, request: int) -> None:
        """Let the agent of this host decide about a client's request; where nobody does, it is refused."""
        where = self.config.requests
        if where is None:
            self._reply(peer, request, Reply.REFUSED)
            return
        asking = asyncio.get_running_loop().create_task(self._ask_agent(where, peer, request))
        self._asking.add(asking)
        asking.add_done_callback(self._asking.discard)

    async def _ask_agent(self, where: Endpoint, peer: Peer, request: int) -> None:
        edge = self.service.edge
        agent = await control.ControlClient.open(where)
        try:
            detail = await agent.ask(control.ClientRequest(edge=edge), AGENT_DECIDES_S)
            reply = Reply(detail["reply"])
        except MigrationError:
            reply = Reply.NOWHERE
        finally:
            agent.close()
        if self.frozen_epoch is None:  # else it crosses with the connection, and is answered there
            self._reply(peer, request, reply)

    def _reply(self, peer: Peer, request: int, reply: Reply) -> None:
        if peer.key in self.table.peers and peer.connection.open_request == request:
            peer.connection.answer_request(request, reply)
            self.events.emit("server.move.answered", request=request, reply=str(reply))
            self.table.proceed(peer)

    def _answer_due(self, key: str) -> None:
        peer = self.table.peers.get(key)
        if peer is None:
            self.service.forget(key)
        else:
            self.table.proceed(peer)

    def _no_longer_awaited(self, peer: Peer) -> None:
        if self._awaited.pop(peer.key, None) is not None and not self._awaited:
            self._answered.set()

    def _pump(self, peer: Peer) -> None:
        self.service.pump(peer.key, peer.connection.unsent_bytes, functools.partial(self._write, peer))

    @staticmethod
    def _write(peer: Peer, stream_id: int, data: bytes, end_stream: bool) -> None:
        """Give a stream more of its answer, unless the client has no use for it any more.

        After STOP_SENDING (RFC 9000 §3.5) upstream has reset the stream, takes nothing for it and raises,
        ``RuntimeError`` at first and ``ValueError`` once the stream is discarded. The service need not know.
        """
        with suppress(RuntimeError, ValueError):
            peer.connection.send_stream_data(stream_id, data, end_stream)

    def _before_end(self) -> None:
        if self._window is not None:
            self._window.drop()

    def _end(self) -> None:
        self.port.close()

    # --- the lease (quicferry.migration.serving_lease) -----------------------------------------

    def _hold_back(self) -> None:
        self.port.mute()
        self.table.hold_back()
        self.events.emit("server.held", epoch=self.lease.epoch)

    def _go_on_again(self) -> None:
        self.events.emit("server.kept", epoch=self.lease.epoch)
        self._due.arm(self.service)
        for peer in list(self.table.peers.values()):
            self.table.proceed(peer)
        self.port.start()

    # --- orders ------------------------------------------------------------------------------

    async def obey(self, order: control.Order) -> dict[str, Any]:
        """Carry out one order; clients that wait to be told are told before."""
        self._end_window(order)
        return await super().obey(order)

    async def _prepare(self, order: control.Prepare) -> dict[str, Any]:
        self._answers.clear()
        self._awaited.clear()
        self._answered.clear()
        self._new_address = str(order.service or "")
        begun = now_s()
        await self._await_handshakes(order.deadline_s)
        # both waits together take no longer than was given
        left_s = max(NOTICE_LEAST_S, order.deadline_s - (now_s() - begun))
        order = msgspec.structs.replace(order, deadline_s=min(order.deadline_s, left_s))
        # whoever takes longest to answer is told first: then the last answer comes as early as it can
        peers = sorted(self.table.peers.values(), key=lambda each: -each.connection.pto_s)
        window = self._window = NoticeWindow(
            peers,
            functools.partial(self._tell, order, len(peers)),
            queued_s=lambda peer: peer.connection.queued_s,
        )
        window.go_on()
        await window.over.wait()
        silent = await self._await_answers()
        results = list(self._answers.values())
        ready, unable = results.count(Result.OK), results.count(Result.NOT_NEGOTIATED)
        return {
            "ready": ready,
            "refused": len(results) - ready - unable,
            "unable": unable,
            "silent": silent,
        }

    async def _await_handshakes(self, most_s: float) -> None:
        """Wait for connections that are in the middle of their handshake: they cannot move before it is over.

        A client far away takes itself for connected, and asks, half a round trip before the server is.
        Whoever never answers is waited for no longer than a client that is to be told of a move.
        """
        until = {
            key: now_s() + min(most_s, max(NOTICE_LEAST_S, NOTICE_PTOS * peer.connection.pto_s))
            for key, peer in self.table.peers.items()
            if peer.shaking
        }
        while True:
            now = now_s()
            left = [
                end - now
                for key, end in until.items()
                if end > now and (peer := self.table.peers.get(key)) is not None and peer.shaking
            ]
            if not left:
                return
            self._shaken.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left)):
                    await self._shaken.wait()

    def _tell(self, order: control.Prepare, clients: int, peer: Peer) -> bool:
        """Tell a client of the move, if the strategy that it follows has notice; whether it will answer."""
        if peer.key not in self.table.peers:
            return False
        target = order.destination or order.service
        strategy = peer.strategy = _strategy_of(peer, order.strategy)
        rules = rules_of(strategy)
        addresses = [(target.host, target.port)] if rules.carries_address and target is not None else []
        if rules.notice:
            # a deadline of its own: whoever is far away is waited for longer, but never for too long
            patience_s = max(NOTICE_LEAST_S, NOTICE_PTOS * peer.connection.pto_s)
            self._awaited[peer.key] = now_s() + min(order.deadline_s, patience_s)
        peer.connection.prepare_migration(
            order.epoch,
            strategy,
            addresses,
            order.downtime_ms,
            order.server_first,
            now_s(),
            clients=clients,
        )
        if rules.notice:
            self.events.emit("server.prepare.sent", epoch=order.epoch, strategy=strategy)
        self.table.proceed(peer)
        return peer.key in self._awaited

    async def _await_answers(self) -> int:
        """Wait for each client until its own deadline; returns how many were silent."""
        #: wire-format 7.1: SHOULD NOT wait longer than a deadline for any one client
        silent = 0
        while self._awaited:
            now = now_s()
            late = [key for key, until in self._awaited.items() if until <= now]
            silent += len(late)
            for key in late:
                del self._awaited[key]
            if self._awaited:
                # those who are unable have answered while the others were not told yet
                self._answered.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(min(self._awaited.values()) - now):
                        await self._answered.wait()
        return silent

    def _cannot_follow(self, peer: Peer) -> bool:
        """Whether the client has said that it will not go along, or does not know how to."""
        return not self.config.address_moves and self._answers.get(peer.key, Result.OK) in STAYS

    def _dismiss(self) -> int:
        """Close what was not given away: those clients are to connect again, elsewhere."""
        if self.fence.frozen_epoch is not None:
            self.fence.give(self.fence.frozen_epoch)
        left = [peer for peer in self.table.peers.values() if not is_frozen(peer.connection)]
        for peer in left:
            peer.connection.close(MOVED_ERROR, reason_phrase=self._new_address)
            self.table.proceed(peer)
        return len(left)

    def _commit(self) -> dict[str, Any]:
        """The source never goes on: the packet numbers are all ours."""
        for peer in list(self.table.peers.values()):
            record_commit(peer.connection)
            self.table.proceed(peer)
        return {}

    def _hold(self) -> None:
        self.port.mute()

    def _after_freeze(self, order: control.Freeze) -> dict[str, Any]:
        if order.state_path is not None:
            while batch := self.port.drain():
                self.table.deliver(batch)
        elif any(map(self._cannot_follow, self.table.peers.values())):
            # the whole process moves, and from elsewhere such a client would not hear it
            for peer in list(self.table.peers.values()):
                if self._cannot_follow(peer):
                    peer.connection.close(MOVED_ERROR, reason_phrase=self._new_address)
                    self.table.proceed(peer)
                    self.table.remove(peer)
                    self.service.forget(peer.key)
        out, self._copies_out = self._copies_out, None
        unchanged = out.unchanged(now_s()) if out is not None and out.epoch == order.epoch else {}
        for peer in self.table.peers.values():
            if peer.key not in unchanged and not self._cannot_follow(peer):
                peer.connection.hold()
        self.table.hold_back()
        if order.state_path is None:
            return {}
        return self._write_state(order, order.state_path, unchanged)

    async def _copy_ahead(self, order: control.CopyAhead) -> dict[str, Any]:
        if self._copies_out is None or self._copies_out.epoch != order.epoch:
            self._copies_out = CopiesOut(self.table, order.epoch)
        out = self._copies_out
        copied = await out.copy_some(order.round)
        if self._copies_out is not out:
            raise MigrationError("the move was called off while connections were copied")
        if not copied:
            self.fence.draft(order.epoch, taking_over=False)
            self._rehearsal.repeat()
            return {"connections": 0}
        return {**write_state(order.state_path, msgspec.msgpack.encode(copied)), "connections": len(copied)}

    async def _take_ahead(self, order: control.TakeAhead) -> dict[str, Any]:
        if not self.standby:
            raise MigrationError("only a standby takes in what was copied ahead")
        if self._copies_in is None or self._copies_in.epoch != order.epoch:
            self._copies_in = CopiesIn(self.table, self._build, self._blanks, order.epoch)
        await self._copies_in.take_in(read_copied(read_state(order)))
        self.fence.draft(order.epoch, taking_over=True)
        self._rehearsal.repeat()
        return {}

    def _write_state(
        self, order: control.Freeze, path: str, unchanged: dict[str, Unchanged]
    ) -> dict[str, Any]:
        now, epoch = now_s(), order.epoch
        self.fence.close(epoch)
        peers: list[Peer] = []
        as_copied: list[Peer] = []
        for peer in self.table.peers.values():
            if self._cannot_follow(peer):
                continue
            if peer.key in unchanged:
                peer.stopped = True
                as_copied.append(peer)
                continue
            try:
                freeze(peer.connection, now)
            except MigrationError:
                continue  # in the middle of its handshake, or closing: it stays, the others go
            peers.append(peer)
        # Directly after the answer: the keys of those that lie still are sealed while the state crosses.
        # Until then nobody touches them: port and timers are off, and orders come later in the loop's turn.
        asyncio.get_running_loop().call_soon(self._seal, as_copied, now)
        snapshots = [take_snapshot(peer.connection, now, epoch=epoch) for peer in peers]
        handed = HandedOver(
            service=self.service.dump(),
            keys=[peer.key for peer in peers],
            strategies=[peer.strategy for peer in peers],
            unchanged=[unchanged[peer.key] for peer in as_copied],
            unchanged_strategies=[peer.strategy for peer in as_copied],
        )
        if self.table.tickets:
            handed.tickets = [to_plain(ticket) for ticket in self.table.tickets.values()]
        bundle = pack_bundle(epoch, snapshots, msgspec.msgpack.encode(handed))
        return {
            **write_state(path, bundle, order.inline_bytes),
            "connections": len(snapshots) + len(as_copied),
            "unchanged": len(as_copied),
            "left": len(self.table.peers) - len(snapshots) - len(as_copied),
        }

    def _seal(self, peers: list[Peer], now: float) -> None:
        for peer in peers:
            peer.connection.hold()
            freeze(peer.connection, now)
            peer.stopped = False

    def _import(self, order: control.Import) -> dict[str, Any]:
        content = unpack_bundle(read_state(order))
        self.fence.take_over(order.epoch)
        handed = _handed_over.decode(content.service)
        ahead = self._copies_in
        if ahead is None or ahead.epoch != order.epoch:
            ahead = CopiesIn(self.table, self._build, self._blanks, order.epoch)
        peers = [ahead.taken(each) for each in handed.unchanged]
        peers += [ahead.restored(key, data) for key, data in zip(handed.keys, content.snapshots, strict=True)]
        for peer, strategy in zip(peers, handed.unchanged_strategies + handed.strategies, strict=True):
            peer.strategy = strategy
        self._copies_in = None
        self._blanks.clear()
        self.service = ApplicationService.load(handed.service, order.edge, self.config.response_bytes)
        self.table.remove_all()
        if self.table.tickets is not None:
            self.table.tickets |= {ticket.ticket: from_plain(ticket) for ticket in handed.tickets}
        self.table.admit(peers)
        self.standby = False
        return self._go_on(order)

    def _serve_again(self, order: control.Resume) -> dict[str, Any]:
        return self._go_on(order)

    def _go_on(self, order: control.Import | control.Resume) -> dict[str, Any]:
        t_ns = now_ns()
        epoch, strategy, server_first = order.epoch, order.strategy, order.server_first
        address = None if order.service is None else (order.service.host, order.service.port)
        self.frozen_epoch = None
        self.table.accepting = True
        for peer in self.table.peers.values():
            its = peer.strategy or strategy
            peer.locals.clear()  # they may be those of the source
            peer.connection.resume(
                epoch,
                its,
                speaks_first(its, server_first),
                now_s(),
                clients=len(self.table.peers),
                address=address,
                withhold=order.lease is not None,
            )
            if (request := peer.connection.open_request) is not None:
                peer.connection.answer_request(request, Reply.ACCEPTED)  # the move has come to pass
        window = self._window = NoticeWindow(self.table.peers.values(), self._first_flight, holding=True)
        # What waits in the socket is handled before anything leaves, as the first flight can answer it; but
        # not for long: in a download it is acknowledgements, and the first flight is what the client lacks.
        waiting = self._waiting_for(len(self.table.peers))
        leaves_at = now_s() + BEFORE_FIRST_FLIGHT_S
        for start in range(0, len(waiting), WAITING_AT_ONCE):
            for peer in self.table.deliver(waiting[start : start + WAITING_AT_ONCE]):
                if not window.heard(peer):
                    self.table.proceed(peer)
            if now_s() >= leaves_at:
                window.go_on()
        window.go_on()
        self.port.start()
        self._due.arm(self.service)
        self.events.emit(
            "server.resumed",
            t_ns=t_ns,
            epoch=epoch,
            edge=order.edge,
            server_first=speaks_first(strategy, server_first),
            connection_ids=sum(len(peer.connection_ids) for peer in self.table.peers.values()),
        )
        return {"t_ns": t_ns, "connections": len(self.table.peers)}

    def _waiting_for(self, clients: int) -> list[Datagram]:
        """The newest datagrams of each client that wait in the socket, oldest first, each once.

        Clients that were told where to go have been asking there since, and the agent lets in once more
        what it has kept for them: most of it says nothing new, and there may be a lot of it.
        """
        waiting: list[Datagram] = []
        while len(waiting) < WAITING_MOST and (batch := self.port.drain()):
            waiting += batch
        share = max(WAITING_PER_CLIENT, BATCH // max(clients, 1))
        kept: list[Datagram] = []
        seen: set[bytes] = set()
        counts: Counter[tuple[str, int]] = Counter()
        for datagram in reversed(waiting):
            if datagram.data not in seen and counts[datagram.sender] < share:
                seen.add(datagram.data)
                counts[datagram.sender] += 1
                kept.append(datagram)
        return kept[::-1]

    def _abort(self, order: control.Abort) -> dict[str, Any]:
        if self.fence.closed:
            self.fence.lift(order.epoch)
        t_ns = now_ns()
        self._copies_out = None
        was_frozen, self.frozen_epoch = self.frozen_epoch is not None, None
        for peer in list(self.table.peers.values()):
            if was_frozen and not is_frozen(peer.connection):
                # The process was copied as a whole, and the copy may have served within its lease, with the
                # same keys: the numbers that it may have used are left out, as after a hand-off.
                with suppress(MigrationError):  # in the middle of its handshake, or closing
                    freeze(peer.connection, now_s())
            if is_frozen(peer.connection):
                thaw(peer.connection, now_s())
            peer.connection.abort_migration(order.epoch, order.reason, now_s())
            self.table.proceed(peer)
        self.port.start()
        self._due.arm(self.service)
        # of the moment before the first packet, by which the captures are judged
        self.events.emit("server.aborted", t_ns=t_ns, epoch=order.epoch, reason=order.reason)
        return {"t_ns": t_ns}


def _strategy_of(peer: Peer, wanted: StrategyName) -> StrategyName:
    """The strategy of the order, or if this client has not agreed to it, the first that it has agreed to.

    To a preferred address nobody agrees: it is for those of whom nothing better is known.
    """
    agreed = peer.connection.negotiated
    if wanted in agreed:
        return wanted
    usual = [each for each in strategies() if each in agreed]
    return min(usual, key=lambda each: rules_of(each).carrier is Carrier.PREFERRED_ADDRESS, default=wanted)


def main() -> None:
    """Run a QUIC server until ordered to stop."""
    run_server(QuicServer, "apps.server.server")


if __name__ == "__main__":
    main()
