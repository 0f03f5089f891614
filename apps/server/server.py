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
from apps.server.collector import Collector
from apps.server.connections import ConnectionTable, Peer
from apps.server.copies import CopiesIn, CopiesOut, read_copied
from apps.server.due_answers import DueAnswers
from apps.server.handover import give, take
from apps.server.notice import Notice
from apps.server.notice_window import NoticeWindow
from apps.server.service import ApplicationService
from apps.server.shell import ServerShell, read_state, run_server, write_state
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
    record_commit,
    thaw,
    unpack_bundle,
)
from quicferry.strategies import StrategyName, rules_of, speaks_first
from quicferry.units import now_ns, now_s
from quicferry.urgency import calm

AGENT_DECIDES_S = 1.0  # an agent that says nothing for so long has nowhere to go
WAITING_PER_CLIENT = 2  # datagrams handled before the first flight of a server with many clients
WAITING_AT_ONCE = 8  # datagrams between two looks at the clock
BEFORE_FIRST_FLIGHT_S = 0.002
WAITING_MOST = 8192  # datagrams looked at then


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
        self.notice = Notice(self.table, self._notice_sent)
        self._build = functools.partial(MigratableConnection, extension=extension)
        self._window: NoticeWindow | None = None  # while something is told to all clients
        self._asking: set[asyncio.Task[None]] = set()  # requests of clients that the agent decides about
        self._due = DueAnswers(lambda: self.frozen_epoch is None and self.lease.may_send(), self._answer_due)
        self._blanks: list[QuicConnection] = []  # for connections that are to be taken over
        self._copies_out: CopiesOut | None = None
        self._copies_in: CopiesIn | None = None
        self._rehearsal = Rehearsal()
        self._collector = Collector()

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
            self.notice.handshake_is_over()
            self.events.emit("server.connected", negotiated=bool(peer.connection.negotiated))
            if self.config.pool and any(rules_of(name).pool for name in peer.connection.negotiated):
                peer.connection.offer_addresses(
                    [(address.host, address.port) for address in self.config.pool], now_s()
                )
        elif isinstance(event, MigrationReady):
            self.events.emit("server.client.ready", epoch=event.epoch, result=str(event.result))
            self.notice.answered(peer, event.result)
        elif isinstance(event, MoveRequested):
            self.events.emit("server.move.requested", request=event.request)
            self._hand_on(peer, event.request)
        elif isinstance(event, MigrationCommitted):
            self.committed_epoch = event.epoch
            self.events.emit("server.committed", epoch=event.epoch)
        elif isinstance(event, ConnectionTerminated):
            self.service.forget(peer.key)
            self.notice.no_longer_awaited(peer)

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
        self.table.let_go()
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
        self._collector.put_off()
        window = self._window = await self.notice.begin(order)
        window.go_on()
        await window.over.wait()
        return dict(await self.notice.counts())

    def _notice_sent(self, epoch: int, strategy: StrategyName) -> None:
        self.events.emit("server.prepare.sent", epoch=epoch, strategy=strategy)

    def _dismiss(self) -> int:
        """Close what was not given away: those clients are to connect again, elsewhere."""
        if self.fence.frozen_epoch is not None:
            self.fence.give(self.fence.frozen_epoch)
        left = [peer for peer in self.table.peers.values() if not is_frozen(peer.connection)]
        for peer in left:
            peer.connection.close(MOVED_ERROR, reason_phrase=self.notice.new_address)
            self.table.proceed(peer)
        return len(left)

    def _commit(self) -> dict[str, Any]:
        """The source never goes on: the packet numbers are all ours."""
        self._collector.go_on()
        for peer in list(self.table.peers.values()):
            peer.awaken()
            record_commit(peer.connection)
            self.table.proceed(peer)
        return {}

    def _hold(self) -> None:
        self.port.mute()

    def _after_freeze(self, order: control.Freeze) -> dict[str, Any]:
        if order.state_path is not None:
            while batch := self.port.drain():
                self.table.deliver(batch)
        staying = {} if self.config.address_moves else self.notice.staying()
        if order.state_path is None:
            # the whole process moves, and from elsewhere such a client would not hear it
            for peer in staying.values():
                peer.connection.close(MOVED_ERROR, reason_phrase=self.notice.new_address)
                self.table.proceed(peer)
                self.table.remove(peer)
                self.service.forget(peer.key)
        out, self._copies_out = self._copies_out, None
        unchanged = out.unchanged(now_s()) if out is not None and out.epoch == order.epoch else {}
        changed = [
            peer for key, peer in self.table.peers.items() if key not in unchanged and key not in staying
        ]
        for key in staying:
            unchanged.pop(key, None)
        for peer in changed:
            peer.connection.hold()
        self.table.hold_back()
        if order.state_path is None:
            return {}
        asyncio.get_running_loop().call_soon(calm)  # after the answer
        self.fence.close(order.epoch)
        return give(self.table, self.service, order, order.state_path, changed, unchanged)

    async def _copy_ahead(self, order: control.CopyAhead) -> dict[str, Any]:
        if self._copies_out is None or self._copies_out.epoch != order.epoch:
            self._copies_out = CopiesOut(self.table, order.epoch)
        out = self._copies_out
        copied = await out.copy_some(order.round)
        if self._copies_out is not out:
            raise MigrationError("the move was called off while connections were copied")
        if not copied and not order.last:
            self.fence.draft(order.epoch, taking_over=False)
            self._rehearsal.repeat()
            return {"connections": 0}
        state = msgspec.msgpack.encode(copied)
        return {**write_state(order.state_path, state, order.inline_bytes), "connections": len(copied)}

    async def _take_ahead(self, order: control.TakeAhead) -> dict[str, Any]:
        if not self.standby:
            raise MigrationError("only a standby takes in what was copied ahead")
        self._collector.put_off()
        if self._copies_in is None or self._copies_in.epoch != order.epoch:
            self._copies_in = CopiesIn(self.table, self._build, self._blanks, order.epoch)
        await self._copies_in.take_in(read_copied(read_state(order)))
        self.fence.draft(order.epoch, taking_over=True)
        asyncio.get_running_loop().call_soon(self._rehearsal.repeat)  # after the answer
        return {}

    def _import(self, order: control.Import) -> dict[str, Any]:
        asyncio.get_running_loop().call_soon(calm)  # after the first flight, and the answer
        content = unpack_bundle(read_state(order))
        self.fence.take_over(order.epoch)
        ahead = self._copies_in
        if ahead is None or ahead.epoch != order.epoch:
            ahead = CopiesIn(self.table, self._build, self._blanks, order.epoch)
        service = take(self.table, content, ahead)
        self._copies_in = None
        self._blanks.clear()
        self.service = ApplicationService.load(service, order.edge, self.config.response_bytes)
        self.standby = False
        return self._go_on(order)

    def _serve_again(self, order: control.Resume) -> dict[str, Any]:
        return self._go_on(order)

    def _go_on(self, order: control.Import | control.Resume) -> dict[str, Any]:
        t_ns = now_ns()
        epoch, strategy, server_first = order.epoch, order.strategy, order.server_first
        self.frozen_epoch = None
        self.table.accepting = True
        self.table.let_go()
        # Each is resumed when it is its turn, or when its client is heard: of hundreds the last would hold up
        # what the first has to say.
        for peer in self.table.peers.values():
            peer.wake = functools.partial(self._wake, peer, order, len(self.table.peers))
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

    def _wake(self, peer: Peer, order: control.Import | control.Resume, clients: int) -> None:
        its = peer.strategy or order.strategy
        peer.locals.clear()  # they may be those of the source
        peer.connection.resume(
            order.epoch,
            its,
            speaks_first(its, order.server_first),
            now_s(),
            clients=clients,
            address=None if order.service is None else (order.service.host, order.service.port),
            withhold=order.lease is not None,
        )
        if (request := peer.connection.open_request) is not None:
            peer.connection.answer_request(request, Reply.ACCEPTED)  # the move has come to pass

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
        calm()
        if self.fence.closed:
            self.fence.lift(order.epoch)
        t_ns = now_ns()
        self._collector.go_on()
        self._copies_out = None
        was_frozen, self.frozen_epoch = self.frozen_epoch is not None, None
        self.table.let_go()
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


def main() -> None:
    """Run a QUIC server until ordered to stop."""
    run_server(QuicServer, "apps.server.server")


if __name__ == "__main__":
    main()
