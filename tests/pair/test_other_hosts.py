"""Rebinding NATs, third parties, later versions: what other hosts can do with a move, and cannot."""

from __future__ import annotations

import pytest

from quicferry.quic import ExtensionConfig, PathValidated, Timings
from quicferry.quic import events as our_events
from quicferry.quic.snapshot import thaw
from quicferry.quic.wire import TRANSPORT_PARAMETER_ID, VERSION, Parameter
from quicferry.strategies import RULES, Strategy

from . import harness
from .harness import EDGE_1, EDGE_2, RTT_S, Address, Pair, preferred_in

RELAY: Address = ("10.0.66.2", 4433)
SYMMETRIC = [strategy for strategy, rules in RULES.items() if rules.server_first]


def test_a_response_from_elsewhere_validates_nothing():
    """A challenge to B that was handed on to C and is answered from there says nothing of B."""
    pair = Pair()
    pair.handshake(settle_s=1.0)
    pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 500, False, pair.now)
    at_server = pair._at_server
    pair._at_server = lambda data, address: at_server(data, EDGE_1)  # type: ignore[method-assign]
    pair.drive(limit_s=0.5)
    assert any(address == EDGE_2 for _, address, _ in pair.up)
    assert pair.all(PathValidated) == []


@pytest.mark.parametrize("strategy", list(RULES))
def test_a_challenge_of_the_server_is_answered_on_its_path(strategy):
    """The client's NAT has rebound during the move; the server's first datagram is lost as well."""
    #: RFC 9000 8.2.2: MUST be sent on the network path where the PATH_CHALLENGE frame was received
    rebound = ("10.0.0.99", 5555)
    pair = Pair(preferred=preferred_in(strategy), hand_off=True, idle_timeout_s=30.0)
    pair.handshake(settle_s=1.0)
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
        pair.drive(limit_s=0.1)
    state = {"rebound": False, "lost": 0}
    peer: list[Address] = [harness.CLIENT]
    carry, flush = pair._carry, pair.flush

    def through_the_nat(data: bytes, address: Address, direction: str) -> None:
        if direction == "down":
            if pair.server.get_peer_address() != rebound and peer[0] != rebound and state["rebound"]:
                return
            if address == EDGE_2 and state["lost"] < 1:
                state["lost"] += 1
                return
        carry(data, address, direction)

    def flushed() -> None:
        if pair.server is not None and not pair.server._role.held:
            peer[0] = pair.server.get_peer_address()
        flush()

    pair._carry, pair.flush = through_the_nat, flushed  # type: ignore[method-assign]

    def rebind() -> None:
        state["rebound"] = True
        pair.client_seen_as.update({EDGE_1: rebound, EDGE_2: rebound})

    pair.after(0.03, rebind)
    pair.after(0.05, lambda: pair.request() and None)
    pair.move(strategy, downtime_s=0.1)
    pair.drive(limit_s=3.0)
    assert pair.switched_to(EDGE_2)
    assert pair.server._network_paths[0].addr == rebound
    assert pair.server._network_paths[0].is_validated
    stream_id = pair.server.get_next_available_stream_id(is_unidirectional=True)
    pair.server.send_stream_data(stream_id, b"push" * 100)
    pair.drive(limit_s=1.0)
    assert len(pair.received[stream_id]) == 400


@pytest.mark.parametrize("lost", ["challenges", "responses"])
@pytest.mark.parametrize("hand_off", [False, True])
@pytest.mark.parametrize("strategy", SYMMETRIC)
def test_a_challenge_to_an_address_that_has_changed_is_repeated(strategy, hand_off, lost):
    """The client hears of the new place by data, and not the word; then its NAT rebinds.

    From its new address it only probes, and is told where its server is once it has answered a challenge.
    """
    #: wire-format 7.2: a server MUST repeat its own PATH_CHALLENGE
    rebound = ("10.0.0.99", 5555)
    pair = Pair(hand_off=hand_off, idle_timeout_s=30.0)
    pair.handshake(settle_s=1.2)
    state = {"from the new place": 0, "lost": 0, "challenges": 0}
    frame, direction_lost = (0x1A, "down") if lost == "challenges" else (0x1B, "up")

    def drop(data: bytes, address: Address, direction: str) -> bool:
        if address != EDGE_2 or pair.server is None:
            return False
        if direction == "down" and not pair.client_seen_as:
            state["from the new place"] += 1
            return state["from the new place"] == 1  # SM_MIGRATED is in it
        if direction == "down" and pair.sent_to != rebound:
            return True
        types = pair.frames(data, pair.server if direction == "down" else pair.client)
        state["challenges"] += direction == "down" and 0x1A in types
        is_lost = direction == direction_lost and frame in types and state["lost"] < 2
        state["lost"] += is_lost
        return is_lost

    pair.network.drop = drop
    pair.move(strategy, downtime_s=0.1, forwarding=False)
    assert pair.drive(lambda: pair.server_at == EDGE_2, limit_s=2.0)
    stream_id = pair.server.get_next_available_stream_id(is_unidirectional=True)
    pair.server.send_stream_data(stream_id, b"push" * 100)
    assert pair.drive(lambda: state["from the new place"] >= 2, limit_s=1.0)
    pair.client_seen_as = {EDGE_1: rebound, EDGE_2: rebound}
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=3.0)
    assert state["lost"] == 2
    assert 3 <= state["challenges"] <= 6, "no more often than Initial packets"
    request = pair.request()
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)
    assert pair.server.get_peer_address() == rebound
    assert len(pair.received[stream_id]) == 400
    pair.assert_open()


@pytest.mark.parametrize("waiting_room", [False, True])
def test_a_challenge_that_waited_for_the_server_is_no_sample_of_the_rtt(waiting_room):
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.0)
    many = 1000  # clients: each probes once a second
    pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 1900, False, pair.now, many)
    pair.drive(limit_s=0.06)
    pair.freeze(EDGE_2, forwarding=True, waiting_room=waiting_room)
    pair.after(1.9, lambda: pair.resume(1, Strategy.PROACTIVE_EXPLICIT, EDGE_2, False))
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=10.0)
    assert pair.client.pto_s < 5 * RTT_S
    pair.request()
    pair.drive(limit_s=1.0)
    assert pair.client._loss._rtt_smoothed < 1.5 * RTT_S


@pytest.mark.parametrize(
    ("every_s", "abort"), [(99.0, False), (1.001, False), (0.02, True)], ids=["once", "often", "called off"]
)
def test_what_a_server_makes_its_client_send_to_others_is_bounded(every_s, abort):
    timings = Timings()
    pair = Pair()
    pair.handshake(settle_s=1.0)
    victims = [(f"10.9.{n}.2", 53) for n in range(1, 8)]
    begun, length_s, epochs = pair.now, 20.0, [0]

    def announce() -> None:
        if abort and epochs[0]:
            pair.server.abort_migration(epochs[0], "operator", pair.now)
        epochs[0] += 1
        strategy = Strategy.PROACTIVE_EXPLICIT
        pair.server.prepare_migration(epochs[0], strategy, victims, 1000, False, pair.now)
        if pair.now - begun < length_s - every_s:
            pair.after(every_s, announce)

    announce()
    pair.drive(limit_s=length_s)
    to_others = [t for t, address, _ in pair.up if address in victims]
    assert to_others
    bound = timings.probe_allowance + timings.probe_allowance_per_second * length_s
    assert len(to_others) <= bound
    assert {address for _, address, _ in pair.up} >= set(victims), "some were starved"


@pytest.mark.parametrize("strategy", list(RULES))
def test_a_client_comes_back_to_a_source_that_goes_on(strategy):
    """The destination has served, and was taken down before it heard of the commit."""
    known = ExtensionConfig(strategies=frozenset({strategy}))
    pair = Pair(preferred=preferred_in(strategy), client=known, hand_off=True, idle_timeout_s=30.0)
    pair.handshake()
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
    pair.drive(limit_s=1.0)
    pair.load(0.05, until=pair.now + 3.0)
    pair.drive(limit_s=0.2)
    addresses = [EDGE_2] if RULES[strategy].carries_address else []
    pair.server.prepare_migration(1, strategy, addresses, 100, True, pair.now)
    pair.drive(limit_s=0.1)
    source = pair.server
    pair.freeze(EDGE_2)
    pair.drive(limit_s=0.05)
    pair.resume(1, strategy, EDGE_2, True)
    pair.drive(limit_s=1.0)
    assert pair.switched_to(EDGE_2)
    pair.server, pair.server_at, pair.forward_from = source, EDGE_1, None
    pair.validated = {EDGE_2}
    thaw(source, pair.now)
    source.abort_migration(1, "deadline", pair.now)
    assert pair.drive(lambda: pair.switched_to(EDGE_1), limit_s=3.0)
    assert pair.drive(pair.answered, limit_s=5.0)
    assert [type(e) for _, e in pair.client_events].count(our_events.PathSwitched) == 2
    pair.assert_open()


@pytest.mark.parametrize("rest", [b"", b"\x00", b"\x3f" * 40])
@pytest.mark.parametrize("version", [VERSION + 1, 17, 2**40])
def test_a_later_version_of_the_parameter_is_no_error(monkeypatch, version, rest):
    """What comes behind the number of an unknown version is that version's business."""
    #: wire-format 3.2: MUST NOT be looked at
    from aioquic.buffer import Buffer  # type: ignore[attr-defined]

    value = Buffer(capacity=80)
    value.push_uint_var(version)
    value.push_bytes(rest)
    offer = Buffer(capacity=120)
    offer.push_uint_var(TRANSPORT_PARAMETER_ID)
    offer.push_uint_var(value.tell())
    offer.push_bytes(value.data)
    assert Parameter.decode(value.data).version == version
    monkeypatch.setattr("quicferry.quic.client.ClientRole.own_parameter", lambda self: offer.data)
    pair = Pair()
    pair.handshake()
    assert pair.client.negotiated == pair.server.negotiated == frozenset()
    pair.request()
    pair.drive(limit_s=0.5)
    assert pair.answered()
    pair.assert_open()
