"""Connections at rest: nothing is on its way, and only time passes.

What such a connection is can be written down while its server goes on serving. As long as nothing is called
that changes it, a copy of it elsewhere differs in nothing but how much time has passed.
"""

from __future__ import annotations

from aioquic import tls
from aioquic.quic.congestion.cubic import CubicCongestionControl
from aioquic.quic.connection import QuicConnection

from quicferry.quic._aioquic import state_fields as fields
from quicferry.quic._aioquic.connection import HookedConnection
from quicferry.quic._aioquic.state import why_not_movable

_ONE_RTT = tls.Epoch.ONE_RTT
_NEVER = 0.0  # aioquic writes so for a moment that has not come


def changes(connection: QuicConnection) -> int | None:
    """How many calls may have changed the connection; None where nobody counts them."""
    return connection.change_count if isinstance(connection, HookedConnection) else None


def next_number(connection: QuicConnection) -> int:
    """The packet number that the connection would send with next."""
    return connection._packet_number


def is_at_rest(connection: QuicConnection) -> bool:
    """Whether a copy of it stays exact until the next call that changes it, but for acknowledgements.

    Not while packets are on their way or in doubt, an acknowledgement or events wait, or it is bound to what
    an earlier move left. What carried nothing but an acknowledgement is never acknowledged itself: see
    ``state.ack_fresh_until``.
    """
    if not isinstance(connection, HookedConnection) or why_not_movable(connection) is not None:
        return False
    ferry, own, space = connection._ferry, vars(connection), connection._spaces[_ONE_RTT]
    return (
        not any(packet.is_ack_eliciting for packet in space.sent_packets.values())
        and space.ack_at is None
        and connection._doubt is None
        and not connection._events
        and fields.LEASE not in own
        and fields.WITHHELD not in own
        and (ferry is None or not (ferry.held or ferry.mute))
    )


def pass_time(connection: QuicConnection, by_s: float, now: float, *, owes_ack: bool) -> None:
    """Moves all times of a connection at rest, as if it had been restored that much later.

    ``owes_ack``: whether ``state.ack_fresh_until`` was not over at the freeze. ``by_s`` may be negative: the
    copy has become older since than this process has waited.
    """
    assert connection._close_at is not None
    connection._close_at += by_s
    for path in connection._network_paths:
        if path.validation_deadline is not None:
            path.validation_deadline += by_s
    space = connection._spaces[_ONE_RTT]
    if owes_ack:
        space.ack_at = now
    if space.largest_received_time is not None:
        space.largest_received_time += by_s
    loss = connection._loss
    if loss._time_of_last_sent_ack_eliciting_packet != _NEVER:
        loss._time_of_last_sent_ack_eliciting_packet += by_s
    if loss._rtt_first_sample_time != _NEVER:
        loss._rtt_first_sample_time += by_s
    loss._pacer.evaluation_time = now
    control = loss._cc
    if control._congestion_recovery_start_time != _NEVER:  # type: ignore[attr-defined]  # of both controllers
        control._congestion_recovery_start_time += by_s  # type: ignore[attr-defined]
    monitor = control._rtt_monitor  # type: ignore[attr-defined]
    if monitor._sample_time != _NEVER:
        monitor._sample_time += by_s
    if isinstance(control, CubicCongestionControl):
        if control._t_epoch != _NEVER:
            control._t_epoch += by_s
        if control.last_ack != _NEVER:
            control.last_ack += by_s
