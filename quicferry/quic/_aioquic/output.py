"""What a destination keeps to itself until the commit is recorded: the output commit of rollback recovery.

Until then the source may go on, from its own state. Whatever the client has been told by then must also be
true of the source: the destination sends what the source would send as well (data that was written before
the freeze, acknowledgements of what came before it, probes and their answers), and holds back what only it
knows of. Those are acknowledgements of what it received, new stream data and datagrams, resets, larger
limits, connection IDs that it has made up, key updates, and the retirement of the client's. The client
repeats what is not acknowledged, to whoever goes on. (Elnozahy, Alvisi, Wang and Johnson, "A survey of
rollback-recovery protocols in message-passing systems", ACM Computing Surveys 34:3, 2002, Section 2.4.)
"""

from __future__ import annotations

from typing import Any

from aioquic import tls
from aioquic.quic.connection import QuicConnection, QuicConnectionId
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicPacketBuilderStop
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from quicferry.quic._aioquic import state_fields as fields
from quicferry.quic._aioquic.keys import follow_reading, follow_sending

_METHODS = (
    "_write_ack_frame",
    "_write_connection_limits",
    "_write_datagram_frame",
    "_write_new_connection_id_frame",
    "_write_reset_stream_frame",
    "_write_retire_connection_id_frame",
    "_write_stop_sending_frame",
    "_write_stream_frame",
    "_write_stream_limits",
    "request_key_update",
)


class _Known:
    """What the source knows of, too: the connection as it is before it has received anything here."""

    def __init__(self, connection: QuicConnection) -> None:
        space = connection._spaces[tls.Epoch.ONE_RTT]
        self.received = RangeSet(list(space.ack_queue))
        self.largest_received = space.largest_received_packet
        self.largest_received_time = space.largest_received_time
        self.datagrams = len(connection._datagrams_pending)
        self.cids = {cid.sequence_number for cid in connection._host_cids}
        self.written = {
            number: (stream.sender._buffer_stop, stream.sender._buffer_fin is not None)
            for number, stream in connection._streams.items()
        }
        self.resets = {n for n, s in connection._streams.items() if s.sender.reset_pending}
        self.stops = {n for n, s in connection._streams.items() if s.receiver.stop_pending}
        self.retired: list[int] = []  # the client's connection IDs, to be retired after the commit
        self.owes_acknowledgement = False
        self.owes_key_update = False


def withhold_output(connection: QuicConnection) -> None:
    """From now until ``release_output``, nothing leaves that the source does not know of.

    The refusals are attributes of the object that hide the methods of its class, so that they cost nothing
    at other times. CONNECTION_CLOSE is not held back: a service that ends has its reasons.
    """
    #: wire-format 9: MUST NOT be told anything that a source which goes on
    known = _Known(connection)
    upstream: Any = type(connection)
    pair = connection._cryptos[tls.Epoch.ONE_RTT]

    def _write_ack_frame(builder: QuicPacketBuilder, space: QuicPacketSpace, now: float) -> None:
        known.owes_acknowledgement = True
        if not len(known.received) or known.largest_received_time is None:
            space.ack_at = None
            return
        present = space.ack_queue, space.largest_received_packet, space.largest_received_time
        space.ack_queue = known.received
        space.largest_received_packet = known.largest_received
        space.largest_received_time = known.largest_received_time
        try:
            upstream._write_ack_frame(connection, builder=builder, space=space, now=now)
        finally:
            space.ack_queue, space.largest_received_packet, space.largest_received_time = present

    def _write_stream_frame(
        builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream, max_offset: int
    ) -> int:
        assert stream.stream_id is not None  # only CRYPTO has none
        stop, fin = known.written.get(stream.stream_id, (0, False))
        sender = stream.sender
        if (sender._pending[0].start >= stop) if len(sender._pending) else not fin:
            return 0
        ends_at = sender._buffer_fin
        if not fin:
            sender._buffer_fin = None
        try:
            return upstream._write_stream_frame(  # type: ignore[no-any-return]
                connection, builder=builder, space=space, stream=stream, max_offset=min(max_offset, stop)
            )
        finally:
            sender._buffer_fin = ends_at

    def _write_datagram_frame(**keywords: Any) -> bool:
        if not known.datagrams:
            raise QuicPacketBuilderStop  # upstream keeps it, and goes on with the streams
        written: bool = upstream._write_datagram_frame(connection, **keywords)
        known.datagrams -= 1
        return written

    def _write_new_connection_id_frame(builder: QuicPacketBuilder, connection_id: QuicConnectionId) -> None:
        if connection_id.sequence_number in known.cids:
            upstream._write_new_connection_id_frame(connection, builder=builder, connection_id=connection_id)

    def _write_retire_connection_id_frame(*, sequence_number: int, **_: Any) -> None:
        known.retired.append(sequence_number)  # upstream takes it from its own list

    def _write_reset_stream_frame(builder: QuicPacketBuilder, stream: QuicStream) -> None:
        if stream.stream_id in known.resets:
            upstream._write_reset_stream_frame(connection, builder=builder, stream=stream)

    def _write_stop_sending_frame(builder: QuicPacketBuilder, stream: QuicStream) -> None:
        if stream.stream_id in known.stops:
            upstream._write_stop_sending_frame(connection, builder=builder, stream=stream)

    def request_key_update() -> None:
        known.owes_key_update = True  # the client would read nothing more of the source

    def _update_key(trigger: str) -> None:
        # A client that has read the new keys would not read a source that goes on with the old ones
        # (RFC 9001 §6.4). They are due with the first acknowledgement (§6.2), which is held back, too.
        if trigger == "remote_update":
            follow_reading(pair)
        else:
            type(pair)._update_key(pair, trigger)

    def _nothing(**_: Any) -> None:
        """Limits are raised after the commit: the client would use them against the source."""

    hiding = locals()
    for name in _METHODS:
        setattr(connection, name, hiding.get(name, _nothing))
    vars(pair)["_update_key"] = _update_key
    setattr(connection, fields.WITHHELD, known)


def release_output(connection: QuicConnection) -> None:
    """The commit is recorded: all that was held back may leave."""
    known: _Known | None = vars(connection).pop(fields.WITHHELD, None)
    if known is None:
        return
    for name in _METHODS:
        vars(connection).pop(name, None)
    pair = connection._cryptos[tls.Epoch.ONE_RTT]
    vars(pair).pop("_update_key", None)
    follow_sending(pair)
    connection._retire_connection_ids.extend(known.retired)
    space = connection._spaces[tls.Epoch.ONE_RTT]
    if known.owes_acknowledgement and len(space.ack_queue):
        space.ack_at = 0.0  # at once
    if known.owes_key_update:
        connection.request_key_update()
