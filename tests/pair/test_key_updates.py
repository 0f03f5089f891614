"""Key updates that follow each other: never one before the peer is known to have followed the last."""

from __future__ import annotations

import pytest
from aioquic import tls

from quicferry.strategies import Strategy

from .harness import EDGE_2, Pair


def phases(pair: Pair) -> tuple[bytes | None, bytes | None]:
    """The keys with which the server sends, and with which the client reads."""
    epoch = tls.Epoch.ONE_RTT
    return pair.server._cryptos[epoch].send.secret, pair.client._cryptos[epoch].recv.secret


@pytest.mark.parametrize("end", ["client", "server"])
def test_a_second_update_waits_for_the_acknowledgement_of_the_first(end: str) -> None:
    """Two in a row, of which nothing arrives: the peer would read neither keys ever again."""
    #: RFC 9001 6.1: MUST NOT initiate a subsequent key update unless
    pair = Pair()
    pair.handshake(settle_s=1.0)
    connection = pair.server if end == "server" else pair.client
    pair_of_keys = connection._cryptos[tls.Epoch.ONE_RTT]
    known = [pair_of_keys.send.secret]
    pair.network.drop = lambda data, address, direction: True
    for _ in range(2):
        connection.request_key_update()
        connection.send_ping(1)
        pair.flush()
        known.append(pair_of_keys.send.secret)
    assert known[0] != known[1] == known[2]
    pair.network.drop = None
    request = pair.request()
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)
    pair.drive(limit_s=1.0)
    assert pair_of_keys.send.secret not in known, "what was asked for is done as soon as it may be"
    sent, read = phases(pair)
    assert sent == read


def test_an_update_that_waits_moves_along() -> None:
    """The destination does not know which packet of the source told the client, and waits for its own."""
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.0)
    pair.server.request_key_update()
    pair.server.send_ping(1)
    pair.flush()
    pair.server.request_key_update()
    first, _ = phases(pair)
    pair.freeze(EDGE_2, forwarding=True, waiting_room=True)
    pair.after(0.1, lambda: pair.resume(1, Strategy.SYMMETRIC, EDGE_2, True))
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=5.0)
    pair.request()
    assert pair.drive(pair.answered, limit_s=2.0)
    pair.drive(limit_s=1.0)
    sent, read = phases(pair)
    assert sent == read != first
