"""The way of a 1-RTT packet while nothing goes on: no handshake, no other path, no move.

Nearly all packets of a long transfer are of one kind: a short header for the connection ID in use, on the
validated path in use, or a run of full packets of one stream. Upstream decides anew for each of them what
only a handshake or a change of the path can change. Here these questions are asked once: ``receive`` takes
such a packet and refuses any other, ``write_run`` writes such a run and leaves the rest to upstream. Frames
are upstream's in both. tests/pair/test_quiet.py holds both ways against each other, field by field.
"""

from __future__ import annotations

from typing import Any

from aioquic import tls
from aioquic._crypto import CryptoError
from aioquic.quic.connection import (
    END_STATES,
    NetworkAddress,
    QuicConnection,
    QuicConnectionError,
    QuicNetworkPath,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import MAX_ACK_RANGES, QuicPacketSpace
from aioquic.quic.stream import QuicStream

_ONE_RTT = tls.Epoch.ONE_RTT
_SHORT_HEADER, _LONG_HEADER = b"\x40", b"\x80"  # a short header with the fixed bit is between (RFC 9000 §17)
_SPIN_BIT = 0x20
_RESERVED_BITS = 0x18


class Quiet:
    """What does not change once the handshake is confirmed, and need not be looked up for each packet."""

    __slots__ = ("pair", "space", "version")

    def __init__(self, connection: QuicConnection) -> None:
        self.pair: CryptoPair = connection._cryptos[_ONE_RTT]
        self.space: QuicPacketSpace = connection._spaces[_ONE_RTT]
        self.version = connection._version


def quiet(connection: QuicConnection) -> Quiet | None:
    """For a connection whose handshake is over and that keeps no qlog; None for any other."""
    if (
        not connection._handshake_confirmed
        or connection._quic_logger is not None
        or connection._state in END_STATES
        or connection._peer_cid.sequence_number is None
        or connection._cryptos[tls.Epoch.ZERO_RTT].recv.is_valid()
    ):
        return None
    return Quiet(connection)


def receive(connection: QuicConnection, known: Quiet, data: bytes, addr: NetworkAddress, now: float) -> bool:
    """Process a datagram as ``QuicConnection.receive_datagram`` would; False if it is of another kind."""
    path = connection._network_paths[0]
    host_cid = connection.host_cid
    end = 1 + len(host_cid)
    if (
        data[:1] < _SHORT_HEADER
        or data[:1] >= _LONG_HEADER
        or data[1:end] != host_cid
        or path.addr != addr
        or not path.is_validated
        or connection._state in END_STATES
    ):
        return False
    for connection_id in connection._host_cids:
        if connection_id.cid == host_cid:
            break
    else:
        return False  # retired: a client keeps the name of the first
    space = known.space
    try:
        header, payload, number = known.pair.decrypt_packet(data, end, space.expected_packet_number)
    except CryptoError as error:
        connection._logger.debug(error)
        return True
    if number in space.received_packets:
        return True  # RFC 9000 §12.3
    if header[0] & _RESERVED_BITS:
        connection.close(
            error_code=QuicErrorCode.PROTOCOL_VIOLATION,
            frame_type=QuicFrameType.PADDING,
            reason_phrase="Reserved bits must be zero",
        )
        return True
    if number > space.expected_packet_number:
        space.expected_packet_number = number + 1
    if number > connection._spin_highest_pn:
        connection._spin_bit = bool(header[0] & _SPIN_BIT) != connection._is_client
        connection._spin_highest_pn = number
    context = QuicReceiveContext(
        epoch=_ONE_RTT,
        host_cid=host_cid,
        network_path=path,
        quic_logger_frames=None,
        time=now,
        version=None,
    )
    try:
        is_ack_eliciting, _ = connection._payload_received(context, payload)
    except QuicConnectionError as error:
        is_ack_eliciting = False
        connection._logger.warning(error)
        connection.close(
            error_code=error.error_code, frame_type=error.frame_type, reason_phrase=error.reason_phrase
        )
    if connection._state in END_STATES or connection._close_pending:
        return True
    connection._close_at = now + connection._idle_timeout()
    connection._ack_eliciting_sent_since_receipt = False
    if path not in connection._network_paths:  # a frame has moved the connection to another
        connection._add_network_path(path)
    if number > space.largest_received_packet:
        space.largest_received_packet = number
        space.largest_received_time = now
    space.ack_queue.add(number)
    space.received_packets.add(number)
    if len(space.ack_queue) > MAX_ACK_RANGES:
        space.ack_queue.shift()  # RFC 9000 §13.2.3
    if is_ack_eliciting and space.ack_at is None:
        space.ack_at = now + connection._ack_delay
    return True


def write_run(
    connection: QuicConnection, known: Quiet, builder: QuicPacketBuilder, path: QuicNetworkPath, now: float
) -> None:
    """Write packets of the only stream that has anything to send, while there is nothing else to write.

    Upstream goes on behind it, and finds either nothing left or what this left to it. May raise
    ``QuicPacketBuilderStop`` when the congestion window is full, as upstream's own loop does.
    """
    stream = _only_stream(connection, known, path, now)
    if stream is None:
        return
    sender, pacer, space = stream.sender, connection._loss._pacer, known.space
    used = 0
    try:
        while not sender.buffer_is_empty:
            next_at: Any = pacer.next_send_time(now=now)  # its annotation does not say that it may be None
            if next_at is not None:
                return  # upstream asks again
            builder.start_packet(QuicPacketType.ONE_RTT, known.pair)
            newly = connection._write_stream_frame(
                builder=builder,
                space=space,
                stream=stream,
                max_offset=min(
                    sender.highest_offset + connection._remote_max_data - connection._remote_max_data_used,
                    stream.max_stream_data_remote,
                ),
            )
            connection._remote_max_data_used += newly
            used += newly
            if builder.packet_is_empty:
                return
            pacer.update_after_send(now=now)
    finally:
        if used and len(connection._streams_queue) > 1:  # upstream puts whoever was served at the end
            connection._streams_queue.remove(stream)
            connection._streams_queue.append(stream)


def _only_stream(
    connection: QuicConnection, known: Quiet, path: QuicNetworkPath, now: float
) -> QuicStream | None:
    """The stream with something to send, where it is the only one and nothing else is to be written."""
    ack_at = known.space.ack_at
    if (
        (ack_at is not None and ack_at <= now)
        or not path.is_validated
        or path.remote_challenges
        or connection._handshake_done_pending
        or connection._probe_pending
        or connection._ping_pending
        or connection._datagrams_pending
        or connection._retire_connection_ids
        or connection._streams_blocked_pending
        or not connection._crypto_streams[_ONE_RTT].sender.buffer_is_empty
    ):
        return None
    only: QuicStream | None = None
    for stream in connection._streams_queue:
        sender = stream.sender
        if stream.is_finished or stream.receiver.stop_pending or sender.reset_pending:
            return None
        if not stream.is_blocked and not sender.buffer_is_empty:
            if only is not None:
                return None
            only = stream
    if only is None:
        return None
    if not all(cid.was_sent for cid in connection._host_cids) or _has_limits_to_raise(connection):
        return None
    return only


def _has_limits_to_raise(connection: QuicConnection) -> bool:
    """Whether MAX_DATA, MAX_STREAMS or MAX_STREAM_DATA may be due."""
    data = connection._local_max_data
    if data.used * 2 > data.value:
        return True
    if data.value != data.sent:
        return True
    for limit in (connection._local_max_streams_bidi, connection._local_max_streams_uni):
        if limit.value != limit.sent and limit.sent - limit.used < limit.value - limit.sent:
            return True
    streams: Any = connection._streams.values()
    return any(
        stream.max_stream_data_local_sent != stream.max_stream_data_local
        or (
            stream.max_stream_data_local and stream.receiver.highest_offset * 2 > stream.max_stream_data_local
        )
        for stream in streams
    )
