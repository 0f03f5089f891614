"""What the time costs in which a server stood still: a false RTT, and a validation that ran out meanwhile."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from quicferry.quic import MigrationAborted
from quicferry.quic.snapshot import thaw
from quicferry.strategies import Strategy

from .harness import EDGE_1, EDGE_2, RTT_S, Address, Pair, edge

REBOUND: Address = ("10.0.0.2", 50_000)


@contextmanager
def nothing_arrives(pair: Pair) -> Iterator[None]:
    pair.network.drop = lambda _data, _address, _direction: True
    yield
    pair.network.drop = None


@pytest.mark.parametrize("downtime_s", [0.5, 3.0])
def test_the_downtime_of_a_source_that_goes_on_is_no_rtt(downtime_s):
    #: wire-format 6.2: The client MUST go back to the estimate
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.2)
    pair.request()
    pair.drive(limit_s=0.3)
    before_s, samples = pair.client.pto_s, []
    pair.network.drop = lambda _data, _address, direction: direction == "down"
    pair.load(0.001, until=pair.now + 0.015)  # the server reads it, and its acknowledgements are lost
    pair.drive(limit_s=0.040)
    source = pair.server
    pair.freeze()
    pair.network.drop = None
    pair.drive(limit_s=downtime_s)
    pair.client._loss._cc.on_rtt_measurement = lambda *, now, rtt: samples.append(rtt)
    pair.server, pair.server_at = source, EDGE_1
    thaw(source, pair.now)
    source.abort_migration(1, "deadline", pair.now)
    assert pair.drive(lambda: bool(pair.all(MigrationAborted)), limit_s=1.0)
    assert pair.client.pto_s < 1.5 * before_s
    pair.drive(limit_s=2 * RTT_S)
    assert max(samples) > downtime_s, "an acknowledgement has come over the downtime"
    assert pair.client.pto_s < 1.5 * before_s
    assert pair.drive(pair.answered, limit_s=10.0)
    assert pair.client.pto_s < 1.5 * before_s


def test_a_path_without_a_sample_does_not_make_a_later_challenge_one():
    """Nothing of the client arrives on the first new path; a challenge to the second waits for the server."""
    #: wire-format 6.4: A path that was left without a sample MUST hand on
    pair, strategy = Pair(hand_off=True), Strategy.PROACTIVE_EXPLICIT
    pair.handshake(settle_s=1.2)
    pair.network.drop = lambda _data, address, direction: (
        (address, direction, pair.server_at) == (EDGE_2, "up", EDGE_2)  # but for what has waited there
    )
    many = 1000  # clients: each probes once a second
    for epoch, to, resumed_after_s in ((1, EDGE_2, 1.5), (2, edge(3), 1.1)):
        pair.server.prepare_migration(epoch, strategy, [to], 1900, False, pair.now, many)
        pair.after(resumed_after_s, functools.partial(pair.resume, epoch, strategy, to, speak_first=False))
        pair.drive(limit_s=0.06)
        pair.freeze(to, waiting_room=True)
        assert pair.drive(functools.partial(pair.switched_to, to), limit_s=5.0)
        assert not pair.client._loss._rtt_initialized
        assert pair.client.pto_s < 5 * RTT_S
        pair.drive(limit_s=0.5)
    pair.request()
    assert pair.drive(pair.answered, limit_s=1.0)
    assert pair.client._loss._rtt_smoothed < 1.5 * RTT_S


def test_the_rtt_of_a_path_that_has_become_longer_is_believed():
    """No move: an acknowledgement that comes late after a silence is a sample like any other."""
    pair = Pair()
    pair.handshake(settle_s=1.2)
    pair.load(0.010, until=pair.now + 3.0)
    pair.drive(limit_s=0.3)
    pair.network.one_way_s[EDGE_1] = 0.5
    pair.drive(limit_s=2.5)
    assert pair.client._loss._rtt_smoothed > 0.5


@pytest.mark.parametrize("hand_off", [False, True])
def test_an_address_that_cannot_be_validated_after_the_move_is_given_up(hand_off):
    """It is a forged one, and there is no room for a challenge: the address before it comes back in time."""
    #: RFC 9000 8.2.4: SHOULD abandon path validation based on a timer
    pair = Pair(hand_off=hand_off)
    pair.handshake(settle_s=1.2)
    pair.client_seen_as = {EDGE_1: REBOUND}
    pair.request()
    pair.drive(limit_s=0.75 * RTT_S)
    pair.client_seen_as = {}
    pair.network.drop = lambda _data, _address, _direction: True
    pair.drive(limit_s=0.1)
    path = pair.server._network_paths[0]
    assert path.addr == REBOUND and 3 * path.bytes_received - path.bytes_sent < 100
    pair.server.prepare_migration(1, Strategy.SYMMETRIC, [], 200, False, pair.now)
    pair.freeze()
    pair.drive(limit_s=0.5)
    pair.network.drop = lambda _data, _address, direction: (
        direction == "down" and pair.server.get_peer_address() == REBOUND
    )
    pair.resume(1, Strategy.SYMMETRIC, EDGE_2, speak_first=True)
    assert pair.drive(lambda: pair.switched_to(EDGE_2) and pair.answered(), limit_s=3.0)
    pair.assert_open()


@pytest.mark.parametrize("goes_on", ["destination", "source"])
@pytest.mark.parametrize("hand_off", [False, True])
def test_a_client_whose_new_address_was_being_validated_at_the_freeze_is_found(hand_off, goes_on):
    #: wire-format 7.2: MUST begin that validation anew
    pair = Pair(hand_off=hand_off)
    pair.handshake(settle_s=1.2)
    pair.client_seen_as = {EDGE_1: REBOUND, EDGE_2: REBOUND}
    request = pair.request(
        4000
    )  # three times of that may be sent there before it is validated (RFC 9000 §8.1)
    pair.drive(limit_s=0.75 * RTT_S)
    pair.network.drop = lambda _data, _address, direction: direction == "up"  # the answer to the challenge
    assert pair.drive(lambda: request.answered_at is not None, limit_s=1.0)
    source = pair.server
    assert source.get_peer_address() == REBOUND and not source._network_paths[0].is_validated

    def heard(_data: bytes, _address: Address, direction: str) -> bool:
        return direction == "down" and pair.server.get_peer_address() != REBOUND

    with nothing_arrives(pair):  # what is left of the time of the challenge runs out
        deadline = source._network_paths[0].validation_deadline
        assert deadline is not None
        pair.drive(limit_s=deadline - pair.now - RTT_S)
        source.prepare_migration(1, Strategy.SYMMETRIC, [], 200, False, pair.now)
        pair.freeze()
        pair.drive(limit_s=0.5)
    pair.network.drop = heard
    if goes_on == "destination":
        pair.resume(1, Strategy.SYMMETRIC, EDGE_2, speak_first=False)
    else:
        if hand_off:
            thaw(source, pair.now)
        pair.server, pair.server_at = source, EDGE_1
        source.abort_migration(1, "operator", pair.now)
    pair.drive(limit_s=4.0)
    assert pair.server.get_peer_address() == REBOUND
    assert pair.server._network_paths[0].is_validated
    again = pair.request()
    assert pair.drive(lambda: again.answered_at is not None, limit_s=2.0)
    assert pair.switched_to(EDGE_2) is (goes_on == "destination")
    pair.assert_open()
