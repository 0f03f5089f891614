"""Relays, rebinding NATs, third parties: what other hosts can do with a move, and cannot."""

from __future__ import annotations

import pytest
from aioquic.quic.events import DatagramFrameReceived

from quicferry.quic import ExtensionConfig, PathSwitched, PathValidated, Timings
from quicferry.quic import events as our_events
from quicferry.quic.snapshot import thaw
from quicferry.quic.wire import TRANSPORT_PARAMETER_ID, VERSION, Parameter
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, Strategy

from . import harness
from .harness import EDGE_1, EDGE_2, RTT_S, Address, Pair, edge, preferred_in
from .traffic import Push

RELAY: Address = ("10.0.66.2", 4433)
SYMMETRIC = [strategy for strategy, rules in RULES.items() if rules.server_first]


class Relay:
    """Sees all packets of the server, and its copies come first. It drops nothing (RFC 9000 §9.3.3)."""

    def __init__(self, pair: Pair, ahead_s: float = 0.001) -> None:
        self.pair = pair
        self.ahead_s = ahead_s
        self.running = True
        self._carry, self._at_server = pair._carry, pair._at_server
        pair._carry, pair._at_server = self.carry, self.at_server  # type: ignore[method-assign]

    def carry(self, data: bytes, address: Address, direction: str) -> None:
        if direction == "down" and self.running:
            self.pair.after(RTT_S / 2 - self.ahead_s, lambda: self.pair._at_client(data, RELAY))
        self._carry(data, address, direction)

    def at_server(self, data: bytes, address: Address) -> None:
        if address != RELAY:
            self._at_server(data, address)
        elif self.running and self.pair.server_at is not None:
            self._at_server(data, self.pair.server_at)


@pytest.mark.parametrize("interval_s", [0.010, 0.1, 0.5])
@pytest.mark.parametrize(
    "known",
    [{s} for s in SYMMETRIC] + [set(EXTENSION_STRATEGIES)],
    ids=lambda known: "+".join(sorted(known)),
)
def test_an_off_path_relay_of_a_server_that_stays_draws_nobody(known, interval_s):
    #: RFC 9000 9.3.3: endpoints MUST validate the previously active path
    pair = Pair(client=ExtensionConfig(strategies=frozenset(known)))
    pair.handshake(settle_s=1.0)
    relay = Relay(pair)
    pair.load(interval_s, until=pair.now + 3.0)
    pair.drive(limit_s=1.5)
    relay.running = False
    assert pair.drive(pair.answered, limit_s=5.0)
    assert pair.all(PathSwitched) == []
    assert any(address == RELAY for _, address, _ in pair.up), "it was not even probed"
    slowest = max(r.answered_at - r.sent_at for r in pair.requests.values())
    assert slowest < 2 * RTT_S
    pair.drive(limit_s=3.0)
    assert pair.client.migration_state == "idle"


@pytest.mark.parametrize("strategy", SYMMETRIC)
def test_a_relay_does_not_get_a_client_whose_server_says_where_it_is(strategy):
    """SM_MIGRATED comes first from the relay, but the server has named another place."""
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.0)
    relay = Relay(pair)
    pair.load(0.010, until=pair.now + 1.5)
    pair.drive(limit_s=0.3)
    pair.named = True
    pair.move(strategy, downtime_s=0.05)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=2.0)
    relay.running = False
    assert pair.drive(pair.answered, limit_s=5.0)
    assert pair.all(PathSwitched) == [PathSwitched(EDGE_1, EDGE_2)]


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize("strategy", SYMMETRIC)
def test_a_client_that_a_relay_has_drawn_finds_its_server_when_the_relay_goes_away(strategy, idle):
    """The server does not know its address, and its SM_MIGRATED has been acknowledged through the relay."""
    #: wire-format 6.4: the client MUST take another
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.2)
    relay = Relay(pair)
    pair.load(0.010, until=pair.now + (1.0 if idle else 2.0))
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=0.05, forwarding=False)
    assert pair.drive(lambda: pair.switched_to(RELAY), limit_s=2.0)
    pair.server.record_commit()
    pair.drive(limit_s=1.5 if idle else 0.5)
    relay.running = False
    if idle:  # the server has nothing to say, and only the client's next request is lost
        assert not pair.server._loss.bytes_in_flight
        pair.request()
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=5.0)
    pair.drive(limit_s=1.0)
    assert pair.drive(pair.answered, limit_s=5.0)
    assert [event.new for event in pair.all(PathSwitched)] == [RELAY, EDGE_2]
    assert RELAY not in pair.client._role._visited
    pair.drive(limit_s=1.2)
    pair.server_events.clear()
    pair.move(strategy, to=edge(3), downtime_s=0.05, epoch=2)
    assert pair.drive(lambda: pair.switched_to(edge(3)), limit_s=5.0)
    pair.assert_open()


def push(pair: Pair, *, until: float, interval_s: float = 0.05) -> int:
    """The server sends pieces, and the client nothing but acknowledgements. Returns the stream's number."""
    stream_id = pair.server.get_next_available_stream_id(is_unidirectional=True)

    def one() -> None:
        if pair.server is not None and pair.server_at is not None:
            pair.server.send_stream_data(stream_id, b"push" * 25)
        if pair.now + interval_s <= until:
            pair.after(interval_s, one)

    one()
    return stream_id


@pytest.mark.parametrize("strategy", SYMMETRIC)
def test_a_client_that_only_receives_finds_its_server_when_the_relay_goes_away(strategy):
    """Nothing of it is in flight whose loss would tell it that the relay's path is dead."""
    #: wire-format 6.2: A client MUST count a PATH_CHALLENGE on the old path
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.2)
    relay = Relay(pair)
    stream_id = push(pair, until=pair.now + 6.0)
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=0.05, forwarding=False)
    assert pair.drive(lambda: pair.switched_to(RELAY), limit_s=2.0)
    pair.server.record_commit()
    pair.drive(limit_s=0.5)
    relay.running = False
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=1.0)
    pair.drive(limit_s=6.0)
    assert not pair.server._loss.bytes_in_flight
    assert bytes(pair.received[stream_id]) == b"push" * (len(pair.received[stream_id]) // 4)
    pair.assert_open()


@pytest.mark.parametrize("strategy", [Strategy.SYMMETRIC, Strategy.PROACTIVE_EXPLICIT])
def test_a_source_that_goes_on_where_only_a_relay_has_told_of_it_is_found(strategy):
    """Its word of the first move was acknowledged through the relay, so it only says that it stays."""
    #: wire-format 6.4: it MUST take, once the way back
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.2)
    relay = Relay(pair)
    push(pair, until=pair.now + 8.0)
    pair.drive(limit_s=0.3)
    pair.move(Strategy.SYMMETRIC, downtime_s=0.05, forwarding=False)
    assert pair.drive(lambda: pair.switched_to(RELAY), limit_s=2.0)
    pair.server.record_commit()
    pair.drive(limit_s=1.0)
    assert not pair.server._role._word, "the client has heard it"
    source = pair.server
    addresses = [EDGE_1] if RULES[strategy].carries_address else []
    source.prepare_migration(2, strategy, addresses, 50, True, pair.now)
    pair.drive(limit_s=0.05)
    pair.freeze(EDGE_1)
    relay.running = False
    pair.drive(limit_s=0.05)
    pair.validated = {RELAY}
    pair.resume(2, strategy, EDGE_1, True)
    assert pair.drive(lambda: pair.switched_to(EDGE_1), limit_s=1.0)
    pair.drive(limit_s=0.5)
    pair.server, pair.server_at, pair._snapshot = source, EDGE_2, b""
    thaw(source, pair.now)
    source.abort_migration(2, "deadline", pair.now)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=3.0)
    request = pair.request()
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)
    pair.assert_open()


def test_a_relay_that_has_drawn_a_client_before_is_no_place_of_the_server():
    """It has left the relay by the server's word, so that counts as a place where the server has been."""
    #: wire-format 6.4: the client MUST take another
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.2)
    relay = Relay(pair)
    for epoch, relayed in ((1, True), (2, False), (3, True)):
        relay.running = relayed
        to = edge(1 + epoch)
        pair.load(0.010, until=pair.now + 1.0)
        pair.drive(limit_s=0.2)
        pair.server_events.clear()
        pair.client_events.clear()
        pair.move(Strategy.SYMMETRIC, to=to, downtime_s=0.05, epoch=epoch, forwarding=False)
        assert pair.drive(lambda at=RELAY if relayed else to: pair.switched_to(at), limit_s=2.0)
        pair.server.record_commit()
        pair.drive(limit_s=1.2)
    relay.running = False
    pair.request()
    assert pair.drive(lambda: pair.switched_to(edge(4)), limit_s=5.0)
    assert pair.drive(pair.answered, limit_s=5.0)
    pair.assert_open()


def test_a_relay_gives_the_last_connection_id_back_as_soon_as_the_old_path_speaks():
    """All others are with the pool, of which the client keeps them for three PTOs."""
    #: wire-format 6.3: That of a stranger MUST be retired
    pair = Pair()
    pair.drive(limit_s=0.1)
    pair.server.offer_addresses([edge(number) for number in range(2, 9)], pair.now)
    pair.drive(limit_s=1.2)
    seam, cut = pair.client._role._seam, [True]
    assert seam.free_cids == 8
    relay = Relay(pair)
    relay.running = False
    pair.network.drop = lambda _data, _address, direction: cut[0] and direction == "down"
    pair.load(0.010, until=pair.now + 2.0)
    assert pair.drive(lambda: seam.free_cids == 1, limit_s=1.0), "the pool is raced"
    relay.running = True
    assert pair.drive(lambda: seam.free_cids == 0, limit_s=1.0), "the relay is probed, too"
    relay.running = False
    pair.drive(limit_s=0.2)
    cut[0] = False
    pair.drive(lambda: pair.client.migration_state == "idle", limit_s=0.1)
    pair.drive(limit_s=2 * RTT_S)
    assert seam.free_cids >= 1, "one is held back for a server that moves to a place that nobody has named"
    assert seam.free_cids < 8, "the pool's are still kept"
    pair.drive(limit_s=1.0)
    assert seam.free_cids == 8
    assert pair.all(PathSwitched) == [] and pair.drive(pair.answered, limit_s=5.0)


@pytest.mark.parametrize("forwarding", [False, True])
@pytest.mark.parametrize(("gap_s", "lost"), [(0.005, 0), (0.02, 1)])
def test_sm_migrated_counts_for_the_path_it_came_on(gap_s, lost, forwarding):
    """B has answered, but has not said that it is the server's place; C has. The client never goes to B."""
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.2)
    from_b = [0]

    def drop(data: bytes, address: Address, direction: str) -> bool:
        from_b[0] += (address, direction) == (EDGE_2, "down")
        return (address, direction) == (EDGE_2, "down") and from_b[0] <= lost

    pair.network.drop = drop
    feed = Push(pair)  # the client has nothing in flight, so that no silence speaks for B
    feed.begin(pair.now + 1.0)
    pair.drive(limit_s=0.1)
    pair.move(Strategy.SYMMETRIC, to=EDGE_2, downtime_s=0.02)
    pair.drive(lambda: pair.server_at == EDGE_2, limit_s=3.0)
    pair.drive(limit_s=gap_s)
    pair.move(Strategy.SYMMETRIC, to=edge(3), downtime_s=0.02, epoch=2, forwarding=forwarding)
    assert pair.drive(lambda: pair.switched_to(edge(3)), limit_s=2.0)
    assert pair.drive(feed.complete, limit_s=5.0)
    assert [e.new for e in pair.all(PathSwitched)] == [edge(3)]


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


@pytest.fixture
def large_datagrams(monkeypatch):
    """Both ends are configured to send datagrams of up to 1400 bytes."""
    made = harness.configurations

    def large(idle_timeout_s: float = 60.0):
        configurations = made(idle_timeout_s)
        for configuration in configurations:
            configuration.max_datagram_size = 1400
        return configurations

    monkeypatch.setattr(harness, "configurations", large)


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


@pytest.mark.parametrize("pool", [5, 6, 7])
def test_a_race_never_takes_the_last_connection_id(pool):
    """All of the pool is dead; the server comes back where nobody has named it."""
    #: RFC 9000 5.1.1: SHOULD ensure that its peer has a sufficient number
    #: RFC 9000 5.1.1: SHOULD ensure that the pool of connection IDs
    #: RFC 9000 9.5: SHOULD provide new connection IDs before peers migrate
    pair = Pair(hand_off=True)
    pair.handshake()
    pair.server.offer_addresses([edge(n) for n in range(2, 2 + pool)], pair.now)
    pair.drive(limit_s=1.0)
    pair.load(0.010, until=pair.now + 1.5)
    pair.drive(limit_s=0.2)
    pair.move(Strategy.SYMMETRIC, to=edge(9), downtime_s=0.3, forwarding=False)
    assert pair.drive(lambda: pair.switched_to(edge(9)), limit_s=2.0)
    assert pair.drive(pair.answered, limit_s=5.0)


def test_a_client_that_holds_few_connection_ids_is_told_few_addresses(monkeypatch):
    #: RFC 9000 5.1.1: MUST NOT provide more connection IDs than the peer's limit
    make = Pair._make

    def made(configuration, extension, **keywords):
        connection = make(configuration, extension, **keywords)
        connection._local_active_connection_id_limit = 5
        return connection

    monkeypatch.setattr(Pair, "_make", staticmethod(made))
    pair = Pair()
    pair.handshake()
    assert pair.server._role.max_addresses == pair.client._role.max_addresses == 3
    pair.server.offer_addresses([edge(n) for n in range(2, 9)], pair.now)
    pair.drive(limit_s=0.5)
    assert len(pair.client._role._book.known) == 3
    pair.assert_open()


def test_a_move_that_is_called_off_takes_no_connection_ids():
    """Six times within a round trip each, and then it is made: every time with the same ID."""
    pair = Pair(hand_off=True)
    pair.handshake(settle_s=1.0)
    strategy = Strategy.PROACTIVE_EXPLICIT
    used: set[bytes] = set()
    for epoch in range(1, 7):
        pair.server.prepare_migration(epoch, strategy, [EDGE_2], 300, True, pair.now)
        pair.drive(limit_s=0.011)
        used |= {c.cid.cid for c in pair.client._role._prober.candidates.values() if c.cid is not None}
        pair.server.abort_migration(epoch, "operator", pair.now)
        pair.drive(limit_s=0.011)
    pair.load(0.010, until=pair.now + 0.5)
    pair.move(strategy, epoch=7, downtime_s=0.05)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=2.0)
    assert pair.drive(pair.answered, limit_s=5.0)
    assert len(used) == 1


@pytest.mark.parametrize("strategy", list(RULES))
def test_the_pool_is_followed_over_any_number_of_edges(strategy):
    """In any order, the place just left among them; nobody speaks first where that is not published."""
    pair = Pair(hand_off=True)
    pair.handshake()
    if RULES[strategy].pool:
        pair.server.offer_addresses([edge(2), edge(3), edge(4)], pair.now)
    pair.drive(limit_s=1.0)
    for epoch, n in enumerate((2, 1, 3, 1, 4, 2, 3, 2, 1), start=1):
        pair.validated = {pair.server_at}
        pair.load(0.010, until=pair.now + 0.4)
        pair.drive(limit_s=0.1)
        pair.move(strategy, to=edge(n), epoch=epoch, downtime_s=0.02)
        assert pair.drive(lambda n=n: pair.client._network_paths[0].addr == edge(n), limit_s=2.0), epoch
        assert pair.drive(pair.answered, limit_s=5.0), epoch
        pair.drive(limit_s=1.0)
    pair.assert_open()


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


def test_a_repeated_here_of_a_former_place_leads_nobody_there():
    """The first datagrams from B are lost, and what was in them is sent again from C."""
    pair = Pair(hand_off=True)
    pair.named = True
    pair.handshake(settle_s=1.2)
    pair.network.drop = lambda data, address, direction: (address, direction) == (EDGE_2, "down")
    pair.move(Strategy.SYMMETRIC, to=EDGE_2, downtime_s=0.02)
    pair.drive(lambda: pair.server_at == EDGE_2, limit_s=3.0)
    pair.drive(limit_s=0.005)
    pair.move(Strategy.SYMMETRIC, to=edge(3), downtime_s=0.02, epoch=2)
    assert pair.drive(lambda: pair.switched_to(edge(3)), limit_s=2.0)
    pair.drive(limit_s=2.0)
    assert [e.new for e in pair.all(PathSwitched)] == [edge(3)]
    assert not any(address == EDGE_2 for _, address, _ in pair.up)
    # the address of B is known all the same
    pair.network.drop = None
    pair.validated = {edge(3)}
    pair.move(Strategy.PROACTIVE_EXPLICIT, to=EDGE_2, downtime_s=0.02, epoch=3)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=2.0)
