"""A path that has ceased to carry large datagrams: black hole detection (RFC 8899 §4.3, RFC 9000 §14.3).

aioquic sends datagrams of the configured size for as long as a connection lives. A route that changes, or a
tunnel on the way back to a source that goes on, may carry less, and loses the larger ones without a word. The
data in them is then sent again in datagrams that are as large, for ever. When large datagrams have been lost
three times in a row and none has arrived in between, the connection goes back to 1200 bytes, which every path
carries (RFC 9000 §14).
"""

from __future__ import annotations

from collections.abc import Container, Iterable

from aioquic import tls
from aioquic.buffer import size_uint_var
from aioquic.quic.connection import QuicConnection

from quicferry.quic._aioquic import state_fields as fields

BASE_BYTES = 1200  # BASE_PLPMTU of RFC 9000 §14.3: what the handshake, and each challenge, has shown
LOSSES_MOST = 3  # MAX_PROBES of RFC 8899 §5.1.2
_AROUND_BYTES = 1 + 2 + 16  # of a short header and its packet number, and the AEAD's tag


def large_in_flight(connection: QuicConnection) -> list[int]:
    """The numbers of the 1-RTT packets in flight that a path of 1200 bytes would not carry."""
    if connection._max_datagram_size <= BASE_BYTES:
        return []
    sent = connection._spaces[tls.Epoch.ONE_RTT].sent_packets
    return [number for number, packet in sent.items() if packet.sent_bytes > BASE_BYTES]


def losses_in_a_row(
    connection: QuicConnection, large: Iterable[int], acknowledged: Container[int], before: int
) -> int:
    """How often large packets have been lost since one arrived. ``large``: those in flight a moment ago."""
    sent = connection._spaces[tls.Epoch.ONE_RTT].sent_packets
    gone = [number for number in large if number not in sent]
    if any(number in acknowledged for number in gone):
        return 0
    return before + bool(gone)


def shrink(connection: QuicConnection, size_bytes: int) -> None:
    """Send no larger datagrams from now on. The congestion window stays: it is in bytes."""
    loss = connection._loss
    connection._max_datagram_size = size_bytes
    loss._pacer._max_datagram_size = size_bytes
    controller: object = loss._cc
    vars(controller)["_max_datagram_size"] = size_bytes


def drop_oversized(connection: QuicConnection) -> None:
    """Give up DATAGRAM frames that fit into no packet any more (RFC 9221 §5).

    They were written for a path that carries more. Upstream would wait for a packet with room for the first,
    and all behind it with it. Not before the commit: those written before the freeze are counted there.
    """
    if fields.WITHHELD in vars(connection):
        return
    room = connection._max_datagram_size - _AROUND_BYTES - len(connection._peer_cid.cid)
    pending = connection._datagrams_pending
    while pending and 1 + size_uint_var(len(pending[0])) + len(pending[0]) > room:
        pending.popleft()
