"""How large a datagram may be belongs to the path (RFC 9000 §14, RFC 8899, RFC 9221)."""

from __future__ import annotations

import pytest
from aioquic.quic.events import DatagramFrameReceived

from quicferry.strategies import Strategy

from .harness import EDGE_1, EDGE_2, Address, Pair, configure_both

RELAY: Address = ("10.0.66.2", 4433)


@pytest.fixture
def large_datagrams(monkeypatch):
    """Both ends are configured to send datagrams of up to 1400 bytes."""
    configure_both(monkeypatch, max_datagram_size=1400)


@pytest.mark.parametrize(("response_size", "request_size"), [(100, 20), (20_000, 20), (100, 5_000)])
def test_the_size_of_datagrams_belongs_to_the_path(large_datagrams, response_size, request_size):
    """The new path carries less than the old one (RFC 9000 §14.3)."""
    pair = Pair(hand_off=True, idle_timeout_s=30.0)
    pair.response_size = response_size
    pair.network.drop = lambda data, address, direction: address == EDGE_2 and len(data) > 1280
    pair.handshake(settle_s=1.0)
    for k in range(20):
        pair.after(0.05 * k, lambda: pair.request(request_size) and None)
    pair.after(0.2, lambda: pair.move(Strategy.PROACTIVE_EXPLICIT, downtime_s=0.1))
    pair.drive(limit_s=5.0)
    assert max(len(data) for _, address, data in pair.down if address == EDGE_1) == 1400
    assert pair.switched_to(EDGE_2)
    assert pair.answered() and len(pair.requests) == 20


@pytest.mark.parametrize(("response_size", "request_size"), [(20_000, 20), (100, 20_000), (3_000, 3_000)])
def test_a_path_that_carries_less_from_now_on_is_noticed(large_datagrams, response_size, request_size):
    """Black hole detection (RFC 8899 §4.3): no move brings both ends back to what every path carries."""
    pair = Pair(idle_timeout_s=30.0)
    pair.response_size = response_size
    pair.handshake(settle_s=1.0)
    pair.network.drop = lambda data, address, direction: len(data) > 1280
    for k in range(20):
        pair.after(0.05 * k, lambda: pair.request(request_size) and None)
    pair.drive(limit_s=8.0)
    assert pair.answered() and len(pair.requests) == 20
    sent = [len(data) for t, _, data in (*pair.up, *pair.down) if t > pair.now - 6.0]
    assert all(size <= 1200 for size in sent)


@pytest.mark.parametrize("moves", [False, True])
def test_a_datagram_that_no_packet_carries_any_more_holds_back_no_other(large_datagrams, moves):
    """RFC 9221 §5: a DATAGRAM frame fits into one packet, or is not sent."""
    pair = Pair(hand_off=True, idle_timeout_s=30.0, unreliable=True)
    pair.handshake(settle_s=1.0)
    largest = 1400 - 1 - 2 - 16 - 8 - 1 - 2  # header, packet number, tag, connection ID, type and length
    pair.client.send_datagram_frame(bytes(largest))
    pair.drive(limit_s=0.1)
    if moves:
        pair.move(Strategy.PROACTIVE_EXPLICIT, downtime_s=0.1)
        assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=3.0)
    for size in (largest, largest + 1, 1000):
        pair.client.send_datagram_frame(bytes(size))
        pair.server.send_datagram_frame(bytes(size))
    pair.drive(limit_s=1.0)
    fits = [1000] if moves else [largest, 1000]
    for events, sizes in ((pair.client_events, fits), (pair.server_events, [largest, *fits])):
        assert [len(e.data) for _, e in events if isinstance(e, DatagramFrameReceived)] == sizes


def test_a_path_that_loses_datagrams_of_any_size_keeps_its_size(large_datagrams):
    pair = Pair(idle_timeout_s=30.0)
    pair.network.loss, pair.response_size = 0.05, 20_000
    pair.handshake(settle_s=1.0)
    for k in range(40):
        pair.after(0.05 * k, lambda: pair.request(20) and None)
    pair.drive(limit_s=10.0)
    assert pair.answered() and len(pair.requests) == 40
    assert pair.server._max_datagram_size == 1400
    assert sum(len(data) == 1400 for _, _, data in pair.down) > 40
