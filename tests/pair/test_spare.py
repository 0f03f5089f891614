"""What only a handshake needs is given back, and nothing misses it."""

from __future__ import annotations

import pytest
from aioquic import tls
from aioquic.quic.packet import QuicErrorCode, QuicFrameType

from quicferry.quic._aioquic.spare import LEAST_BYTES

from .harness import Pair


def buffered(connection) -> int:
    return sum(buffer.capacity for buffer in connection._crypto_buffers.values())


@pytest.mark.parametrize("hand_off", [False, True])
def test_buffers_for_tls_are_given_back(hand_off):
    pair = Pair(hand_off=hand_off)
    pair.handshake()
    assert buffered(pair.client) == buffered(pair.server) == LEAST_BYTES
    pair.move(next(iter(pair.client.negotiated)), downtime_s=0.05)
    pair.drive(limit_s=1.0)
    assert buffered(pair.server) == LEAST_BYTES


def test_a_ticket_that_the_server_gives_with_its_last_message_comes():
    """It is written when the handshake is complete, right before the buffers go."""
    tickets: dict[bool, list[tls.SessionTicket]] = {True: [], False: []}

    class WithTickets(Pair):
        @staticmethod
        def _make(configuration, extension, **keywords):
            keep = tickets[configuration.is_client].append
            return Pair._make(configuration, extension, session_ticket_handler=keep, **keywords)

    WithTickets().handshake()
    assert [len(of) for of in tickets.values()] == [1, 1]


def test_a_message_of_tls_after_the_handshake_is_an_error_as_before():
    """A client has nothing to say there: the connection ends, in good order (RFC 9001 §6)."""
    pair = Pair()
    pair.handshake()
    pair.client._crypto_streams[tls.Epoch.ONE_RTT].sender.write(b"\x18\x00\x00\x01\x00")  # KeyUpdate
    pair.flush()
    pair.drive(limit_s=1.0)
    event = pair.server._close_event
    assert event is not None
    assert event.error_code == QuicErrorCode.CRYPTO_ERROR + tls.AlertDescription.unexpected_message
    assert event.frame_type == QuicFrameType.CRYPTO


def test_equal_sets_of_epochs_are_one():
    one, other = Pair(), Pair()
    for connection in (one.client, other.client):
        handlers = connection._QuicConnection__frame_handlers
        assert len({id(epochs) for _, epochs in handlers.values()}) == len({e for _, e in handlers.values()})
    both = [c._QuicConnection__frame_handlers[0x08][1] for c in (one.client, other.client)]
    assert both[0] is both[1]
