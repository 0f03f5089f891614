"""The server's connections: which datagram is whose, when which timer is due, what leaves.

Knows nothing of the service or of moving; it is the QUIC half of a server process.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable

from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.events import (
    ConnectionIdIssued,
    ConnectionIdRetired,
    ConnectionTerminated,
    QuicEvent,
)
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from aioquic.tls import SessionTicket

from apps.deadline import Deadline
from apps.udp import Datagram, UdpPort
from quicferry.quic import ExtensionConfig, MigratableConnection
from quicferry.strategies import StrategyName
from quicferry.units import now_s

LOCALS_MOST = 8  # addresses of a client: more paths than these no connection has


class Peer:
    """One client's connection and what belongs to it in this process."""

    def __init__(
        self, key: str, connection: MigratableConnection, due: Callable[[Peer, float], None]
    ) -> None:
        self.key = key
        self.connection = connection
        self.connection_ids: set[bytes] = set()
        self.stopped = False  # frozen, and not sealed yet: nothing leaves
        self.shaking = False  # in the middle of its handshake
        self.strategy: StrategyName | None = None  # how this client follows the present move
        #: by the client's address, to which of our own its last datagrams came: answers leave from there
        self.locals: dict[tuple[str, int], str] = {}
        self.wake: Callable[[], None] | None = None  # to be called before anything else: it is held
        #: what is left to do of taking it over, before it is woken
        self.late: Callable[[], object] | None = None
        self.deadline = Deadline(functools.partial(due, self))

    def awaken(self) -> None:
        """Call ``wake``, once."""
        late, self.late = self.late, None
        if late is not None:
            late()
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()

    def note_local(self, sender: tuple[str, int], local: str) -> None:
        """A datagram of ``sender`` came to that address of ours."""
        if self.locals.get(sender) != local:
            self.locals[sender] = local
            while len(self.locals) > LOCALS_MOST:
                del self.locals[next(iter(self.locals))]


class ConnectionTable:
    """All connections of a server and their way to the wire.

    ``on_event`` is called for every event of a connection that is not about connection IDs;
    ``on_idle`` after the events of a peer, before its datagrams leave. ``may_send`` is asked before each
    datagram: one that may not leave is lost, which QUIC will notice.
    """

    def __init__(
        self,
        port: UdpPort,
        configuration: QuicConfiguration,
        extension: ExtensionConfig | None,
        on_event: Callable[[Peer, QuicEvent], None],
        on_idle: Callable[[Peer], None],
        may_send: Callable[[], bool] = lambda: True,
    ) -> None:
        self._port = port
        self.configuration = configuration
        self.extension = extension
        self._on_event = on_event
        self._on_idle = on_idle
        self._may_send = may_send
        self._keys = itertools.count(1)
        self._by_id: dict[bytes, Peer] = {}
        self.peers: dict[str, Peer] = {}
        self.accepting = True
        self._held = False
        #: TLS session tickets by their label; None: none are issued, and nobody resumes
        self.tickets: dict[bytes, SessionTicket] | None = None

    def received(self, batch: list[Datagram]) -> None:
        """Give each datagram to its connection, then let every touched connection go on."""
        for peer in self.deliver(batch):
            self.proceed(peer)

    def deliver(self, batch: list[Datagram]) -> list[Peer]:
        """Give each datagram to its connection; the events are handled, but nothing is sent."""
        touched: dict[str, Peer] = {}
        for data, sender, _, local in batch:
            peer = self._route(data)
            if peer is not None:
                if peer.wake is not None:
                    peer.awaken()
                peer.connection.receive_datagram(data, sender, now_s(), local)
                if local is not None:
                    peer.note_local(sender, local)
                self._events(peer)
                touched[peer.key] = peer
        return list(touched.values())

    def _route(self, data: bytes) -> Peer | None:
        try:
            header = pull_quic_header(
                Buffer(data=data), host_cid_length=self.configuration.connection_id_length
            )
        except ValueError:
            return None
        peer = self._by_id.get(header.destination_cid)
        if peer is not None or not self.accepting:
            #: wire-format 14.5: MUST NOT send stateless resets
            return peer
        if header.packet_type != QuicPacketType.INITIAL or len(data) < SMALLEST_MAX_DATAGRAM_SIZE:
            return None
        connection = MigratableConnection(
            configuration=self.configuration,
            extension=self.extension,
            original_destination_connection_id=header.destination_cid,
            session_ticket_fetcher=None if self.tickets is None else self.tickets.get,
            session_ticket_handler=None if self.tickets is None else self._keep_ticket,
        )
        peer = self.adopt(connection, {header.destination_cid, connection.host_cid})
        peer.shaking = True
        return peer

    def _keep_ticket(self, ticket: SessionTicket) -> None:
        assert self.tickets is not None
        self.tickets[ticket.ticket] = ticket

    def adopt(
        self, connection: MigratableConnection, connection_ids: set[bytes], key: str | None = None
    ) -> Peer:
        """Take in a connection, a new one or one that was handed over."""
        if key is None:
            key = str(next(self._keys))
            while key in self.peers:
                key = str(next(self._keys))
        peer = self.make_peer(connection, connection_ids, key)
        self.admit([peer], dict.fromkeys(connection_ids, peer))
        return peer

    def make_peer(self, connection: MigratableConnection, connection_ids: set[bytes], key: str) -> Peer:
        """What ``admit`` takes in."""
        peer = Peer(key, connection, self._timer_due)
        peer.connection_ids = connection_ids
        return peer

    def admit(self, peers: Iterable[Peer], routes: dict[bytes, Peer]) -> None:
        """Take in peers that were made ahead. ``routes``: which connection ID leads to whom of them."""
        self.peers.update((peer.key, peer) for peer in peers)
        self._by_id.update(routes)

    def _events(self, peer: Peer) -> None:
        while (event := peer.connection.next_event()) is not None:
            if isinstance(event, ConnectionIdIssued):
                peer.connection_ids.add(event.connection_id)
                self._by_id[event.connection_id] = peer
            elif isinstance(event, ConnectionIdRetired):
                peer.connection_ids.discard(event.connection_id)
                self._by_id.pop(event.connection_id, None)
            else:
                if isinstance(event, ConnectionTerminated):
                    self.remove(peer)
                self._on_event(peer, event)

    def remove(self, peer: Peer) -> None:
        """Forget a connection; it says nothing more."""
        for connection_id in peer.connection_ids:
            self._by_id.pop(connection_id, None)
        self.peers.pop(peer.key, None)
        peer.deadline.cancel()

    def remove_all(self) -> None:
        """Forget every connection."""
        for peer in list(self.peers.values()):
            self.remove(peer)

    def proceed(self, peer: Peer) -> bool:
        """Handle events, send what wants to leave, and set the timer; returns whether anything left."""
        if peer.stopped:
            return False
        if peer.wake is not None:
            peer.awaken()
        self._events(peer)
        self._on_idle(peer)
        datagrams = peer.connection.datagrams_to_send(now_s())
        send, may_send, locals_ = self._port.send, self._may_send, peer.locals
        for data, receiver in datagrams:
            # asked for each: a process may be stopped between two, for longer than its lease
            if may_send():
                to = receiver[:2]
                send(data, to, locals_.get(to))
        peer.deadline.set(peer.connection.get_timer() if peer.key in self.peers else None)
        return bool(datagrams)

    def hold_back(self) -> None:
        """No timer counts any more: a connection does nothing until ``let_go``, and then with ``proceed``."""
        self._held = True

    def let_go(self) -> None:
        """Undo ``hold_back``; each connection's timer is set again when it proceeds."""
        self._held = False

    def _timer_due(self, peer: Peer, now: float) -> None:
        if self._held:
            return
        peer.connection.handle_timer(now)
        self.proceed(peer)
