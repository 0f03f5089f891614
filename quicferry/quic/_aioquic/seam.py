"""What the extension may ask of a connection: connection IDs, paths, recovery, packets."""

from __future__ import annotations

import ipaddress
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aioquic import tls
from aioquic.buffer import Buffer, size_uint_var  # type: ignore[attr-defined]  # re-exported without saying so
from aioquic.quic.congestion.base import create_congestion_control
from aioquic.quic.connection import (
    END_STATES,
    NetworkAddress,
    QuicConnection,
    QuicConnectionId,
    QuicNetworkPath,
)
from aioquic.quic.events import ConnectionIdIssued, QuicEvent
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
    QuicSentPacket,
)
from aioquic.quic.recovery import QuicPacketPacer

from quicferry.quic._aioquic.careful_resume import PathFacts, path_facts, resume_carefully
from quicferry.quic._aioquic.connection import LOCAL, RESET_TOKEN_BYTES, HookedConnection
from quicferry.quic._aioquic.doubt import doubt_flight
from quicferry.quic._aioquic.lease import ABORT_GAP, bind_lease, lease_until, release_lease, skip_to
from quicferry.quic._aioquic.output import withhold_output
from quicferry.quic.wire import Address, FrameType

_RTT_FIELDS = ("initial", "initialized", "first_sample_time", "latest", "min", "smoothed", "variance")
PROBE_DATAGRAM_BYTES = 1200  # RFC 9000 §8.2.1: a challenge also shows that the path carries this much
LEAST_PROBE_BYTES = 64  # a short header with the longest connection ID, a challenge, a response, the tag
_VALIDATION_PTOS = 3  # RFC 9000 §8.2.4
_CHALLENGE_BYTES = 8
RESPONSE_BYTES = 1 + _CHALLENGE_BYTES


def pto_s(connection: QuicConnection) -> float:
    """The connection's current PTO in seconds, without backoff (RFC 9002 §6.2.1)."""
    return connection._loss.get_probe_timeout()


def queued_s(connection: QuicConnection) -> float:
    """How much longer than the shortest the latest round trip was, in seconds; 0 without a sample."""
    loss = connection._loss
    return max(0.0, loss._rtt_latest - loss._rtt_min) if loss._rtt_initialized else 0.0


def is_closing(connection: QuicConnection) -> bool:
    """Whether either end has closed the connection; upstream tells only when draining is over."""
    return connection._state in END_STATES


def unsent_bytes(connection: QuicConnection, stream_id: int) -> int:
    """Bytes of a stream that were written but have not been sent, or were lost and not yet sent again."""
    stream = connection._streams.get(stream_id)
    if stream is None:
        return 0
    return sum(r.stop - r.start for r in stream.sender._pending)


class RttEstimate(NamedTuple):
    """A PTO in seconds, and aioquic's fields that it follows from."""

    pto_s: float
    values: tuple[Any, ...]


class Seam:
    """One connection, as the roles see it. Times are in seconds on the clock of ``now``."""

    def __init__(self, connection: HookedConnection) -> None:
        self._quic = connection

    # ------------------------------------------------------------------ facts

    @property
    def handshake_confirmed(self) -> bool:
        """RFC 9001 §4.1.2."""
        return self._quic._handshake_confirmed

    @property
    def has_ended(self) -> bool:
        """Closing, draining or terminated."""
        return self._quic._state in END_STATES

    @property
    def network_address(self) -> NetworkAddress:
        """The address of the active path, in the form the socket uses."""
        return self._quic._network_paths[0].addr

    @property
    def address(self) -> Address:
        """The address of the active path."""
        return plain_address(self.network_address)

    @property
    def host_cid(self) -> bytes:
        """The connection ID the peer uses for us."""
        return self._quic.host_cid

    @property
    def pto_s(self) -> float:
        """See ``pto_s``."""
        return pto_s(self._quic)

    @property
    def awaits_acknowledgement(self) -> bool:
        """Whether an ack-eliciting packet is in flight, once the handshake is confirmed."""
        if self._quic._handshake_confirmed:
            for space in self._quic._loss.spaces:  # a loop: this is asked after each datagram
                if space.ack_eliciting_in_flight:
                    return True
        return False

    @property
    def may_be_sent_something(self) -> bool:
        """Whether a stream of the peer's is not finished, or it may send datagrams (RFC 9221)."""
        quic = self._quic
        return quic._configuration.max_datagram_frame_size is not None or any(
            not stream.receiver.is_finished for stream in quic._streams.values()
        )

    def send_ping(self) -> None:
        """A PING with the next packet."""
        self._quic._send_probe()

    @property
    def last_received_at(self) -> float:
        """When the newest 1-RTT packet came; 0 before there was one."""
        return self._quic._loss.spaces[-1].largest_received_time or 0.0

    @property
    def largest_received(self) -> int:
        """The largest number of a 1-RTT packet that was received."""
        return self._quic._spin_highest_pn

    @property
    def largest_acknowledged(self) -> int:
        """The largest number of ours that the peer has acknowledged."""
        return self._quic._spaces[tls.Epoch.ONE_RTT].largest_acked_packet

    @property
    def rtt_without_sample_s(self) -> float:
        """What a new path's RTT is taken for until there is a sample: RFC 9002 §6.2.2.

        A path that had no sample either hands on what it was taken for itself.
        """
        #: wire-format 6.4: A path that was left without a sample MUST hand on
        loss = self._quic._loss
        initial_s: float = self._quic.configuration.initial_rtt
        return min(initial_s, loss._rtt_smoothed if loss._rtt_initialized else loss._rtt_initial)

    def oldest_unacknowledged_at(self) -> float | None:
        """When the oldest ack-eliciting packet in flight was sent; None if there is none."""
        for packet in self._quic._spaces[tls.Epoch.ONE_RTT].sent_packets.values():
            if packet.is_ack_eliciting:
                return packet.sent_time
        return None

    @property
    def idle_timeout_s(self) -> float:
        """The idle timeout in effect (RFC 9000 §10.1)."""
        return self._quic._idle_timeout()

    def socket_form(self, address: Address) -> NetworkAddress:
        """``address`` in the form the active path's has (IPv4-mapped, with flow and scope)."""
        current = self.network_address
        host = address[0]
        if current[0].startswith("::ffff:") and ipaddress.ip_address(host).version == 4:
            host = f"::ffff:{host}"
        return (host, address[1], 0, 0) if len(current) == 4 else (host, address[1])

    def emit(self, event: QuicEvent) -> None:
        """Hands an event to the application."""
        self._quic._events.append(event)

    # ------------------------------------------------------------------ connection IDs (RFC 9000 §5.1)

    @property
    def free_cids(self) -> int:
        """Connection IDs of the peer that were never used."""
        return len(self._quic._peer_cid_available)

    @property
    def peer_cid_limit(self) -> int:
        """How many connection IDs of ours the peer can hold: its active_connection_id_limit."""
        return self._quic._remote_active_connection_id_limit

    def issue_first_cid(self) -> tuple[bytes, bytes]:
        """A server's connection ID with the sequence number 1, and its stateless reset token.

        It leaves in ``preferred_address`` and in no frame (RFC 9000 §5.1.1). Before any other was issued.
        """
        quic = self._quic
        cid, token = os.urandom(quic.configuration.connection_id_length), os.urandom(RESET_TOKEN_BYTES)
        quic._host_cids.append(QuicConnectionId(cid, quic._host_cid_seq, token, was_sent=True))
        quic._host_cid_seq += 1
        self.emit(ConnectionIdIssued(connection_id=cid))
        return cid, token

    def replenish_cids(self) -> None:
        """Give the peer the connection IDs that it is to have."""
        self._quic._replenish_connection_ids()

    def take_cid(self) -> QuicConnectionId | None:
        """A connection ID for a new path (RFC 9000 §9.5), None when the peer has not given enough."""
        return self._quic._peer_cid_available.pop(0) if self._quic._peer_cid_available else None

    def retire_cid(self, cid: QuicConnectionId) -> None:
        """RETIRE_CONNECTION_ID for one that ``take_cid`` gave."""
        self._quic._retire_peer_cid(cid)

    def change_cid(self) -> None:
        """A new connection ID on the active path, if the peer has given one."""
        self._quic.change_connection_id()

    def take_newest_cid(self) -> None:
        """The newest connection ID of the peer becomes the active one.

        The present one and the next are retired: a destination that has served has left the first and used
        the second. Those between stay, for paths of a client whose address changes.
        """
        quic = self._quic
        if quic._peer_cid_available:
            newest = quic._peer_cid_available.pop()
            used = [quic._peer_cid, *quic._peer_cid_available[:1]]
            del quic._peer_cid_available[:1]
            for cid in used:
                quic._retire_peer_cid(cid)
            quic._peer_cid = newest

    # ------------------------------------------------------------------ paths and recovery

    def adopt(
        self,
        address: NetworkAddress,
        cid: QuicConnectionId,
        responses: Sequence[bytes],
        rtt_s: float | None,
        now: float,
        *,
        is_sample: bool,
        resume_from: PathFacts | None = None,
    ) -> QuicConnectionId:
        """Makes a validated path the active one; what was on its way on the old one is sent again.

        ``responses`` are answers to challenges of the peer that are still to be sent. Without ``is_sample``
        the RTT is only what is taken for it until there is a sample. Returns the connection ID of the old
        path, which is not retired: it stays with that path (RFC 9000 §9.5) while there may be a way back.
        """
        #: RFC 9000 9.4: MUST NOT contribute to congestion control or RTT estimation
        quic = self._quic
        former, quic._peer_cid = quic._peer_cid, cid
        quic._spin_bit = False  # RFC 9000 §17.4
        path = QuicNetworkPath(address, is_validated=True)
        path.remote_challenges.extend(responses)
        quic._network_paths[:] = [path]
        self.expire_in_flight(now)
        self.restart_recovery(rtt_s if is_sample else None, now, resume_from=resume_from)
        if rtt_s is not None and not is_sample:
            quic._loss._rtt_initial = rtt_s
        space = quic._spaces[tls.Epoch.ONE_RTT]
        if len(space.ack_queue):  # at once: the server is to know what of its last flight has arrived
            space.ack_at = now
        return former

    def expire_in_flight(self, now: float) -> None:
        """All data in flight is to be sent again at once; it is no sign of congestion."""
        loss = self._quic._loss
        for space in loss.spaces:
            loss._on_packets_lost(
                congestion_event=False, now=now, packets=list(space.sent_packets.values()), space=space
            )
            space.loss_time = None
        loss._pto_count = 0
        self._quic._pacing_at = None
        if self._quic._doubt is not None:
            self._quic._doubt.give_up(now)
            self._quic._doubt = None

    def doubt_flight(self, now: float) -> None:
        """Stream data in flight is in doubt from now on: see ``doubt.py``."""
        doubt_flight(self._quic, now)
        self._quic._loss._pto_count = 0
        self._quic._pacing_at = None

    def ask_for_acknowledgement(self) -> None:
        """A PING, where what is in doubt would else be settled by nothing that leaves."""
        if self._quic._doubt is not None:
            self.send_ping()

    def path_facts(self) -> PathFacts | None:
        """See ``careful_resume.path_facts``."""
        return path_facts(self._quic)

    def restart_recovery(
        self,
        rtt_s: float | None,
        now: float,
        *,
        least_rtt_s: float = 0.0,
        resume_from: PathFacts | None = None,
    ) -> None:
        """Congestion control and RTT as on a new path (RFC 9000 §9.4, RFC 9002 §7 and §6.2.2).

        Without a sample the RTT is unknown; the initial estimate is ``rtt_without_sample_s``, but no less
        than ``least_rtt_s``. Nothing must be in flight. The window may be resumed with care from what is
        known of another path.
        """
        #: RFC 9000 9.4: MUST immediately reset the congestion controller
        loss = self._quic._loss
        known_s = self.rtt_without_sample_s
        # The size belongs to the path, and the challenge has shown no more than this (RFC 9000 §14.3).
        size = self._quic._max_datagram_size = min(self._quic._max_datagram_size, PROBE_DATAGRAM_BYTES)
        loss._cc = create_congestion_control(
            self._quic.configuration.congestion_control_algorithm, max_datagram_size=size
        )
        loss._pacer = QuicPacketPacer(max_datagram_size=size)
        resume_carefully(self._quic, resume_from)
        if rtt_s is None:
            loss._rtt_initial = max(known_s, least_rtt_s)
            loss._rtt_initialized = False
            loss._rtt_latest = loss._rtt_smoothed = loss._rtt_variance = 0.0
            loss._rtt_min = math.inf
            return
        self._set_rtt(rtt_s, now)

    def lower_rtt(self, rtt_s: float, now: float) -> None:
        """The RTT is at most this: an estimate whose samples were all longer starts anew from it."""
        if rtt_s < self._quic._loss._rtt_min:
            self._set_rtt(rtt_s, now)

    def rtt_estimate(self) -> RttEstimate:
        """What is known of the RTT, for ``take_back_rtt``."""
        loss = self._quic._loss
        return RttEstimate(self.pto_s, tuple(getattr(loss, f"_rtt_{name}") for name in _RTT_FIELDS))

    def take_back_rtt(self, before: RttEstimate) -> None:
        """Forgets the samples since then: the peer stood still. Never makes the PTO longer."""
        if before.pto_s < self.pto_s:
            loss = self._quic._loss
            for name, value in zip(_RTT_FIELDS, before.values, strict=True):
                setattr(loss, f"_rtt_{name}", value)
            if loss._rtt_initialized:
                loss._pacer.update_rate(
                    congestion_window=loss.congestion_window, smoothed_rtt=loss._rtt_smoothed
                )

    def _set_rtt(self, rtt_s: float, now: float) -> None:
        """As the first sample of a path (RFC 9002 §5.3); not below aioquic's least RTT."""
        loss = self._quic._loss
        rtt_s = max(rtt_s, 0.001)
        loss._rtt_initialized = True
        loss._rtt_first_sample_time = now
        loss._rtt_latest = loss._rtt_min = loss._rtt_smoothed = rtt_s
        loss._rtt_variance = rtt_s / 2
        loss._pacer.update_rate(congestion_window=loss.congestion_window, smoothed_rtt=rtt_s)

    def validate_again(self, since: float) -> None:
        """Begins anew to validate the client's new address, where that has not ended; time runs from then.

        What has answered the challenge came while nobody was there, and the time has run out meanwhile. The
        time is not left to aioquic, which sets it with the challenge: where the address is a forged one, the
        anti-amplification limit may leave no room for that, and the address before it must come back.
        """
        #: wire-format 7.2: MUST begin that validation anew
        #: RFC 9000 8.2.4: SHOULD abandon path validation based on a timer
        path = self._quic._network_paths[0]
        if not path.is_validated:
            path.local_challenge_sent = False
            wait_s = _VALIDATION_PTOS * max(self.pto_s, 2 * self._quic.configuration.initial_rtt)
            path.validation_deadline = since + wait_s

    def forget_locals(self) -> None:
        """The addresses of this host are others than before."""
        for path in self._quic._network_paths:
            vars(path).pop(LOCAL, None)

    def restart_idle_timer(self, now: float) -> None:
        """A full idle timeout from now on: the time a frozen connection slept does not count."""
        self._quic._close_at = now + self._quic._idle_timeout()

    # ------------------------------------------------------------------ packet numbers

    @property
    def packet_number(self) -> int:
        """The next one to be sent."""
        return self._quic._packet_number

    def keep_to_lease(self, frozen_at: int) -> None:
        """At the destination: only the numbers that a source which was frozen at that one leaves to it."""
        if lease_until(self._quic) is None:
            bind_lease(self._quic, frozen_at + ABORT_GAP)

    def withhold_output(self) -> None:
        """See ``output.withhold_output``; ``release_lease`` ends it."""
        withhold_output(self._quic)

    def release_lease(self) -> None:
        """See ``lease.release_lease``."""
        release_lease(self._quic)

    def leave_lease(self, frozen_at: int) -> None:
        """At the source: goes on behind the numbers that were the destination's."""
        skip_to(self._quic, frozen_at + ABORT_GAP)

    def take_probe_bytes(self, address: NetworkAddress) -> int:
        """How long a probe to that address may be: 1200 bytes, or what the anti-amplification limit leaves.

        0 where that holds no probe. What is granted counts as sent (RFC 9000 §8.1, §8.2.1).
        """
        path = next((each for each in self._quic._network_paths if each.addr == address), None)
        if path is None:
            return 0
        if path.is_validated:
            return PROBE_DATAGRAM_BYTES
        granted = min(PROBE_DATAGRAM_BYTES, 3 * path.bytes_received - path.bytes_sent)
        if granted < LEAST_PROBE_BYTES:
            return 0
        path.bytes_sent += granted
        return granted

    def mark_reached(self, address: NetworkAddress) -> None:
        """A challenge there was answered, whatever its size: no limit holds for that address any more."""
        for path in self._quic._network_paths:
            if path.addr == address:
                path.is_validated = True

    def cid_of(self, address: NetworkAddress) -> QuicConnectionId | None:
        """The connection ID of a validated path that is not the active one (RFC 9000 §9.5); else None."""
        others = [path for path in self._quic._network_paths[1:] if path.is_validated]
        return next((path.peer_cid for path in others if path.addr == address), None)

    def is_unvalidated(self, address: NetworkAddress) -> bool:
        """Whether that is an address of the peer's, not the active one, that has not answered a challenge."""
        others = self._quic._network_paths[1:]
        return any(path.addr == address and not path.is_validated for path in others)

    def challenge_again(self, address: NetworkAddress) -> None:
        """The next datagram to an address that probes has a new challenge, too, until one is answered.

        Upstream repeats a challenge that is lost on the active path only.
        """
        for path in self._quic._network_paths[1:]:
            if path.addr == address and not path.is_validated:
                path.local_challenge_sent = False

    # ------------------------------------------------------------------ packets

    def probe(
        self,
        address: NetworkAddress,
        cid: QuicConnectionId | None,
        challenge: bytes | None,
        responses: Sequence[bytes],
        word: Sequence[bytes] = (),
        size_bytes: int = PROBE_DATAGRAM_BYTES,
    ) -> tuple[bytes, NetworkAddress]:
        """One datagram of probing frames, outside loss recovery and congestion control.

        ``word``: frames of the extension that go along, on a path that is not probed for the first time.
        ``size_bytes``: less than the whole only where the anti-amplification limit demands it.

        A challenge is repeated by its own clock and a response never (RFC 9000 §13.3), so recovery has
        nothing to do for them; kept in its books, probes to dead addresses would shrink the window.
        Without ``cid`` the active one is used.
        """
        #: RFC 9000 8.2.1: SHOULD NOT send multiple PATH_CHALLENGE frames in a single packet
        #: RFC 9000 8.2.1: MUST expand datagrams that contain a PATH_CHALLENGE frame
        #: RFC 9000 8.2.2: MUST expand datagrams that contain a PATH_RESPONSE frame
        quic = self._quic
        peer_cid = quic._peer_cid.cid if cid is None else cid.cid
        builder = QuicPacketBuilder(
            host_cid=quic.host_cid,
            is_client=quic._is_client,
            max_datagram_size=size_bytes,
            packet_number=quic._packet_number,
            peer_cid=peer_cid,
            quic_logger=quic._quic_logger,
            version=_version(quic),
        )
        builder.start_packet(QuicPacketType.ONE_RTT, quic._cryptos[tls.Epoch.ONE_RTT])
        if challenge is not None:
            buf = builder.start_frame(QuicFrameType.PATH_CHALLENGE, capacity=1 + _CHALLENGE_BYTES)
            buf.push_bytes(challenge)
        for response in responses:
            buf = builder.start_frame(QuicFrameType.PATH_RESPONSE, capacity=1 + _CHALLENGE_BYTES)
            buf.push_bytes(response)
        for encoded in word:
            frame_type = Buffer(data=encoded).pull_uint_var()
            builder.start_frame(frame_type, capacity=len(encoded)).push_bytes(
                encoded[size_uint_var(frame_type) :]
            )
        datagrams, packets = builder.flush()
        quic._packet_number = builder.packet_number
        self._log_sent(packets, peer_cid)
        return datagrams[0], address

    def control_packet(
        self, frames: Sequence[bytes], on_delivery: Callable[[bytes, bool], None], now: float
    ) -> tuple[list[tuple[bytes, NetworkAddress]], int]:
        """One packet of the extension's own frames on the active path, inside loss recovery.

        They have a packet of their own, with only an ACK before them: a dissector stops at a frame type it
        does not know. ``on_delivery`` gets the frame and whether it was acknowledged (else it was lost).
        Returns the datagrams and how many frames they hold; congestion control or the size may leave some
        or all for later.
        """
        #: wire-format 4: SHOULD put them in a packet that holds nothing else
        quic = self._quic
        path = quic._network_paths[0]
        builder = QuicPacketBuilder(
            host_cid=quic.host_cid,
            is_client=quic._is_client,
            max_datagram_size=quic._max_datagram_size,
            packet_number=quic._packet_number,
            peer_cid=quic._peer_cid.cid,
            quic_logger=quic._quic_logger,
            spin_bit=quic._spin_bit,
            version=_version(quic),
        )
        builder.max_flight_bytes = quic._loss.congestion_window - quic._loss.bytes_in_flight
        if not path.is_validated:
            builder.max_total_bytes = path.bytes_received * 3 - path.bytes_sent  # RFC 9000 §8.1
        space = quic._spaces[tls.Epoch.ONE_RTT]
        written = 0
        try:
            builder.start_packet(QuicPacketType.ONE_RTT, quic._cryptos[tls.Epoch.ONE_RTT])
            if space.ack_at is not None:
                quic._write_ack_frame(builder=builder, space=space, now=now)
            for encoded in frames:
                frame_type = Buffer(data=encoded).pull_uint_var()
                buf = builder.start_frame(
                    frame_type,
                    capacity=len(encoded),
                    handler=_on_control_delivery,
                    handler_args=(on_delivery, encoded),
                )
                buf.push_bytes(encoded[size_uint_var(frame_type) :])
                written += 1
                if builder.quic_logger_frames is not None:
                    builder.quic_logger_frames.append({"frame_type": FrameType(frame_type).name.lower()})
        except QuicPacketBuilderStop:
            pass  # the rest waits for room
        datagrams = quic._flush_builder(
            builder=builder, network_path=path, peer_cid=quic._peer_cid.cid, now=now
        )
        return datagrams, written

    def _log_sent(self, packets: Sequence[QuicSentPacket], peer_cid: bytes) -> None:
        trace = self._quic._quic_logger
        if trace is None:
            return
        for packet in packets:
            trace.log_event(
                category="transport",
                event="packet_sent",
                data={
                    "frames": packet.quic_logger_frames,
                    "header": {
                        "packet_number": packet.packet_number,
                        "packet_type": trace.packet_type(packet.packet_type),
                        "scid": "",
                        "dcid": peer_cid.hex(),
                    },
                    "raw": {"length": packet.sent_bytes},
                },
            )


def plain_address(address: NetworkAddress) -> Address:
    """(host, port) of a socket's address; an IPv4-mapped host as plain IPv4."""
    host = str(address[0])
    return (host.removeprefix("::ffff:") if "." in host else host), int(address[1])


def _version(quic: QuicConnection) -> int:
    assert quic._version is not None  # set before any key exists
    return quic._version


def _on_control_delivery(
    delivery: QuicDeliveryState, on_delivery: Callable[[bytes, bool], None], encoded: bytes
) -> None:
    on_delivery(encoded, delivery is QuicDeliveryState.ACKED)
