"""A response of the client counts only where the server's challenge left from (RFC 9000 §8.2.3)."""

from __future__ import annotations

import pytest

from .harness import CLIENT, Pair

REBOUND = ("10.0.0.99", 5555)


@pytest.mark.parametrize(("answered_at", "valid"), [("10.0.1.2", True), ("10.0.1.3", False)])
def test_a_response_that_comes_to_another_address_of_the_server_validates_nothing(answered_at, valid):
    pair = Pair()
    pair.handshake(settle_s=1.0)
    server = pair.server
    pair.client.send_ping(1)
    for data, _ in pair.client.datagrams_to_send(pair.now):
        server.receive_datagram(data, REBOUND, pair.now, "10.0.1.2")
    path = next(path for path in server._network_paths if path.addr == REBOUND)
    assert not path.is_validated
    for data, address in server.datagrams_to_send(pair.now):
        assert address == REBOUND
        pair.client.receive_datagram(data, pair.client._network_paths[0].addr, pair.now)
    for data, _ in pair.client.datagrams_to_send(pair.now):
        server.receive_datagram(data, REBOUND, pair.now, answered_at)
    assert path.is_validated is valid
    assert CLIENT != REBOUND


def test_a_server_that_runs_elsewhere_has_other_addresses():
    pair = Pair()
    pair.handshake(settle_s=1.0)
    server = pair.server
    pair.client.send_ping(1)
    for data, address in pair.client.datagrams_to_send(pair.now):
        assert address[0] == "10.0.1.2"
        server.receive_datagram(data, CLIENT, pair.now, "10.0.1.2")
    assert vars(server._network_paths[0])["_ferry_local"] == "10.0.1.2"
    server.hold()
    server.resume(1, "symmetric", True, pair.now)
    assert "_ferry_local" not in vars(server._network_paths[0])
