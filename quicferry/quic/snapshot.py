"""Hand a live connection over to another process.

    freeze(connection, now)                            at the source: nothing can be sent any more
    data = take_snapshot(connection, now, epoch=7)     the source persists its fence before data leaves
    connection = restore_snapshot(data, ...)           at the destination
    thaw(connection, now)                              at the source instead, after a proven abort

The danger is one AEAD nonce used for two packets (RFC 9001 §5.3): it gives away plaintext and the
authentication key. Nonces come from packet numbers, so the packet numbers are shared out. With P the
source's next number at the freeze, the destination begins at P + :data:`PACKET_NUMBER_LEASE`, the
thawed source at P + :data:`ABORT_GAP`, and the destination sends nothing from there on until it is told
that the commit is recorded (:func:`record_commit`). A snapshot may be restored once: a second attempt
takes a thaw, and a new freeze with a new epoch. A connection that is frozen again is its host's own: to
move what is not committed is for nobody.

A snapshot holds traffic secrets. It is never to be logged, and to be written with mode 0600 only.
The format is described in docs/adr/0005-hand-off-format.md.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import TypeVar

import msgspec
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from quicferry.errors import UNDECODABLE, MigrationError
from quicferry.quic import image
from quicferry.quic._aioquic import lease, state
from quicferry.quic._aioquic.lease import ABORT_GAP, PACKET_NUMBER_LEASE
from quicferry.quic._aioquic.state import Build, Extended
from quicferry.quic._aioquic.state_capture import capture
from quicferry.quic._aioquic.state_restore import blank, reconstruct

__all__ = [
    "ABORT_GAP",
    "FORMAT_VERSION",
    "PACKET_NUMBER_LEASE",
    "Build",
    "Bundle",
    "Extended",
    "blank",
    "connection_ids",
    "freeze",
    "is_frozen",
    "pack_bundle",
    "record_commit",
    "restore_snapshot",
    "take_snapshot",
    "thaw",
    "unpack_bundle",
]

FORMAT_VERSION = 3
#: aioquic writes packet numbers in two bytes; the peer must not be further behind (RFC 9000 §17.1)
_MAX_AHEAD = 1 << 15
#: packets that may be sent and lost in a row besides: a window of ours, and acknowledgements of a window
_FLIGHT_MARGIN = 8192

_SNAPSHOT_MAGIC = b"QFsn"
_BUNDLE_MAGIC = b"QFbu"
#: magic, version, reserved, length of the payload, SHA-256 of all before it and of the payload
_HEADER = struct.Struct("!4sHHQ")
_DIGEST_BYTES = hashlib.sha256().digest_size


class _Snapshot(image.Image, frozen=True):
    epoch: int
    connection: image.ConnectionImage


class Bundle(image.Image, frozen=True):
    """All that moves in one hand-off: snapshots of connections and the state of the service."""

    epoch: int
    snapshots: list[bytes]
    service: bytes


_Content = TypeVar("_Content")
_snapshot_decoder = msgspec.msgpack.Decoder(_Snapshot)
_bundle_decoder = msgspec.msgpack.Decoder(Bundle)
_encoder = msgspec.msgpack.Encoder()


def freeze(connection: QuicConnection, now: float) -> None:
    """Stop the connection: what is in flight is in doubt, and nothing is sent any more.

    From now on all methods that send or change state raise ``FencedError``. ``now`` is in seconds, on
    the connection's clock. Raises ``MigrationError`` when the connection cannot be moved (not open, not
    confirmed, the client's end, moved too often without an acknowledgement).
    """
    if state.is_sealed(connection):
        raise MigrationError("the connection is frozen already")
    reason = state.why_not_movable(connection)
    if reason is not None:
        raise MigrationError(f"cannot freeze: {reason}")
    reason = _why_too_far_ahead(connection)
    if reason is not None:
        raise MigrationError(
            f"cannot freeze: {reason}", hint="let the peer acknowledge something between two moves"
        )
    lease.release_lease(connection)
    state.stop_flight(connection, now)
    state.seal(connection, now)


def why_not_frozen(connection: QuicConnection) -> str | None:
    """The reason why ``freeze`` would refuse the connection, or None."""
    return state.why_not_movable(connection) or _why_too_far_ahead(connection)


def _why_too_far_ahead(connection: QuicConnection) -> str | None:
    skipped = lease.unacknowledged_skips(connection)
    if skipped + ABORT_GAP + PACKET_NUMBER_LEASE + _FLIGHT_MARGIN < _MAX_AHEAD:
        return None
    return (
        f"{skipped} packet numbers were left out since the peer last acknowledged one, "
        "so that it could not decode those of the destination"
    )


def is_frozen(connection: QuicConnection) -> bool:
    """Whether the connection is frozen."""
    return state.is_sealed(connection)


def take_snapshot(connection: QuicConnection, now: float, *, epoch: int) -> bytes:
    """The frozen connection as bytes, for the move number ``epoch``.

    Raises ``MigrationError`` when the connection is not frozen or holds what cannot be moved.
    """
    if not state.is_sealed(connection):
        raise MigrationError("only a frozen connection can be moved", hint="call freeze first")
    return seal_snapshot(capture(connection, now), epoch)


def restore_snapshot(
    data: bytes,
    *,
    configuration: QuicConfiguration,
    build: Build,
    now: float,
    epoch: int | None = None,
    into: QuicConnection | None = None,
) -> QuicConnection:
    """The connection of a snapshot, ready to go on in this process.

    ``build`` makes the empty object: a class like ``QuicConnection``, or a function with its keyword
    arguments ``configuration`` and ``original_destination_connection_id``. ``into`` is what ``blank`` made
    of the same two before there was a hurry; it can be used once. With ``epoch``, a snapshot of another
    move is refused. Raises ``MigrationError`` when the data are damaged, of an unknown
    version, or do not fit the configuration.
    """
    moved = open_snapshot(data, epoch)
    empty = blank(configuration=configuration, build=build) if into is None else into
    connection = reconstruct(moved, configuration=configuration, connection=empty, now=now)
    bind_share(connection, moved.packet_number)
    return connection


def seal_snapshot(moved: image.ConnectionImage, epoch: int) -> bytes:
    """An image as bytes, for the move number ``epoch``."""
    return _seal_up(_SNAPSHOT_MAGIC, _Snapshot(epoch=epoch, connection=moved))


def open_snapshot(data: bytes, epoch: int | None) -> image.ConnectionImage:
    """The image of a snapshot. Raises ``MigrationError`` when it is damaged, or another move's."""
    snapshot = _open_up(_SNAPSHOT_MAGIC, data, _snapshot_decoder)
    if epoch is not None and snapshot.epoch != epoch:
        raise MigrationError(f"the snapshot belongs to move {snapshot.epoch}, not to move {epoch}")
    return snapshot.connection


def release_share(connection: QuicConnection) -> None:
    """Undo ``bind_share``, before a newer image is put into the same object."""
    lease.release_lease(connection)


def bind_share(connection: QuicConnection, frozen_at: int) -> None:
    """At the destination: the packet numbers of the lease behind the number at the freeze, and no others."""
    lease.skip_packet_numbers(connection, PACKET_NUMBER_LEASE)
    lease.bind_lease(connection, frozen_at + ABORT_GAP)


def record_commit(connection: QuicConnection) -> None:
    """At the destination: it is recorded that the source never goes on. All packet numbers are free."""
    lease.release_lease(connection)


def thaw(connection: QuicConnection, now: float) -> None:
    """Let a frozen connection go on where it is: the move is off.

    Only after a *proven* abort: the destination has not got the snapshot, or was ended before it heard of
    the commit. Raises ``MigrationError`` when the connection is not frozen.
    """
    if not state.is_sealed(connection):
        raise MigrationError("the connection is not frozen")
    state.unseal(connection, now)
    state.call_back_flight(connection, now)
    lease.skip_packet_numbers(connection, ABORT_GAP)


def connection_ids(connection: QuicConnection) -> list[bytes]:
    """The connection IDs in datagrams for this connection: where an endpoint routes them by."""
    return state.host_connection_ids(connection)


def pack_bundle(epoch: int, snapshots: list[bytes], service: bytes) -> bytes:
    """All snapshots and the state of the service (any bytes) as one piece."""
    return _seal_up(_BUNDLE_MAGIC, Bundle(epoch=epoch, snapshots=snapshots, service=service))


def unpack_bundle(data: bytes) -> Bundle:
    """The content of a bundle. Raises ``MigrationError`` when it is damaged or of an unknown version."""
    return _open_up(_BUNDLE_MAGIC, data, _bundle_decoder)


def _seal_up(magic: bytes, content: image.Image) -> bytes:
    try:
        payload = _encoder.encode(content)
    except (TypeError, OverflowError, ValueError) as error:
        raise MigrationError(f"the state cannot be encoded: {error}") from None
    header = _HEADER.pack(magic, FORMAT_VERSION, 0, len(payload))
    return header + hashlib.sha256(header + payload).digest() + payload


def _open_up(magic: bytes, data: bytes, decoder: msgspec.msgpack.Decoder[_Content]) -> _Content:
    start = _HEADER.size + _DIGEST_BYTES
    if len(data) < start:
        raise MigrationError("the hand-off data are truncated")
    header, digest = data[: _HEADER.size], data[_HEADER.size : start]
    found, version, _, length = _HEADER.unpack(header)
    if found != magic:
        raise MigrationError("these are no hand-off data of the kind that is expected here")
    if version != FORMAT_VERSION:
        raise MigrationError(
            f"the hand-off format has version {version}, this program knows version {FORMAT_VERSION}",
            hint="run the same version of quicferry at both edges",
        )
    payload = memoryview(data)[start:]
    if len(payload) != length:
        raise MigrationError(f"the hand-off data have {len(payload)} bytes instead of {length}")
    if not hmac.compare_digest(hashlib.sha256(header + payload).digest(), digest):
        raise MigrationError("the hand-off data are damaged: their digest does not match")
    try:
        return decoder.decode(payload)
    except UNDECODABLE as error:
        raise MigrationError(f"the hand-off data cannot be read: {error}") from None
