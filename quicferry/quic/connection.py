"""``MigratableConnection``: a QUIC connection whose server may move."""

from __future__ import annotations

from typing import Any

from aioquic.quic.configuration import QuicConfiguration

from quicferry.quic._aioquic import seam
from quicferry.quic._aioquic.connection import HookedConnection
from quicferry.quic.client import ClientRole
from quicferry.quic.config import ExtensionConfig
from quicferry.quic.errors import LocalError
from quicferry.quic.request_wire import Reply
from quicferry.quic.server import ServerRole
from quicferry.quic.tables import ClientState, ServerState
from quicferry.quic.wire import Address
from quicferry.strategies import StrategyName


class MigratableConnection(HookedConnection):
    """``aioquic.quic.connection.QuicConnection`` with the extension.

    Sans-IO as its base: bytes and ``now`` (seconds, monotonic) go in, datagrams and events come out. After
    every call that may have changed something, send ``datagrams_to_send(now)`` and ask ``get_timer()``.
    With ``extension`` None, or a peer that does not know the extension, it is aioquic's connection.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        extension: ExtensionConfig | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(configuration=configuration, **keywords)
        self._role: ClientRole | ServerRole | None = None
        if extension is not None:
            role = ClientRole if configuration.is_client else ServerRole
            self._role = role(seam.Seam(self), extension)
            self.attach(self._role)

    @property
    def negotiated(self) -> frozenset[StrategyName]:
        """The strategies both ends can do; empty before the handshake and with a stock peer."""
        return frozenset() if self._role is None else self._role.negotiated

    @property
    def migration_state(self) -> ClientState | ServerState | None:
        """Where this end is in the server's move; None without the extension."""
        return None if self._role is None else self._role.state

    @property
    def pto_s(self) -> float:
        """The current PTO in seconds, without backoff (RFC 9002 §6.2.1)."""
        return seam.pto_s(self)

    @property
    def queued_s(self) -> float:
        """How much longer than the shortest the latest round trip was, in seconds; 0 without a sample."""
        return seam.queued_s(self)

    @property
    def is_closing(self) -> bool:
        """Whether either end has closed it. ``ConnectionTerminated`` comes only when it has drained."""
        return seam.is_closing(self)

    def unsent_bytes(self, stream_id: int) -> int:
        """Bytes of a stream that wait to be sent: the application's measure for back-pressure."""
        return seam.unsent_bytes(self, stream_id)

    @property
    def may_ask(self) -> bool:
        """Client: whether the server reads requests to move."""
        return isinstance(self._role, ClientRole) and self._role.asking.agreed

    def ask_for_move(self) -> int:
        """Client: asks the server to move. Returns the request's number; ``MoveAnswered`` follows.

        Raises ``LocalError`` at a server, when this server reads no requests, or while one is unanswered.
        """
        if not isinstance(self._role, ClientRole):
            raise LocalError("only a client that was made with an ExtensionConfig can ask")
        return self._role.ask_for_move()

    # ------------------------------------------------------------------ the server's orders

    @property
    def open_request(self) -> int | None:
        """Server: the number of the client's request that is not answered yet; None without one."""
        return self._role.asked.is_open if isinstance(self._role, ServerRole) else None

    def answer_request(self, request: int, reply: Reply) -> None:
        """Answers the client's request for a move, see ``MoveRequested``. Raises ``LocalError`` at a client.

        A reply says nothing of how the move ends: the client sees that for itself.
        """
        self._server().answer_request(request, reply)

    def offer_addresses(self, addresses: list[Address], now: float) -> None:
        """Names the pool to the client, now or when the handshake is confirmed.

        Raises ``InvalidInput`` when there are too many, ``LocalError`` at a client or without the extension.
        """
        self._server().offer_addresses(addresses)

    def prepare_migration(
        self,
        epoch: int,
        strategy: StrategyName,
        addresses: list[Address],
        downtime_ms: float,
        server_first: bool,
        now: float,
        clients: int = 1,
    ) -> None:
        """Tells the client of the move, where the strategy has notice. ``MigrationReady`` follows.

        ``epoch`` numbers the moves of this connection upwards from 1; ``addresses`` is the destination in
        the explicit strategies, else empty; ``downtime_ms`` is an estimate; ``clients`` that are told
        of this move share the probes the server can bear. Raises ``LocalError``.
        """
        self._server().prepare(
            epoch, strategy, addresses, downtime_ms, server_first=server_first, clients=clients
        )

    def hold(self) -> None:
        """From now on nothing is sent, read or timed. Raises ``LocalError`` at a client."""
        self._server().hold()

    def resume(
        self,
        epoch: int,
        strategy: StrategyName,
        speak_first: bool,
        now: float,
        clients: int = 1,
        address: Address | None = None,
        withhold: bool = False,
    ) -> None:
        """At the destination, after ``hold``. Raises ``LocalError``.

        With ``withhold`` the source may still go on: until ``record_commit`` nothing leaves that the source
        does not know of (new data, acknowledgements, larger limits), so that it finds its client as it left
        it. The application may read and write meanwhile.

        The more ``clients`` resume together, the later is the first answer taken for lost. ``address`` is
        where the client reaches this server; None where the server cannot know it, as behind a NAT.

        With ``speak_first`` the next ``datagrams_to_send`` has SM_MIGRATED and all that was pending or on
        its way; else the connection is mute until an authentic packet of the client has come, or for one
        PTO. CONNECTION_CLOSE leaves at once.
        """
        self._server().resume(
            epoch,
            strategy,
            speak_first=speak_first,
            now=now,
            clients=clients,
            address=address,
            withhold=withhold,
        )

    def record_commit(self) -> None:
        """At the destination: it is recorded that the source never goes on. Raises ``LocalError``.

        Until then the connection has the packet numbers of the lease and no others, however much there is
        to send: a source that goes on begins behind them. What ``resume`` withheld leaves now.
        """
        self._server().record_commit()

    def abort_migration(self, epoch: int, reason: str, now: float) -> None:
        """At the source: goes on where ``hold`` stopped and tells the client (SM_ABORT).

        ``reason`` is the name of a ``wire.AbortReason``; another text counts as unspecified. A connection
        that was held goes on behind the packet numbers that were the destination's.
        """
        self._server().abort(epoch, reason, now)

    # ------------------------------------------------------------------ moving to another process

    def extension_state(self) -> dict[str, Any]:
        """The extension's state as plain values (int, bytes, str, list, dict, bool, None); no times in it.

        Frames that are in flight are not in it: let recovery declare them lost first, and they are queued.
        Empty without the extension. Raises ``LocalError`` at a client.
        """
        return {} if self._role is None else self._server().dump()

    def restore_extension_state(self, values: dict[str, Any]) -> None:
        """Takes over what ``extension_state`` gave elsewhere.

        The state of a connection without the extension leaves this one without it as well. Raises
        ``LocalError`` at a client, and for another version's state.
        """
        if values:
            self._server().load(values)
            self.rebuild_frame_handlers()

    def _server(self) -> ServerRole:
        if not isinstance(self._role, ServerRole):
            raise LocalError(
                "this connection cannot move",
                hint="only a server's connection that was made with an ExtensionConfig can",
            )
        self.change_count += 1  # whatever is ordered
        return self._role
