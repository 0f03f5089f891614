"""Take a live connection apart into an image, and put an image together again.

This is the seam of the hand-off: it knows where aioquic keeps each part of a connection. Which field
is moved, rebuilt or dropped is declared in ``state_fields``, and a contract test holds the lists
against the objects, so that a field that a new aioquic adds cannot be forgotten in silence.

No clock: ``now`` is what the caller's connection runs on, in seconds. Images carry ages and times left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, NoReturn, Protocol, TypeVar, runtime_checkable

import msgspec
from aioquic import tls
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.base import QuicCongestionControl, QuicRttMonitor
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.connection import (
    Limit,
    QuicConnection,
    QuicConnectionId,
    QuicConnectionState,
    QuicNetworkPath,
)
from aioquic.quic.crypto import CryptoContext, apply_key_phase
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import QuicPacketRecovery, QuicPacketSpace
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender

from quicferry.errors import FencedError, MigrationError
from quicferry.quic import image
from quicferry.quic._aioquic import state_fields as fields
from quicferry.quic._aioquic.connection import HookedConnection
from quicferry.quic.errors import LocalError

_ONE_RTT = tls.Epoch.ONE_RTT
_Image = TypeVar("_Image", bound=image.Image)


class Build(Protocol):
    """Makes the empty connection object; ``QuicConnection`` and its subclasses are one themselves."""

    def __call__(
        self, *, configuration: QuicConfiguration, original_destination_connection_id: bytes
    ) -> QuicConnection: ...


@runtime_checkable
class Extended(Protocol):
    """A connection with state of its own besides aioquic's, as plain values."""

    def extension_state(self) -> dict[str, Any]:
        """The state, made of what MessagePack knows; no times of the local clock."""
        ...

    def restore_extension_state(self, state: dict[str, Any]) -> None:
        """Take over what ``extension_state`` gave in another process."""
        ...


# --- stopping and starting -------------------------------------------------------------------------


def why_not_movable(connection: QuicConnection) -> str | None:
    """The reason why the connection cannot be moved now, or None when it can."""
    if connection._is_client:
        return "only the server's end of a connection can be moved"
    if connection._state is not QuicConnectionState.CONNECTED or connection._close_pending:
        return "the connection is not open"
    if connection._close_event is not None or connection._close_at is None:
        return "the connection is about to close"
    if not connection._handshake_confirmed:
        return "the handshake is not confirmed"
    if type(connection._loss._cc) not in (RenoCongestionControl, CubicCongestionControl):
        return f"the congestion controller {type(connection._loss._cc).__name__} is unknown"
    if connection.tls._peer_certificate is not None:
        return "a client certificate does not move"
    return None


def call_back_flight(connection: QuicConnection, now: float) -> None:
    """Declare all packets in flight lost, so that what they carried waits to be sent again.

    It is no congestion event: the packets are not lost, we only cannot follow them any more. The
    datagrams themselves go on to the peer, which may acknowledge them; nobody minds.
    """
    loss = connection._loss
    space = connection._spaces[_ONE_RTT]
    flight = list(space.sent_packets.values())
    recently = now - loss.get_probe_timeout()
    fresh_ack = any(_carries_ack(packet) and (packet.sent_time or 0.0) > recently for packet in flight)
    if fresh_ack and space.ack_at is None:
        # The acknowledgement may be lost with its packet, and aioquic sends the next one only when it
        # is asked to by the next packet: without this, the peer finds out by a probe timeout.
        space.ack_at = now
    loss._on_packets_lost(congestion_event=False, now=now, packets=flight, space=space)
    space.loss_time = None
    connection._loss_at = None
    connection._pacing_at = None


def _carries_ack(packet: QuicSentPacket) -> bool:
    return any(
        getattr(handler, "__name__", "") == "_on_ack_delivery" for handler, _ in packet.delivery_handlers
    )


def seal(connection: QuicConnection, now: float) -> None:
    """Make sending impossible: the keys refuse to encrypt, the methods that change state refuse to run.

    The refusals are attributes of the object that hide the methods of its class.
    """

    def refuse(*_: object, **__: object) -> NoReturn:
        raise FencedError(
            "this connection is frozen: its keys belong to another host now",
            hint="drop or forward what arrives for it; thaw it only after a proven abort",
        )

    for name in fields.SEALED_METHODS:
        setattr(connection, name, refuse)
    connection._cryptos[_ONE_RTT].send.encrypt_packet = refuse  # type: ignore[method-assign]  # that is the seal
    connection.get_timer = lambda: None  # type: ignore[method-assign]  # a frozen connection waits for nothing
    setattr(connection, fields.SEAL, now)


def is_sealed(connection: QuicConnection) -> bool:
    """Whether :func:`seal` is in force."""
    return fields.SEAL in vars(connection)


def unseal(connection: QuicConnection, now: float) -> None:
    """Take the seal off. The time under it does not count against the connection's own deadlines."""
    frozen_for = now - vars(connection)[fields.SEAL]
    for name in (*fields.SEALED_METHODS, "get_timer", fields.SEAL):
        delattr(connection, name)
    del connection._cryptos[_ONE_RTT].send.encrypt_packet
    assert connection._close_at is not None
    connection._close_at += frozen_for
    for path in connection._network_paths:
        if path.validation_deadline is not None:
            path.validation_deadline += frozen_for


def next_packet_number(connection: QuicConnection) -> int:
    """The number of the next packet."""
    return connection._packet_number


def largest_acknowledged(connection: QuicConnection) -> int:
    """The largest packet number that the peer acknowledged."""
    return connection._spaces[_ONE_RTT].largest_acked_packet


def skip_packet_numbers(connection: QuicConnection, count: int) -> None:
    """Leave out packet numbers; a peer cannot tell this from loss."""
    connection._packet_number += count


def bound_congestion_window(connection: QuicConnection, packets: int) -> None:
    """Let at most that many full packets be in flight until the window grows by acknowledgements."""
    control = connection._loss._cc
    control.congestion_window = min(control.congestion_window, packets * connection._max_datagram_size)


def host_connection_ids(connection: QuicConnection) -> list[bytes]:
    """The connection IDs by which datagrams for this connection are known."""
    return [connection_id.cid for connection_id in connection._host_cids]


# --- taking apart ----------------------------------------------------------------------------------


def capture(connection: QuicConnection, now: float) -> image.ConnectionImage:
    """The image of a connection that nothing is in flight of."""
    assert not connection._spaces[_ONE_RTT].sent_packets
    close_at = connection._close_at
    assert close_at is not None
    extended = _extended(connection)
    return _plain_image(
        image.ConnectionImage,
        connection,
        fields.CONNECTION_PLAIN,
        agreement=_agreement(connection._configuration),
        close_in_s=close_at - now,
        crypto_stream=_capture_stream(connection._crypto_streams[_ONE_RTT]),
        datagrams_pending=list(connection._datagrams_pending),
        events=[_capture_event(event) for event in connection._events],
        extension=None if extended is None else extended.extension_state(),
        host_cids=[_capture_connection_id(item) for item in connection._host_cids],
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
    values = {field: getattr(source, attribute) for field, attribute in names.items()}
    return kind(**values, **other)


def _agreement(configuration: QuicConfiguration) -> image.AgreementImage:
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
        update_requested=pair._update_key_requested,
    )


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


# --- putting together ------------------------------------------------------------------------------


def reconstruct(
    moved: image.ConnectionImage, *, configuration: QuicConfiguration, build: Build, now: float
) -> QuicConnection:
    """The connection of an image, made with ``build``; it goes on at the image's packet number.

    Raises ``MigrationError`` when the configuration differs in what the peer relies on.
    """
    _check_agreement(moved, configuration)
    connection = build(
        configuration=configuration,
        original_destination_connection_id=moved.original_destination_connection_id,
    )
    if connection._is_client:
        raise MigrationError("only the server's end of a connection can be restored")
    _put_plain(connection, moved, fields.CONNECTION_PLAIN)
    connection._host_cids = [_make_connection_id(item) for item in moved.host_cids]
    connection._peer_cid = _make_connection_id(moved.peer_cid)
    connection._peer_cid_available = [_make_connection_id(item) for item in moved.peer_cid_available]
    connection._peer_cid_sequence_numbers = _numbers(moved.peer_cid_sequence_numbers)

    # aioquic's own initialization makes the TLS context, the key objects with their log hooks and the
    # packet spaces; what belongs to a handshake that is over is then discarded the way aioquic does it.
    connection._initialize(moved.original_destination_connection_id)
    for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE):
        connection._discard_epoch(epoch)
    _put_tls(connection, moved)
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

    connection._close_at = now + moved.close_in_s
    connection._datagrams_pending = deque(moved.datagrams_pending)
    connection._events = deque(_make_event(event) for event in moved.events)
    connection._ping_pending = list(moved.ping_pending)
    connection._retire_connection_ids = list(moved.retire_connection_ids)
    _put_extension(connection, moved.extension)
    return connection


def _check_agreement(moved: image.ConnectionImage, configuration: QuicConfiguration) -> None:
    ours = _agreement(configuration)
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
    for field, attribute in names.items():
        setattr(target, attribute, getattr(moved, field))


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
    try:
        suite = tls.CipherSuite(keys.cipher_suite)
    except ValueError:
        raise MigrationError(f"cipher suite 0x{keys.cipher_suite:04x} is unknown here") from None
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
    pair._update_key_requested = keys.update_requested


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
    monitor = control._rtt_monitor
    _put_plain(monitor, moved.rtt_monitor, fields.MONITOR_PLAIN)
    monitor._sample_time = _since(moved.rtt_monitor.sample_age_s, now)
    if len(moved.rtt_monitor.samples) != monitor._size:
        raise MigrationError("the image has another number of RTT samples than is kept here")
    monitor._samples = list(moved.rtt_monitor.samples)


def _extended(connection: QuicConnection) -> Extended | None:
    """The connection as one with the extension; None when it was made without."""
    if isinstance(connection, HookedConnection) and connection._ferry is None:
        return None
    return connection if isinstance(connection, Extended) else None


def _put_extension(connection: QuicConnection, state: dict[str, Any] | None) -> None:
    extended = _extended(connection)
    if (extended is None) != (state is None):
        raise MigrationError("only one of the source and this process has the migration extension")
    if extended is None or state is None:
        return
    try:
        extended.restore_extension_state(state)
    except (LocalError, LookupError, TypeError, ValueError) as error:
        raise MigrationError(f"the extension's state does not fit: {error}") from error


# --- small things ----------------------------------------------------------------------------------


def _left(later: float | None, earlier: float | None) -> float | None:
    return None if later is None or earlier is None else later - earlier


def _age(moment: float, now: float) -> float | None:
    """aioquic writes 0.0 for what never happened."""
    return None if moment == 0.0 else now - moment


def _since(age: float | None, now: float) -> float:
    return 0.0 if age is None else now - age


def _ranges(ranges: RangeSet) -> image.Ranges:
    return [(item.start, item.stop) for item in ranges]


def _make_ranges(moved: image.Ranges) -> RangeSet:
    made = RangeSet()
    for start, stop in moved:
        if stop <= start:
            raise MigrationError("the image holds an empty range")
        made.add(start, stop)
    return made


def _ranges_of(numbers: Iterable[int]) -> image.Ranges:
    made: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if made and made[-1][1] == number:
            made[-1] = (made[-1][0], number + 1)
        else:
            made.append((number, number + 1))
    return made


def _numbers(moved: image.Ranges) -> set[int]:
    return {number for start, stop in moved for number in range(start, stop)}
