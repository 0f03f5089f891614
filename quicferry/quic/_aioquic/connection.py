"""``QuicConnection`` with hooks: where the extension is called by aioquic.

Each override calls the original and adds to it; none copies upstream code. Without hooks (``_ferry`` is
None) every override is the original and nothing more.
"""

from __future__ import annotations

import os
from typing import Protocol

from aioquic import tls
from aioquic._crypto import CryptoError
from aioquic.buffer import Buffer  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.connection import (
    END_STATES,
    EPOCHS,
    MAX_REMOTE_CHALLENGES,
    NetworkAddress,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionId,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.packet import QuicFrameType, QuicPacketType, pull_ack_frame, pull_quic_header
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicPacketBuilderStop, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.stream import QuicStream

from quicferry.quic._aioquic.counted import CountedConnection
from quicferry.quic._aioquic.keys import may_update, retain_former_keys
from quicferry.quic._aioquic.path_size import (
    BASE_BYTES,
    LOSSES_MOST,
    drop_oversized,
    large_in_flight,
    losses_in_a_row,
    shrink,
)
from quicferry.quic._aioquic.quiet import Quiet, quiet, receive, write_run
from quicferry.quic._aioquic.spare import give_back, share_epochs
from quicferry.quic.errors import PeerError
from quicferry.quic.wire import Address, Frame, FrameType, find_parameter, pull_frame
from quicferry.strategies import StrategyName

LOCAL = "_ferry_local"  # of a path: the address of this host that its first datagram came to
_ONE_RTT_ONLY = EPOCHS("1")
_CHALLENGE_BYTES = 8  # RFC 9000 §19.17
RESET_TOKEN_BYTES = 16  # RFC 9000 §19.15

Datagrams = list[tuple[bytes, NetworkAddress]]


class Doubt(Protocol):
    """What the packets in doubt are asked for; see ``doubt.py``."""

    packets: dict[int, QuicSentPacket]
    rtt_s: float

    @property
    def is_over(self) -> bool: ...

    @property
    def due_at(self) -> float | None: ...

    def acknowledged(self, ranges: RangeSet, rtt_s: float, now: float) -> None: ...

    def look(self, now: float) -> None: ...

    def give_up(self, now: float) -> None: ...


class Careful(Protocol):
    """What a resumed congestion controller is told; see ``careful_resume.py``."""

    def acknowledged(self, connection: QuicConnection, newly_bytes: int, now: float) -> None: ...


class Hooks(Protocol):
    """What the extension does when aioquic calls. Implemented by the client's and the server's role."""

    held: bool
    mute: bool
    passive: bool  # a datagram on the active path is upstream's business alone
    negotiated: frozenset[StrategyName]

    @property
    def has_datagrams(self) -> bool:
        """Whether ``before_send`` would do anything."""

    @property
    def connection_ids(self) -> int:
        """How many connection IDs the peer is to give us (client) or gets from us (server), at the least."""

    def own_parameter(self) -> bytes:
        """The encoded transport parameter to append to our list; empty for none."""

    def peer_parameter(self, value: bytes | None) -> bool:
        """The peer's parameter, None when it sent none. Returns whether the extension is negotiated."""

    def standard_parameters(self, parameters: bytes) -> bool:
        """All of the peer's parameters, for those of other documents. Returns whether one was agreed on.

        May raise ``PeerError``.
        """

    @property
    def frame_types(self) -> frozenset[FrameType]:
        """The frames that are handed to ``frame``."""

    def preferred_address(self, addresses: tuple[Address, ...]) -> bool:
        """Client: the handshake is confirmed, and the server prefers these. False: upstream probes them."""

    def admits(self, address: NetworkAddress) -> bool:
        """Client: whether a packet from a server address that is not an active path is to be decrypted."""

    def frame(self, frame: Frame, address: NetworkAddress, now: float) -> None:
        """A frame of the extension. May raise ``PeerError``."""

    def challenge(self, address: NetworkAddress, data: bytes, *, on_active_path: bool) -> bool:
        """A PATH_CHALLENGE. Returns whether the extension answers it."""

    def response(self, data: bytes, address: NetworkAddress) -> bool:
        """A PATH_RESPONSE from that address. Returns whether it was for the extension."""

    def received(self, address: NetworkAddress, *, newest: bool, now: float) -> None:
        """A datagram with an authentic packet was processed.

        ``newest``: it raised the largest packet number received.
        """

    def repeated(self, address: NetworkAddress, number: int, responses: list[bytes], now: float) -> None:
        """Client: an authentic packet that was received before came from that address.

        ``responses``: the data of the PATH_RESPONSE frames that it begins with.
        """

    def retire_prior_to(self, sequence_number: int) -> None:
        """The peer wants connection IDs below this retired."""

    def before_send(self, now: float) -> Datagrams:
        """Datagrams of the extension, to leave before all others."""

    def while_mute(self) -> Datagrams:
        """What leaves all the same while it is mute; no data."""

    def timer(self) -> float | None:
        """When ``on_timer`` wants to be called."""

    def on_timer(self, now: float) -> None:
        """It may be called at any time."""

    @property
    def recovery_suspended(self) -> bool:
        """Whether the loss detection timer is off."""


class HookedConnection(CountedConnection):
    """A connection that tells its hooks what happens."""

    _ferry: Hooks | None = None
    _careful: Careful | None = None  # how congestion control is resumed after a move
    _came_to: str | None = None  # the local address of the datagram that is being processed
    _doubt: Doubt | None = None  # what was in flight when the server moved, until that is settled
    _quiet: Quiet | None = None  # once the handshake is over
    _large_losses = 0  # how often in a row large datagrams were lost: see ``path_size``

    def attach(self, hooks: Hooks) -> None:
        """From now on ``hooks`` are called. Before the connection has sent anything."""
        self._ferry = hooks
        least = hooks.connection_ids
        self._local_active_connection_id_limit = max(self._local_active_connection_id_limit, least)
        share_epochs(self)

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        give_back(self)

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        retain_former_keys(self._cryptos[tls.Epoch.ONE_RTT])

    def request_key_update(self) -> None:
        """As upstream. One that comes too soon after another waits until the peer has followed that."""
        self.change_count += 1
        if not self._handshake_confirmed:  # upstream defers it; there may be no keys yet
            super().request_key_update()
            return
        space = self._spaces[tls.Epoch.ONE_RTT]
        pair = self._cryptos[tls.Epoch.ONE_RTT]
        if may_update(pair, space.largest_acked_packet):
            super().request_key_update()
        elif not pair._update_key_requested:
            self._key_update_pending = True

    # ------------------------------------------------------------------ negotiation

    def _serialize_transport_parameters(self) -> bytes:
        parameters = super()._serialize_transport_parameters()
        return parameters if self._ferry is None else parameters + self._ferry.own_parameter()

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        #: wire-format 3.2: MUST NOT be remembered for 0-RTT
        super()._parse_transport_parameters(data, from_session_ticket)
        if self._ferry is None or from_session_ticket:  # RFC 9000 §7.4.1: not remembered for 0-RTT
            return
        try:
            negotiated = self._ferry.peer_parameter(find_parameter(data))
            negotiated = self._ferry.standard_parameters(data) or negotiated
        except PeerError as error:
            raise QuicConnectionError(
                error_code=error.code, frame_type=QuicFrameType.CRYPTO, reason_phrase=str(error)
            ) from error
        if not negotiated:
            return
        self.rebuild_frame_handlers()
        if not self._is_client:
            # The server's parameters were serialized before the client's were known. They leave with
            # EncryptedExtensions, which TLS writes after this call.
            self.tls.handshake_extensions = [
                (tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS, self._serialize_transport_parameters())
            ]

    def rebuild_frame_handlers(self) -> None:
        """Enters the extension's frames into the table of handlers, once it is negotiated."""
        handlers = self._QuicConnection__frame_handlers  # type: ignore[attr-defined]  # name mangling
        if self._ferry is not None:
            for frame_type in self._ferry.frame_types:
                handlers[int(frame_type)] = (self._handle_sm_frame, _ONE_RTT_ONLY)

    def _probe_preferred_address(self) -> None:
        preferred = self._remote_preferred_address
        if self._ferry is not None and preferred is not None:
            both = (preferred.ipv4_address, preferred.ipv6_address)
            if self._ferry.preferred_address(tuple(a for a in both if a is not None)):
                self._remote_preferred_address = None
                return
        super()._probe_preferred_address()

    # ------------------------------------------------------------------ frames

    def _handle_sm_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        assert self._ferry is not None
        try:
            frame = pull_frame(frame_type, buf)
            if self._quic_logger is not None and context.quic_logger_frames is not None:
                context.quic_logger_frames.append({"frame_type": frame.frame_type.name.lower()})
            self._ferry.frame(frame, context.network_path.addr, context.time)
        except PeerError as error:
            raise QuicConnectionError(
                error_code=error.code, frame_type=frame_type, reason_phrase=str(error)
            ) from error

    def _handle_ack_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        doubt, at = self._doubt, buf.tell()
        in_flight = self._loss.bytes_in_flight
        large = large_in_flight(self)
        super()._handle_ack_frame(context, frame_type, buf)
        if large:
            ranges, _ = pull_ack_frame(Buffer(data=buf.data_slice(at, buf.tell())))
            self._look_for_black_hole(large, {n for n in large if n in ranges})
        if self._key_update_pending and self._handshake_confirmed:
            self._key_update_pending = False
            self.request_key_update()  # or waits on
        if self._careful is not None:
            self._careful.acknowledged(self, in_flight - self._loss.bytes_in_flight, context.time)
        if doubt is not None:
            ranges, _ = pull_ack_frame(Buffer(data=buf.data_slice(at, buf.tell())))
            doubt.acknowledged(ranges, self._loss._rtt_latest, context.time)
            if doubt.is_over:
                self._doubt = None

    def _look_for_black_hole(self, large: list[int], arrived: set[int]) -> None:
        self._large_losses = losses_in_a_row(self, large, arrived, self._large_losses)
        if self._large_losses >= LOSSES_MOST:
            shrink(self, BASE_BYTES)

    def _handle_path_challenge_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        path = context.network_path
        if self._ferry is not None and len(path.remote_challenges) == MAX_REMOTE_CHALLENGES:
            path.remote_challenges.pop()  # the oldest
        before = len(path.remote_challenges)
        super()._handle_path_challenge_frame(context, frame_type, buf)
        if self._ferry is None or len(path.remote_challenges) == before:
            return
        active = path is self._network_paths[0] and path.is_validated
        if self._ferry.challenge(path.addr, path.remote_challenges[-1], on_active_path=active):
            path.remote_challenges.pop()
        else:
            path.remote_challenges.rotate(1)  # the newest first: its age is nearest to the RTT

    def _handle_path_response_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        at = buf.tell()
        challenged_from = vars(context.network_path).get(LOCAL)
        if self._came_to is not None and challenged_from not in (None, self._came_to):
            buf.pull_bytes(_CHALLENGE_BYTES)  # RFC 9000 §8.2.3: it says nothing of the path it was sent on
            return
        super()._handle_path_response_frame(context, frame_type, buf)
        if self._ferry is not None:
            self._ferry.response(buf.data_slice(at, at + 8), context.network_path.addr)

    def _replenish_connection_ids(self) -> None:
        #: RFC 9000 5.1.1: SHOULD ensure that its peer has a sufficient number
        #: RFC 9000 5.1.1: MUST NOT provide more connection IDs than the peer's limit
        super()._replenish_connection_ids()
        if self._ferry is None or self._is_client:
            return
        wanted = min(self._ferry.connection_ids, self._remote_active_connection_id_limit)
        while len(self._host_cids) < wanted:
            cid = os.urandom(self._configuration.connection_id_length)
            token = os.urandom(RESET_TOKEN_BYTES)
            self._host_cids.append(QuicConnectionId(cid, self._host_cid_seq, token))
            self._host_cid_seq += 1

    def _handle_new_connection_id_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        super()._handle_new_connection_id_frame(context, frame_type, buf)
        if self._ferry is not None:
            self._ferry.retire_prior_to(self._peer_retire_prior_to)

    # ------------------------------------------------------------------ in and out

    def receive_datagram(
        self, data: bytes, addr: NetworkAddress, now: float, local: str | None = None
    ) -> None:
        """As upstream. ``local``: the address of this host that it came to, where that is known."""
        self.change_count += 1
        known, ferry = self._quiet, self._ferry
        if known is not None and (ferry is None or ferry.passive):
            self._came_to, path = local, self._network_paths[0]
            done = receive(self, known, data, addr, now)
            self._came_to = None
            if done:
                if local is not None:
                    vars(path).setdefault(LOCAL, local)
                return
        if local is None:
            self._receive(data, addr, now)
            return
        self._came_to = local
        self._receive(data, addr, now)
        self._came_to = None
        for path in self._network_paths:  # a challenge leaves from where the path's first datagram came to
            if path.addr == addr:
                vars(path).setdefault(LOCAL, local)

    def _receive(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        #: wire-format 5: MUST discard packets it has received before
        ferry = self._ferry
        if ferry is None or (ferry.passive and self._network_paths and self._network_paths[0].addr == addr):
            super().receive_datagram(data, addr, now)
            if self._quiet is None:
                self._quiet = quiet(self)
            return
        if ferry.held:
            return
        awaited = self._ack_eliciting_sent_since_receipt
        # Upstream clears this after each authentic packet, if the connection is not closing by then.
        self._ack_eliciting_sent_since_receipt = True
        largest = self._spin_highest_pn
        paths = self._network_paths
        if (
            self._is_client
            and paths
            and paths[0].addr != addr
            and all(path.addr != addr for path in paths)
            and ferry.admits(addr)
        ):
            self._receive_provisionally(data, addr, now)
        else:
            super().receive_datagram(data, addr, now)
        if self._ack_eliciting_sent_since_receipt:
            self._ack_eliciting_sent_since_receipt = awaited
            if self._is_client and ferry.negotiated and self._handshake_confirmed:
                authentic = self._decrypt_again(data)
                if authentic is not None:
                    number, payload = authentic
                    ferry.repeated(addr, number, _leading_responses(payload), now)
        else:
            ferry.received(addr, newest=self._spin_highest_pn > largest, now=now)

    def _decrypt_again(self, data: bytes) -> tuple[int, bytes] | None:
        """Number and payload of a 1-RTT datagram that upstream has dropped; None if it is not authentic.

        Whoever relays packets faster than they come by themselves makes all genuine ones duplicates.
        """
        buf = Buffer(data=data)
        try:
            header = pull_quic_header(buf, host_cid_length=self._configuration.connection_id_length)
        except ValueError:
            return None
        if header.packet_type is not QuicPacketType.ONE_RTT:
            return None
        if all(connection_id.cid != header.destination_cid for connection_id in self._host_cids):
            return None
        expected = self._spaces[tls.Epoch.ONE_RTT].expected_packet_number
        try:
            _, payload, number = self._cryptos[tls.Epoch.ONE_RTT].decrypt_packet(data, buf.tell(), expected)
        except CryptoError:
            return None
        return number, payload

    def _receive_provisionally(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        """Upstream drops what comes from an address that is no path (RFC 9000 §9).

        The address is one for the length of this call. Upstream must not probe it: challenges are the
        extension's.
        """
        provisional = QuicNetworkPath(addr)
        provisional.local_challenge_sent = True
        self._network_paths.append(provisional)
        try:
            super().receive_datagram(data, addr, now)
        finally:
            if provisional in self._network_paths:
                self._network_paths.remove(provisional)

    def datagrams_to_send(self, now: float) -> Datagrams:
        self.change_count += 1
        ferry = self._ferry
        if ferry is None:
            return super().datagrams_to_send(now)
        if ferry.held:
            #: wire-format 9: The source MUST NOT answer late datagrams
            return []
        if ferry.mute and not self._close_pending:
            return ferry.while_mute() if self._state not in END_STATES else []
        if (
            ferry.has_datagrams
            and self._handshake_confirmed
            and self._state not in END_STATES
            and not self._close_pending
        ):
            return ferry.before_send(now) + super().datagrams_to_send(now)
        return super().datagrams_to_send(now)

    def _send_probing_frames(self, network_path: QuicNetworkPath, now: float) -> Datagrams:
        """As upstream, in 1200 bytes: a path that is not validated may carry no more (RFC 9000 §8.2.1).

        Nothing that is lost on it is ever acknowledged, so no black hole would be noticed.
        """
        size_bytes = self._max_datagram_size
        self._max_datagram_size = min(size_bytes, BASE_BYTES)
        try:
            return super()._send_probing_frames(network_path, now)
        finally:
            self._max_datagram_size = size_bytes

    def _write_application(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath, now: float
    ) -> None:
        if self._datagrams_pending:
            drop_oversized(self)
        if self._quiet is not None:
            write_run(self, self._quiet, builder, network_path, now)
        while True:
            try:
                super()._write_application(builder, network_path, now)
                return
            except QuicPacketBuilderStop:
                # Either the window is full, and then the next packet is empty. Or the packet has no room for
                # a frame that cannot be divided, with which upstream ends the flight: resets behind the data
                # of many streams would make that one packet for each round trip.
                if builder._packet is None or builder.packet_is_empty:
                    raise
                self._loss._pacer.update_after_send(now=now)

    def _write_reset_stream_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        """As upstream, of a stream that the peer lets be open: else it would end the connection (§4.6)."""
        if not stream.is_blocked:
            super()._write_reset_stream_frame(builder, stream)

    def _write_stop_sending_frame(self, builder: QuicPacketBuilder, stream: QuicStream) -> None:
        """The same for STOP_SENDING."""
        if not stream.is_blocked:
            super()._write_stop_sending_frame(builder, stream)

    def get_timer(self) -> float | None:
        ferry = self._ferry
        timer = self._timer()
        if self._doubt is None or self._state in END_STATES or (ferry is not None and ferry.held):
            return timer
        return _earliest(timer, self._doubt.due_at)

    def _timer(self) -> float | None:
        ferry = self._ferry
        if ferry is None:
            return super().get_timer()
        if ferry.held:
            return None
        timer = super().get_timer()
        if ferry.mute:
            self._loss_at = None
            own = None if self._state in END_STATES else ferry.timer()
            return _earliest(self._close_at, own)
        if not ferry.passive and ferry.recovery_suspended and self._state not in END_STATES:
            self._loss_at = None
            timer = _earliest(self._close_at, self._pacing_at, *(space.ack_at for space in self._loss.spaces))
        own = ferry.timer()
        if own is None or (timer is not None and timer < own) or self._state in END_STATES:
            return timer
        return own

    def handle_timer(self, now: float) -> None:
        self.change_count += 1
        if self._ferry is not None:
            if self._ferry.held:
                return
            if self._state not in END_STATES:
                self._ferry.on_timer(now)
        if self._doubt is not None and self._state not in END_STATES:
            self._doubt.look(now)
            if self._doubt.is_over:
                self._doubt = None
        large = large_in_flight(self)
        super().handle_timer(now)
        if large:
            self._look_for_black_hole(large, set())


def _leading_responses(payload: bytes) -> list[bytes]:
    found = []
    while payload[:1] == bytes([QuicFrameType.PATH_RESPONSE]) and len(payload) > _CHALLENGE_BYTES:
        found.append(payload[1 : 1 + _CHALLENGE_BYTES])
        payload = payload[1 + _CHALLENGE_BYTES :]
    return found


def _earliest(*times: float | None) -> float | None:
    known = [time for time in times if time is not None]
    return min(known) if known else None
