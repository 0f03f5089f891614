"""Take a frozen connection apart into an image.

Which field is moved, rebuilt or dropped is declared in ``state_fields``, and a contract test holds the
lists against the objects, so that a field that a new aioquic adds cannot be forgotten in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, TypeVar

import msgspec
from aioquic import tls
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import QuicCongestionControl, QuicRttMonitor
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.connection import Limit, QuicConnection, QuicConnectionId, QuicNetworkPath
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream

from quicferry.errors import MigrationError
from quicferry.quic import image
from quicferry.quic._aioquic import state_fields as fields
from quicferry.quic._aioquic.connection import HookedConnection
from quicferry.quic._aioquic.doubt import sender_of
from quicferry.quic._aioquic.keys import former_secret
from quicferry.quic._aioquic.lease import skips
from quicferry.quic._aioquic.state import extended_or_none

_ONE_RTT = tls.Epoch.ONE_RTT
_Image = TypeVar("_Image", bound=image.Image)


_readers: dict[type, Callable[[object], tuple[Any, ...]]] = {}  # image -> all that is copied as it is


def capture(connection: QuicConnection, now: float, *, frozen: bool = True) -> image.ConnectionImage:
    """The image of a connection whose flight was stopped; if not ``frozen``, without what is in flight."""
    assert not frozen or not connection._spaces[_ONE_RTT].sent_packets
    close_at = connection._close_at
    assert close_at is not None
    extended = extended_or_none(connection)
    return _plain_image(
        image.ConnectionImage,
        connection,
        fields.CONNECTION_PLAIN,
        agreement=agreement(connection._configuration),
        close_in_s=close_at - now,
        crypto_stream=_capture_stream(connection._crypto_streams[_ONE_RTT]),
        datagrams_pending=list(connection._datagrams_pending),
        events=[_capture_event(event) for event in connection._events],
        extension=None if extended is None else extended.extension_state(),
        host_cids=[_capture_connection_id(item) for item in connection._host_cids],
        in_doubt=_capture_doubt(connection, now),
        keys=_capture_keys(connection),
        local_max_data=_capture_limit(connection._local_max_data),
        local_max_streams_bidi=_capture_limit(connection._local_max_streams_bidi),
        local_max_streams_uni=_capture_limit(connection._local_max_streams_uni),
        network_paths=[_capture_path(path, now) for path in connection._network_paths],
        peer_cid=_capture_connection_id(connection._peer_cid),
        peer_cid_available=[_capture_connection_id(item) for item in connection._peer_cid_available],
        peer_cid_sequence_numbers=_ranges_of(connection._peer_cid_sequence_numbers),
        ping_pending=list(connection._ping_pending),
        recovery=_capture_recovery(connection._loss, now),
        retire_connection_ids=list(connection._retire_connection_ids),
        skipped_packet_numbers=skips(connection),
        space=_capture_space(connection._spaces[_ONE_RTT], now),
        streams=[_capture_stream(stream) for stream in connection._streams.values()],
        streams_blocked_bidi=[_stream_id(stream) for stream in connection._streams_blocked_bidi],
        streams_blocked_uni=[_stream_id(stream) for stream in connection._streams_blocked_uni],
        streams_queue=[_stream_id(stream) for stream in connection._streams_queue],
        tls=image.TlsImage(
            alpn_negotiated=connection.tls.alpn_negotiated,
            client_random=connection.tls.client_random,
            early_data_accepted=connection.tls.early_data_accepted,
            receive_buffer=connection.tls._receive_buffer,
            session_resumed=connection.tls._session_resumed,
        ),
    )


def _plain_image(kind: type[_Image], source: object, names: dict[str, str], **other: Any) -> _Image:
    """An image whose fields are copied from ``source`` by the table ``names``, but for the ``other`` ones."""
    read = _readers.get(kind)
    if read is None:  # one kind of image has one table
        read = _readers[kind] = attrgetter(*names.values())
    return kind(**dict(zip(names, read(source), strict=True)), **other)


def agreement(configuration: QuicConfiguration) -> image.AgreementImage:
    """What of a configuration the peer was told, or relies on."""
    return image.AgreementImage(
        congestion_control_algorithm=configuration.congestion_control_algorithm,
        connection_id_length=configuration.connection_id_length,
        idle_timeout=configuration.idle_timeout,
        max_datagram_frame_size=configuration.max_datagram_frame_size,
    )


def _capture_keys(connection: QuicConnection) -> image.KeysImage:
    pair = connection._cryptos[_ONE_RTT]
    # TLS never learns of key updates, so it still knows the secrets of generation 0.
    send_first, recv_first = connection.tls._enc_key, connection.tls._dec_key
    assert pair.send.secret is not None and pair.recv.secret is not None
    assert send_first is not None and recv_first is not None
    assert pair.send.cipher_suite is not None and pair.send.version is not None
    return image.KeysImage(
        cipher_suite=int(pair.send.cipher_suite),
        version=pair.send.version,
        send_secret=pair.send.secret,
        send_first_secret=send_first,
        send_key_phase=pair.send.key_phase,
        recv_secret=pair.recv.secret,
        recv_first_secret=recv_first,
        recv_key_phase=pair.recv.key_phase,
        recv_former_secret=former_secret(pair),
        update_requested=pair._update_key_requested or connection._key_update_pending,
    )


def _capture_doubt(connection: QuicConnection, now: float) -> list[image.PacketInDoubtImage]:
    if not isinstance(connection, HookedConnection) or connection._doubt is None:
        return []
    made = []
    for packet in connection._doubt.packets.values():
        data, acknowledges = [], []
        for handler, arguments in packet.delivery_handlers:
            sender = sender_of(handler)
            if sender is None:
                _, highest = arguments
                acknowledges.append(highest)
            elif sender._stream_id in connection._streams:  # else it is done with
                start, stop, fin = arguments
                assert sender._stream_id is not None
                data.append(image.DataInDoubtImage(sender._stream_id, start, stop, fin))
        if data:
            sent_age_s = now - (packet.sent_time or 0.0)
            made.append(image.PacketInDoubtImage(packet.packet_number, sent_age_s, data, acknowledges))
    return made


def _capture_space(space: QuicPacketSpace, now: float) -> image.SpaceImage:
    window = space.received_packets
    return _plain_image(
        image.SpaceImage,
        space,
        fields.SPACE_PLAIN,
        ack_in_s=_left(space.ack_at, now),
        ack_queue=_ranges(space.ack_queue),
        largest_received_age_s=_left(now, space.largest_received_time),
        received_lower=window._lower,
        received=_ranges_of(number for number in window._received if number >= window._lower),
    )


def _capture_stream(stream: QuicStream) -> image.StreamImage:
    receiver, sender = stream.receiver, stream.sender
    return _plain_image(
        image.StreamImage,
        stream,
        fields.STREAM_PLAIN,
        receiver=_plain_image(
            image.ReceiverImage,
            receiver,
            fields.RECEIVER_PLAIN,
            buffer=bytes(receiver._buffer),
            ranges=_ranges(receiver._ranges),
        ),
        sender=_plain_image(
            image.SenderImage,
            sender,
            fields.SENDER_PLAIN,
            acked=_ranges(sender._acked),
            buffer=bytes(sender._buffer),
            pending=_ranges(sender._pending),
        ),
    )


def _stream_id(stream: QuicStream) -> int:
    assert stream.stream_id is not None
    return stream.stream_id


def _capture_limit(limit: Limit) -> image.LimitImage:
    return _plain_image(image.LimitImage, limit, fields.LIMIT_PLAIN)


def _capture_connection_id(connection_id: QuicConnectionId) -> image.ConnectionIdImage:
    return _plain_image(image.ConnectionIdImage, connection_id, fields.CONNECTION_ID_PLAIN)


def _capture_path(path: QuicNetworkPath, now: float) -> image.PathImage:
    return _plain_image(
        image.PathImage,
        path,
        fields.PATH_PLAIN,
        addr=list(path.addr),
        local_challenges=list(path.local_challenges),
        peer_cid=None if path.peer_cid is None else _capture_connection_id(path.peer_cid),
        remote_challenges=list(path.remote_challenges),
        validation_deadline_in_s=_left(path.validation_deadline, now),
    )


def _capture_event(event: events.QuicEvent) -> image.EventImage:
    name = type(event).__name__
    if fields.EVENTS.get(name) is not type(event):
        raise MigrationError(f"the service did not take an event of the kind {name}, which cannot be moved")
    return image.EventImage(name=name, fields=msgspec.to_builtins(event, builtin_types=(bytes,)))


def _capture_recovery(loss: QuicPacketRecovery, now: float) -> image.RecoveryImage:
    return _plain_image(
        image.RecoveryImage,
        loss,
        fields.RECOVERY_PLAIN,
        congestion=_capture_congestion(loss._cc, now),
        last_ack_eliciting_age_s=_age(loss._time_of_last_sent_ack_eliciting_packet, now),
        rtt_first_sample_age_s=_age(loss._rtt_first_sample_time, now),
    )


def _capture_congestion(control: QuicCongestionControl, now: float) -> image.RenoImage | image.CubicImage:
    if isinstance(control, CubicCongestionControl):
        return _plain_image(
            image.CubicImage,
            control,
            fields.CUBIC_PLAIN,
            congestion_recovery_start_age_s=_age(control._congestion_recovery_start_time, now),
            epoch_age_s=_age(control._t_epoch, now),
            last_ack_age_s=_age(control.last_ack, now),
            rtt_monitor=_capture_monitor(control._rtt_monitor, now),
        )
    assert isinstance(control, RenoCongestionControl)
    return _plain_image(
        image.RenoImage,
        control,
        fields.RENO_PLAIN,
        congestion_recovery_start_age_s=_age(control._congestion_recovery_start_time, now),
        rtt_monitor=_capture_monitor(control._rtt_monitor, now),
    )


def _capture_monitor(monitor: QuicRttMonitor, now: float) -> image.RttMonitorImage:
    return _plain_image(
        image.RttMonitorImage,
        monitor,
        fields.MONITOR_PLAIN,
        sample_age_s=_age(monitor._sample_time, now),
        samples=list(monitor._samples),
    )


def _left(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else later - earlier


def _age(moment: float, now: float) -> float | None:
    """aioquic writes 0.0 for what never happened."""
    return None if moment == 0.0 else now - moment


def _ranges(ranges: RangeSet) -> image.Ranges:
    return [(item.start, item.stop) for item in ranges]


def _ranges_of(numbers: Iterable[int]) -> image.Ranges:
    made: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if made and made[-1][1] == number:
            made[-1] = (made[-1][0], number + 1)
        else:
            made.append((number, number + 1))
    return made
