"""The server moves at every packet boundary of a small exchange, with every strategy.

The exchange has requests, a download of several flights and an upload. Whatever was on its way when the
server froze, nothing may be lost, doubled or closed.
"""

from __future__ import annotations

import pytest

from quicferry.quic import ServerState
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, Strategy

from .harness import EDGE_2, Pair

BOUNDARIES = 48  # datagrams that arrive in the exchange from the handshake on, move and answers included
CHUNK = 12


def exchange(strategy: Strategy, boundary: int, *, wait_for_answer: bool, server_first: bool) -> Pair:
    pair = Pair(seed=boundary)
    pair.handshake()
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
        pair.drive(limit_s=0.03 if not wait_for_answer else 0.0)
    pair.response_size = 9_000
    begun = pair.datagrams

    def at_boundary(count: int) -> None:
        if count - begun == boundary:
            pair.on_datagram = None
            pair.move(
                strategy,
                downtime_s=0.1,
                server_first=server_first,
                notice_s=0.5 if wait_for_answer else 0.0,
            )

    pair.on_datagram = at_boundary
    for _ in range(3):
        pair.request(1_500)
    pair.after(0.010, lambda: pair.request(1_500) and None)
    upload = pair.client.get_next_available_stream_id(is_unidirectional=True)
    pair.client.send_stream_data(upload, bytes(range(256)) * 80, end_stream=True)
    pair.drive(lambda: pair.switched_to(EDGE_2) and pair.answered(), limit_s=20.0)
    if not pair.switched_to(EDGE_2):  # a client that asks first has to have something to ask
        pair.request()
        pair.drive(lambda: pair.switched_to(EDGE_2) and pair.answered(), limit_s=20.0)
    pair.drive(limit_s=0.5)
    assert bytes(pair.uploaded[upload]) == bytes(range(256)) * 80
    for request in pair.requests.values():
        assert len(pair.received[request.stream_id]) == 9_000 or request.number > 3
    return pair


@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("first", range(1, BOUNDARIES, CHUNK))
@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_a_move_at_each_boundary_loses_nothing(strategy, first, server_first):
    for boundary in range(first, first + CHUNK):
        pair = exchange(strategy, boundary, wait_for_answer=True, server_first=server_first)
        assert pair.switched_to(EDGE_2), boundary
        assert pair.answered(), boundary
        assert pair.server.migration_state is ServerState.COMMITTED, boundary
        pair.assert_open()


@pytest.mark.parametrize("first", range(1, BOUNDARIES, CHUNK))
@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_a_move_that_does_not_wait_for_the_answer_loses_nothing(strategy, first):
    """The notice may be lost with the source: the destination speaks first, so the client learns of it."""
    for boundary in range(first, first + CHUNK):
        pair = exchange(strategy, boundary, wait_for_answer=False, server_first=True)
        assert pair.switched_to(EDGE_2), boundary
        assert pair.answered(), boundary
        pair.assert_open()
