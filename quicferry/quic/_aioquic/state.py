"""Stop a live connection, make sure that it stays stopped, and start it again.

With ``state_capture`` and ``state_restore`` this is the seam of the hand-off: the three know where aioquic
keeps each part of a connection. No clock: ``now`` is what the connection runs on, in seconds.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn, Protocol, cast, runtime_checkable

from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.congestion.reno import RenoCongestionControl
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet_builder import QuicSentPacket

from quicferry.errors import FencedError
from quicferry.quic._aioquic import state_fields as fields
from quicferry.quic._aioquic.connection import HookedConnection
from quicferry.quic._aioquic.doubt import doubt_flight, is_acknowledgement

_ONE_RTT = tls.Epoch.ONE_RTT


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


_kinds: dict[type, bool] = {}  # class of connections -> whether they are ``Extended``


def extended_or_none(connection: QuicConnection) -> Extended | None:
    """The connection as one with the extension; None when it was made without."""
    if isinstance(connection, HookedConnection) and connection._ferry is None:
        return None
    kind = type(connection)
    if kind not in _kinds:  # to look the methods of a protocol up takes as long as to take a stream apart
        _kinds[kind] = isinstance(connection, Extended)
    return cast(Extended, connection) if _kinds[kind] else None


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


def stop_flight(connection: QuicConnection, now: float) -> None:
    """What is in flight is in doubt; on a connection without our hooks, it waits to be sent again.

    It is no congestion event: the datagrams themselves go on to the peer, which may acknowledge them.
    """
    loss = connection._loss
    space = connection._spaces[_ONE_RTT]
    flight = list(space.sent_packets.values())
    if now < ack_fresh_until(connection) and space.ack_at is None:
        # The acknowledgement may be lost with its packet, and aioquic sends the next one only when it
        # is asked to by the next packet: without this, the peer finds out by a probe timeout.
        space.ack_at = now
    if isinstance(connection, HookedConnection):
        doubt_flight(connection, now)
    else:
        loss._on_packets_lost(congestion_event=False, now=now, packets=flight, space=space)
    space.loss_time = None
    connection._loss_at = None
    connection._pacing_at = None


def call_back_flight(connection: QuicConnection, now: float) -> None:
    """What is in doubt waits to be sent again: the connection goes on where it was."""
    if isinstance(connection, HookedConnection) and connection._doubt is not None:
        connection._doubt.give_up(now)
        connection._doubt = None


def ack_fresh_until(connection: QuicConnection) -> float:
    """Until when an acknowledgement may still be on its way, a PTO after the last left; -inf: none is.

    On the connection's clock, in seconds, and as long as nothing changes the connection. A freeze before that
    has it given again, as it may be lost with its packet.
    """
    sent = connection._spaces[_ONE_RTT].sent_packets
    left = [packet.sent_time or 0.0 for packet in sent.values() if _carries_ack(packet)]
    return max(left) + connection._loss.get_probe_timeout() if left else -math.inf


def _carries_ack(packet: QuicSentPacket) -> bool:
    return any(is_acknowledgement(handler) for handler, _ in packet.delivery_handlers)


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
    for name in fields.SILENT_METHODS:
        setattr(connection, name, lambda: None)
    setattr(connection, fields.SEAL, now)


def is_sealed(connection: QuicConnection) -> bool:
    """Whether :func:`seal` is in force."""
    return fields.SEAL in vars(connection)


def unseal(connection: QuicConnection, now: float) -> None:
    """Take the seal off. The time under it does not count against the connection's own deadlines."""
    frozen_for = now - vars(connection)[fields.SEAL]
    for name in (*fields.SEALED_METHODS, *fields.SILENT_METHODS, fields.SEAL):
        delattr(connection, name)
    del connection._cryptos[_ONE_RTT].send.encrypt_packet
    assert connection._close_at is not None
    connection._close_at += frozen_for
    for path in connection._network_paths:
        if path.validation_deadline is not None:
            path.validation_deadline += frozen_for


def host_connection_ids(connection: QuicConnection) -> list[bytes]:
    """The connection IDs by which datagrams for this connection are known."""
    return [connection_id.cid for connection_id in connection._host_cids]
