"""Put an image together to a connection that goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from operator import attrgetter
from typing import Any

import msgspec
from aioquic import tls
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import QuicCongestionControl
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.connection import (
    QuicConnection,
    QuicConnectionId,
    QuicConnectionState,
    QuicNetworkPath,
)
from aioquic.quic.crypto import CIPHER_SUITES, CryptoContext, apply_key_phase
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender

from quicferry.errors import MigrationError
from quicferry.quic import image
from quicferry.quic._aioquic import state_fields as fields
from quicferry.quic._aioquic.connection import HookedConnection
from quicferry.quic._aioquic.doubt import Doubt
from quicferry.quic._aioquic.keys import restore_former, were_updated_elsewhere
from quicferry.quic._aioquic.spare import give_back
from quicferry.quic._aioquic.state import Build, extended_or_none
from quicferry.quic._aioquic.state_capture import agreement
from quicferry.quic.errors import LocalError

_ONE_RTT = tls.Epoch.ONE_RTT
#: of packets or connection IDs that an image may list one by one; what a connection keeps is far below
MOST_NUMBERS = 1 << 20


_readers: dict[type, Callable[[object], tuple[Any, ...]]] = {}  # image -> all that is put as it is


def blank(*, configuration: QuicConfiguration, build: Build) -> QuicConnection:
    """A connection of nobody, made with ``build``: all that an image needs to be put into.

    aioquic's own initialization makes the TLS context, the key objects with their log hooks and the packet
    spaces; what belongs to a handshake that is over is then discarded the way aioquic does it. It is more
    than half of the work of a restore, and needs no image.
    """
    nobody = bytes(8)
    connection = build(configuration=configuration, original_destination_connection_id=nobody)
    if connection._is_client:
        raise MigrationError("only the server's end of a connection can be restored")
    connection._version = configuration.supported_versions[0]
    connection._initialize(nobody)
    for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE):
        connection._discard_epoch(epoch)
    give_back(connection)
    return connection


def reconstruct(
    moved: image.ConnectionImage,
    *,
    configuration: QuicConfiguration,
    connection: QuicConnection,
    now: float,
    known_keys: image.KeysImage | None = None,
) -> QuicConnection:
    """Puts an image into the ``blank`` connection; it goes on at the image's packet number.

    Or into one that an older image of the same connection was put into: ``known_keys`` are those of it.
    Raises ``MigrationError`` when the configuration differs in what the peer relies on.
    """
    _check_agreement(moved, configuration)
    _put_plain(connection, moved, fields.CONNECTION_PLAIN)
    connection._host_cids = [_make_connection_id(item) for item in moved.host_cids]
    connection._peer_cid = _make_connection_id(moved.peer_cid)
    connection._peer_cid_available = [_make_connection_id(item) for item in moved.peer_cid_available]
    connection._peer_cid_sequence_numbers = _numbers(moved.peer_cid_sequence_numbers)
    _put_tls(connection, moved)
    if moved.keys != known_keys:  # to make the ciphers is the largest part of it
        _put_keys(connection, moved.keys)
    connection._state = QuicConnectionState.CONNECTED
    connection._handshake_complete = True
    connection._handshake_confirmed = True
    connection._version_negotiated_compatible = True

    connection._network_paths = [_make_path(path, now) for path in moved.network_paths]
    _put_space(connection._spaces[_ONE_RTT], moved.space, now)
    _put_recovery(connection._loss, moved.recovery, now)
    _put_plain(connection._local_max_data, moved.local_max_data, fields.LIMIT_PLAIN)
    _put_plain(connection._local_max_streams_bidi, moved.local_max_streams_bidi, fields.LIMIT_PLAIN)
    _put_plain(connection._local_max_streams_uni, moved.local_max_streams_uni, fields.LIMIT_PLAIN)
    _put_streams(connection, moved)
    _put_doubt(connection, moved, now)

    connection._close_at = now + moved.close_in_s
    connection._datagrams_pending = deque(moved.datagrams_pending)
    connection._events = deque(_make_event(event) for event in moved.events)
    connection._ping_pending = list(moved.ping_pending)
    connection._retire_connection_ids = list(moved.retire_connection_ids)
    setattr(connection, fields.SKIPPED, moved.skipped_packet_numbers)
    _put_extension(connection, moved.extension)
    return connection


def _check_agreement(moved: image.ConnectionImage, configuration: QuicConfiguration) -> None:
    ours = agreement(configuration)
    for name in image.AgreementImage.__struct_fields__:
        there, here = getattr(moved.agreement, name), getattr(ours, name)
        if there != here:
            raise MigrationError(
                f"the configurations differ in {name}: {there!r} at the source, {here!r} here",
                hint="give source and destination the same QUIC configuration",
            )
    if moved.version not in configuration.supported_versions:
        raise MigrationError(f"QUIC version 0x{moved.version:08x} is not supported here")


def _put_plain(target: object, moved: image.Image, names: dict[str, str]) -> None:
    read = _readers.get(type(moved))
    if read is None:  # one kind of image has one table
        read = _readers[type(moved)] = attrgetter(*names)
    for attribute, value in zip(names.values(), read(moved), strict=True):
        setattr(target, attribute, value)


def _put_tls(connection: QuicConnection, moved: image.ConnectionImage) -> None:
    context = connection.tls
    context.state = tls.State.SERVER_POST_HANDSHAKE
    context.alpn_negotiated = moved.tls.alpn_negotiated
    context.client_random = moved.tls.client_random
    context.early_data_accepted = moved.tls.early_data_accepted
    context._receive_buffer = moved.tls.receive_buffer
    context._session_resumed = moved.tls.session_resumed
    # a later hop takes the secrets of generation 0 from here
    context._enc_key = moved.keys.send_first_secret
    context._dec_key = moved.keys.recv_first_secret


def _put_keys(connection: QuicConnection, keys: image.KeysImage) -> None:
    suite: tls.CipherSuite | None
    try:
        suite = tls.CipherSuite(keys.cipher_suite)
    except ValueError:
        suite = None
    if suite is None or suite not in CIPHER_SUITES:  # TLS has names for suites that QUIC has no use for
        raise MigrationError(f"cipher suite 0x{keys.cipher_suite:04x} is unknown here")
    pair = connection._cryptos[_ONE_RTT]
    for context, first, current, phase in (
        (pair.send, keys.send_first_secret, keys.send_secret, keys.send_key_phase),
        (pair.recv, keys.recv_first_secret, keys.recv_secret, keys.recv_key_phase),
    ):
        context.setup(cipher_suite=suite, secret=first, version=keys.version)
        if current != first:
            later = CryptoContext(key_phase=phase)
            later.setup(cipher_suite=suite, secret=current, version=keys.version)
            apply_key_phase(context, later, trigger="restore")  # header protection stays that of generation 0
    waits = keys.send_secret != keys.send_first_secret and were_updated_elsewhere(pair)
    pair._update_key_requested = keys.update_requested and not waits
    connection._key_update_pending = keys.update_requested and waits
    restore_former(pair, keys.recv_former_secret)


def _put_space(space: QuicPacketSpace, moved: image.SpaceImage, now: float) -> None:
    _put_plain(space, moved, fields.SPACE_PLAIN)
    space.ack_at = None if moved.ack_in_s is None else now + moved.ack_in_s
    space.ack_queue = _make_ranges(moved.ack_queue)
    space.largest_received_time = (
        None if moved.largest_received_age_s is None else now - moved.largest_received_age_s
    )
    space.received_packets._lower = moved.received_lower
    space.received_packets._received = _numbers(moved.received)


def _make_stream(moved: image.StreamImage) -> QuicStream:
    stream = QuicStream(stream_id=moved.stream_id)
    _put_plain(stream, moved, fields.STREAM_PLAIN)
    receiver: QuicStreamReceiver = stream.receiver
    _put_plain(receiver, moved.receiver, fields.RECEIVER_PLAIN)
    receiver._buffer = bytearray(moved.receiver.buffer)
    receiver._ranges = _make_ranges(moved.receiver.ranges)
    sender: QuicStreamSender = stream.sender
    _put_plain(sender, moved.sender, fields.SENDER_PLAIN)
    sender._acked = _make_ranges(moved.sender.acked)
    sender._buffer = bytearray(moved.sender.buffer)
    sender._pending = _make_ranges(moved.sender.pending)
    return stream


def _put_streams(connection: QuicConnection, moved: image.ConnectionImage) -> None:
    streams: dict[int, QuicStream] = {}
    for item in moved.streams:
        if item.stream_id is None:
            raise MigrationError("a stream of the image has no ID")
        streams[item.stream_id] = _make_stream(item)
    try:
        connection._streams_queue = [streams[number] for number in moved.streams_queue]
        connection._streams_blocked_bidi = [streams[number] for number in moved.streams_blocked_bidi]
        connection._streams_blocked_uni = [streams[number] for number in moved.streams_blocked_uni]
    except KeyError as error:
        raise MigrationError(f"the image names stream {error.args[0]}, but does not hold it") from None
    connection._streams = streams
    connection._crypto_streams[_ONE_RTT] = _make_stream(moved.crypto_stream)


def _put_doubt(connection: QuicConnection, moved: image.ConnectionImage, now: float) -> None:
    if isinstance(connection, HookedConnection):
        connection._doubt = None
    if not moved.in_doubt:
        return
    space = connection._spaces[_ONE_RTT]
    packets = []
    for item in moved.in_doubt:
        handlers: list[tuple[Any, Any]] = [
            (connection._on_ack_delivery, (space, highest)) for highest in item.acknowledges
        ]
        for data in item.data:
            if data.stream_id not in connection._streams:
                raise MigrationError(f"stream {data.stream_id} is in doubt, but the image does not hold it")
            sender = connection._streams[data.stream_id].sender
            if not sender._buffer_start <= data.start <= data.stop <= sender._buffer_stop:
                raise MigrationError(f"data of stream {data.stream_id} are in doubt that are not there")
            handlers.append((sender.on_data_delivery, (data.start, data.stop, data.fin)))
        packets.append(
            QuicSentPacket(
                epoch=_ONE_RTT,
                in_flight=True,
                is_ack_eliciting=True,
                is_crypto_packet=False,
                packet_number=item.number,
                packet_type=QuicPacketType.ONE_RTT,
                sent_time=now - item.sent_age_s,
                delivery_handlers=handlers,
            )
        )
    recovery = moved.recovery
    rtt_s = recovery.rtt_smoothed if recovery.rtt_initialized else recovery.rtt_initial
    doubt = Doubt(packets, begins_at=moved.packet_number, rtt_s=rtt_s)
    if isinstance(connection, HookedConnection):
        connection._doubt = doubt
        if extended_or_none(connection) is None:
            connection._send_probe()  # nobody else asks the peer what it has
    else:
        doubt.give_up(now)


def _make_connection_id(moved: image.ConnectionIdImage) -> QuicConnectionId:
    # aioquic has None for the token of an ID that came without one, whatever its annotation says
    made = QuicConnectionId(cid=moved.cid, sequence_number=0)
    _put_plain(made, moved, fields.CONNECTION_ID_PLAIN)
    return made


def _make_path(moved: image.PathImage, now: float) -> QuicNetworkPath:
    path = QuicNetworkPath(tuple(moved.addr))
    _put_plain(path, moved, fields.PATH_PLAIN)
    path.local_challenges.extend(moved.local_challenges)
    path.remote_challenges.extend(moved.remote_challenges)
    path.peer_cid = None if moved.peer_cid is None else _make_connection_id(moved.peer_cid)
    left = moved.validation_deadline_in_s
    path.validation_deadline = None if left is None else now + left
    return path


def _make_event(moved: image.EventImage) -> events.QuicEvent:
    kind = fields.EVENTS.get(moved.name)
    if kind is None:
        raise MigrationError(f"the image holds an event of the unknown kind {moved.name}")
    try:
        return msgspec.convert(moved.fields, kind)
    except msgspec.ValidationError:
        raise MigrationError(f"an event of the kind {moved.name} has other fields here") from None


def _put_recovery(loss: QuicPacketRecovery, moved: image.RecoveryImage, now: float) -> None:
    _put_plain(loss, moved, fields.RECOVERY_PLAIN)
    loss.handshake_confirmed = True
    loss._time_of_last_sent_ack_eliciting_packet = _since(moved.last_ack_eliciting_age_s, now)
    loss._rtt_first_sample_time = _since(moved.rtt_first_sample_age_s, now)
    _put_congestion(loss._cc, moved.congestion, now)
    # The pacer is made anew, with a full bucket: it was idle.
    loss._pacer.evaluation_time = now
    if loss._rtt_initialized:
        loss._pacer.update_rate(congestion_window=loss._cc.congestion_window, smoothed_rtt=loss._rtt_smoothed)
        loss._pacer.bucket_time = loss._pacer.bucket_max


def _put_congestion(
    control: QuicCongestionControl, moved: image.RenoImage | image.CubicImage, now: float
) -> None:
    if isinstance(control, CubicCongestionControl) and isinstance(moved, image.CubicImage):
        _put_plain(control, moved, fields.CUBIC_PLAIN)
        control._t_epoch = _since(moved.epoch_age_s, now)
        control.last_ack = _since(moved.last_ack_age_s, now)
    elif isinstance(control, RenoCongestionControl) and isinstance(moved, image.RenoImage):
        _put_plain(control, moved, fields.RENO_PLAIN)
    else:
        raise MigrationError("the image was made with another congestion controller")
    control._congestion_recovery_start_time = _since(moved.congestion_recovery_start_age_s, now)
    if control.congestion_window <= 0:
        raise MigrationError(f"the image has a congestion window of {control.congestion_window} bytes")
    monitor = control._rtt_monitor
    _put_plain(monitor, moved.rtt_monitor, fields.MONITOR_PLAIN)
    monitor._sample_time = _since(moved.rtt_monitor.sample_age_s, now)
    if len(moved.rtt_monitor.samples) != monitor._size:
        raise MigrationError("the image has another number of RTT samples than is kept here")
    monitor._samples = list(moved.rtt_monitor.samples)


def _put_extension(connection: QuicConnection, state: dict[str, Any] | None) -> None:
    extended = extended_or_none(connection)
    if (extended is None) != (state is None):
        raise MigrationError("only one of the source and this process has the migration extension")
    if extended is None or state is None:
        return
    try:
        extended.restore_extension_state(state)
    except (LocalError, LookupError, TypeError, ValueError) as error:
        raise MigrationError(f"the extension's state does not fit: {error}") from error


def _since(age: float | None, now: float) -> float:
    return 0.0 if age is None else now - age


def _make_ranges(moved: image.Ranges) -> RangeSet:
    made = RangeSet()
    for start, stop in moved:
        if stop <= start:
            raise MigrationError("the image holds an empty range")
        made.add(start, stop)
    return made


def _numbers(moved: image.Ranges) -> set[int]:
    count = sum(stop - start for start, stop in moved)
    if count > MOST_NUMBERS:
        raise MigrationError(f"the image has ranges of {count} numbers, more than {MOST_NUMBERS}")
    return {number for start, stop in moved for number in range(start, stop)}
