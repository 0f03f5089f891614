"""Relays: a host that sees packets and hands on copies does not get a client (RFC 9000 §9.3.3)."""

from __future__ import annotations

import pytest

from quicferry.quic import ExtensionConfig, PathSwitched
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, Strategy

from .harness import EDGE_1, EDGE_2, RTT_S, Address, Pair, edge
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
    pair.go_on(source, EDGE_2, 2)
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
