"""The packet numbers of one connection, shared out between the hosts that may send with its keys.

With P the next number at the freeze, the destination has those below P + ABORT_GAP, and the source, if it
ever goes on, those from there. The share binds the destination until it is told that the commit is
recorded: until then the source may go on without knowing what the destination has sent, or whether it was
heard. A destination that has used up its share is silent; it never takes a number that is not its own.
"""

from __future__ import annotations

from aioquic import tls
from aioquic.quic.connection import NetworkAddress, QuicConnection

from quicferry.quic._aioquic import state_fields as fields
from quicferry.quic._aioquic.output import release_output

#: packet numbers that the destination leaves out, for whatever the source may still have sent
PACKET_NUMBER_LEASE = 512
#: packet numbers that a source leaves out when it goes on: those before it are the destination's
ABORT_GAP = 8 * PACKET_NUMBER_LEASE
#: packets of one flight that the congestion window does not count: acknowledgements, probes, their answers
_UNCOUNTED = 32

_ONE_RTT = tls.Epoch.ONE_RTT
_BOUND_METHODS = ("datagrams_to_send", "get_timer")


def bind_lease(connection: QuicConnection, until: int) -> None:
    """Lets the connection send no packet number from ``until`` on.

    A flight is bounded by the window in bytes, and two packets in a row hold more than one full packet has
    bytes, else they were one: so the window of a flight is half of the numbers that are left.
    """
    #: wire-format 9: MUST NOT use one packet number twice
    #: wire-format 9: MUST NOT send another one before it knows
    #: RFC 9000 12.3: MUST NOT reuse a packet number within

    def exhausted() -> bool:
        return until - connection._packet_number <= _UNCOUNTED and not connection._close_pending

    def datagrams_to_send(now: float) -> list[tuple[bytes, NetworkAddress]]:
        left = until - connection._packet_number
        if exhausted() or left <= 0:
            return []
        control = connection._loss._cc
        window = control.congestion_window
        most = max(0, left - _UNCOUNTED) // 2 * connection._max_datagram_size
        control.congestion_window = min(window, control.bytes_in_flight + most)
        try:
            return type(connection).datagrams_to_send(connection, now)
        finally:
            control.congestion_window = window

    def get_timer() -> float | None:
        timer = type(connection).get_timer(connection)
        return connection._close_at if exhausted() else timer

    setattr(connection, fields.LEASE, until)
    connection.datagrams_to_send = datagrams_to_send  # type: ignore[method-assign]  # hides the class's
    connection.get_timer = get_timer  # type: ignore[method-assign]


def release_lease(connection: QuicConnection) -> None:
    """The commit is recorded: nobody else will send with these keys, and all that was held back may leave."""
    release_output(connection)
    if fields.LEASE in vars(connection):
        for name in (*_BOUND_METHODS, fields.LEASE):
            vars(connection).pop(name, None)


def lease_until(connection: QuicConnection) -> int | None:
    """The first packet number that is not the connection's to use; None when it is not bound."""
    found: int | None = vars(connection).get(fields.LEASE)
    return found


def skip_to(connection: QuicConnection, number: int) -> None:
    """Goes on at a packet number, if it is not there yet."""
    if number > connection._packet_number:
        skip_packet_numbers(connection, number - connection._packet_number)


def skip_packet_numbers(connection: QuicConnection, count: int) -> None:
    """Leave out packet numbers; a peer cannot tell this from loss."""
    skipped = unacknowledged_skips(connection) + count
    connection._packet_number += count
    setattr(connection, fields.SKIPPED, (skipped, connection._packet_number))


def unacknowledged_skips(connection: QuicConnection) -> int:
    """How many packet numbers were left out since the peer last acknowledged a number behind them.

    Packets that were sent do not count: those that only acknowledge are not acknowledged themselves, so
    that a long upload leaves the largest acknowledged number far behind although the peer gets them all.
    """
    count, until = skips(connection)
    return 0 if connection._spaces[_ONE_RTT].largest_acked_packet >= until else count


def skips(connection: QuicConnection) -> tuple[int, int]:
    """Packet numbers that were left out, and the first one after the last of them."""
    found: tuple[int, int] = vars(connection).get(fields.SKIPPED, (0, 0))
    return found
