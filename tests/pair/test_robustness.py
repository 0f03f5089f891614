"""Loss, reordering, duplicates, stock peers, aborts, many hops, pools of any size."""

from __future__ import annotations

import itertools

import pytest

from quicferry.quic import (
    ExtensionConfig,
    LossNoticed,
    MigrationAborted,
    MigrationAnnounced,
    MigrationFellBack,
    MigrationReady,
    PathSwitched,
    ProbeStarted,
    Result,
    ServerState,
    Timings,
)
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, ProbeOn, Strategy

from .harness import EDGE_1, EDGE_2, RTT_S, Network, Pair, edge

BY_LOSS = [s for s in EXTENSION_STRATEGIES if RULES[s].probe_on is ProbeOn.LOSS]


def prepared(strategy: Strategy, pool: int = 1, **keywords) -> Pair:
    pair = Pair(**keywords)
    pair.handshake(settle_s=1.0)
    if RULES[strategy].pool:
        pair.server.offer_addresses([edge(n) for n in range(2, 2 + pool)], pair.now)
    pair.drive(limit_s=0.2)
    return pair


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_loss_reordering_and_duplicates_do_no_harm(strategy, server_first, seed):
    network = Network(loss=0.05, duplication=0.05, jitter_s=0.004)
    pair = prepared(strategy, seed=seed, network=network)
    pair.load(0.010, until=pair.now + 1.5)
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=0.15, server_first=server_first)
    pair.drive(limit_s=5.0)
    assert pair.switched_to(EDGE_2)
    assert pair.answered()
    pair.assert_open()


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_the_first_packets_from_the_new_address_may_be_lost(strategy):
    dropped = []

    def drop(data: bytes, address, direction: str) -> bool:
        if address == EDGE_2 and direction == "down" and len(dropped) < 3:
            dropped.append(data)
            return True
        return False

    pair = prepared(strategy, network=Network(drop=drop))
    pair.load(0.010, until=pair.now + 1.5)
    pair.move(strategy, downtime_s=0.1, server_first=True)
    pair.drive(limit_s=5.0)
    assert len(dropped) == 3
    assert pair.switched_to(EDGE_2)
    assert pair.answered()
    pair.assert_open()


@pytest.mark.parametrize("size", [1, 3, 7])
def test_the_cost_of_a_pool_does_not_grow_with_its_size(size):
    overheads = {}
    for n in (1, size):
        pair = prepared(Strategy.POOL, pool=n)
        to = edge(1 + n)  # the last one
        pair.load(0.010, until=pair.now + 1.0)
        window = pair.client._loss.congestion_window
        pair.drive(limit_s=0.2)
        pair.move(Strategy.POOL, to=to, downtime_s=0.3)
        pair.drive(limit_s=2.5)
        assert pair.switched_to(to)
        assert len(pair.all(ProbeStarted)) == n
        assert {t for t, e in pair.client_events if isinstance(e, ProbeStarted)} == {
            pair.first(LossNoticed)[0]
        }, "the candidates are not raced in one flight"
        assert pair.client._loss.congestion_window >= window, "dead candidates cost congestion window"
        overheads[n] = pair.first_answer_after_move() - pair.resumed_at
    assert overheads[size] <= overheads[1] + 0.001


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
@pytest.mark.parametrize("peer", ["stock", None])
def test_a_client_that_does_not_know_the_extension_sees_stock_behaviour(strategy, peer):
    pair = Pair(client=peer)
    pair.handshake()
    pair.server.offer_addresses([EDGE_2], pair.now)
    assert pair.server.negotiated == frozenset()
    pair.server.prepare_migration(1, strategy, [EDGE_2], 100, False, pair.now)
    request = pair.request()
    pair.drive(limit_s=1.0)
    assert pair.first(MigrationReady, side="server")[1].result is Result.NOT_NEGOTIATED
    assert request.answered_at is not None
    pair.server.hold()
    pair.request()
    pair.drive(limit_s=0.1)
    pair.server.abort_migration(1, "operator", pair.now)
    pair.drive(limit_s=3.0)
    assert pair.answered()
    pair.assert_open()


@pytest.mark.parametrize("peer", ["stock", None])
def test_a_server_that_does_not_know_the_extension_sees_stock_behaviour(peer):
    pair = Pair(server=peer)
    pair.handshake()
    pair.request()
    pair.drive(limit_s=1.0)
    assert pair.client.negotiated == frozenset()
    assert pair.answered()
    pair.server_at = None  # silence must not make it probe
    pair.request()
    pair.drive(limit_s=1.0)
    assert pair.first(LossNoticed) is None
    assert {address for _, address, _ in pair.up} == {EDGE_1}


def test_the_answer_is_what_both_can_do():
    pair = Pair(
        client=ExtensionConfig(strategies=frozenset({Strategy.POOL, Strategy.SYMMETRIC}), max_addresses=3),
        server=ExtensionConfig(strategies=frozenset({Strategy.POOL, Strategy.PROACTIVE_EXPLICIT})),
    )
    pair.handshake()
    assert pair.client.negotiated == pair.server.negotiated == {Strategy.POOL}
    pair.server.prepare_migration(1, Strategy.SYMMETRIC, [], 100, False, pair.now)
    pair.drive(limit_s=0.1)
    assert pair.first(MigrationReady, side="server")[1].result is Result.NOT_NEGOTIATED


def test_nothing_in_common_is_no_extension():
    pair = Pair(
        client=ExtensionConfig(strategies=frozenset({Strategy.POOL})),
        server=ExtensionConfig(strategies=frozenset({Strategy.SYMMETRIC})),
    )
    pair.handshake()
    assert pair.client.negotiated == pair.server.negotiated == frozenset()
    pair.request()
    pair.drive(limit_s=0.5)
    assert pair.answered()


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_replayed_datagrams_are_dropped(strategy):
    #: wire-format 5: MUST discard packets it has received before
    #: RFC 9000 12.3: MUST discard a newly unprotected packet
    pair = prepared(strategy)
    pair.load(0.010, until=pair.now + 0.5)
    pair.drive(limit_s=0.2)
    pair.move(strategy, downtime_s=0.1)
    pair.drive(limit_s=0.3)
    for _, _, data in pair.up[-40:] + pair.up[:20]:
        pair.server.receive_datagram(data, ("10.0.0.2", 40000), pair.now)
    for _, address, data in pair.down[-40:] + pair.down[:20]:
        pair.client.receive_datagram(data, address, pair.now)
    pair.drive(limit_s=2.0)
    assert pair.answered()
    assert len(pair.all(PathSwitched)) == 1
    pair.assert_open()


@pytest.mark.parametrize("when", ["prepared", "frozen"])
@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_an_aborted_move_goes_on_at_the_source(strategy, when):
    pair = prepared(strategy)
    pair.load(0.010, until=pair.now + 1.0)
    pair.server.prepare_migration(
        1, strategy, [EDGE_2] if RULES[strategy].carries_address else [], 100, False, pair.now
    )
    pair.drive(limit_s=0.1)
    if when == "frozen":
        pair.server.hold()
        pair.drive(limit_s=0.1)
    pair.server.abort_migration(1, "transfer-failed", pair.now)
    aborted_at = pair.now
    pair.drive(limit_s=3.0)
    assert pair.answered()
    assert pair.all(MigrationAborted) == [MigrationAborted(1, 1)]
    assert pair.all(PathSwitched) == []
    assert pair.client.migration_state == "idle"
    assert pair.server.migration_state is ServerState.IDLE
    later = [t for t, address, _ in pair.up if address == EDGE_2 and t > aborted_at + RTT_S]
    assert not later, "it still probes"
    # and the next move works
    pair.load(0.010, until=pair.now + 0.6)
    pair.move(strategy, epoch=2, downtime_s=0.1)
    pair.drive(limit_s=2.0)
    assert pair.switched_to(EDGE_2)
    assert pair.answered()
    pair.assert_open()


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_two_hundred_moves_leave_nothing_behind(strategy):
    #: RFC 9000 5.1.1: SHOULD supply a new connection ID when the peer retires
    #: RFC 9000 5.1.2: SHOULD retire connection IDs when they are no longer actively using
    #: RFC 9000 5.1.2: MUST NOT forget a connection ID without retiring it
    pair = Pair()
    pair.handshake()
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_1, EDGE_2], pair.now)
    pair.drive(limit_s=0.1)
    for epoch in range(1, 201):
        to = EDGE_2 if epoch % 2 else EDGE_1
        pair.validated = {pair.server_at}
        pair.server_events.clear()
        pair.client_events.clear()
        pair.move(strategy, to=to, epoch=epoch, downtime_s=0.05, server_first=epoch % 3 == 0)
        pair.after(0.06, lambda: pair.request() and None)
        assert pair.drive(lambda to=to: pair.switched_to(to), limit_s=5.0), epoch
        pair.drive(limit_s=1.0)
        pair.up.clear()
        pair.down.clear()
    assert pair.answered()
    pair.assert_open()
    for connection in (pair.client, pair.server):
        assert len(connection._network_paths) == 1
        assert len(connection._host_cids) == 8
        assert len(connection._peer_cid_available) == 7
        assert not connection._retire_connection_ids
        assert connection._loss.bytes_in_flight == 0
    role = pair.client._role
    assert not role._prober.candidates and not role._former and len(role._book.known) <= 2
    assert not pair.server._role._control


def test_many_destinations_keep_within_the_limit_of_known_addresses():
    #: wire-format 4.1: The number MUST NOT be used again
    #: wire-format 4.1: A client MUST be able to hold 16 addresses
    pair = Pair()
    pair.handshake()
    for epoch in range(1, 41):
        to = edge(1 + epoch)
        pair.move(Strategy.PROACTIVE_EXPLICIT, to=to, epoch=epoch, downtime_s=0.02)
        assert pair.drive(lambda to=to: pair.switched_to(to), limit_s=5.0), epoch
        pair.drive(limit_s=1.0)
    assert len(pair.client._role._book.known) <= 16
    pair.assert_open()


def test_a_server_that_never_comes_leaves_the_connection_open():
    #: wire-format 6.3: It MUST NOT close the connection for that reason
    #: RFC 9000 8.2.4: SHOULD abandon path validation based on a timer
    pair = prepared(Strategy.PROACTIVE_EXPLICIT, idle_timeout_s=20.0)
    pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 100, False, pair.now)
    started = pair.now
    beat = pair.now + 0.1

    def keep_busy() -> None:
        pair.request()
        if pair.now < started + 15:
            pair.after(1.0, keep_busy)

    pair.at(beat, keep_busy)
    pair.drive(limit_s=16.0)
    fell = pair.first(MigrationFellBack)
    assert fell is not None
    assert 9.9 < fell[0] - started < 10.2  # half the idle timeout
    probes = [t for t, address, _ in pair.up if address == EDGE_2]
    gaps = [b - a for a, b in itertools.pairwise(probes)]
    assert max(gaps) <= 0.26 and len(probes) < 100
    assert pair.answered()
    assert pair.client.migration_state == "idle"  # the old address lives
    pair.assert_open()
    assert len(pair.client._peer_cid_available) == 7


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_a_client_that_was_idle_for_long_still_finds_the_server(strategy):
    pair = prepared(strategy, idle_timeout_s=300.0)
    pair.move(strategy, downtime_s=0.1)
    pair.drive(limit_s=100.0)
    request = pair.request()
    pair.drive(limit_s=2.0)
    assert request.answered_at is not None
    assert pair.switched_to(EDGE_2)
    assert pair.all(MigrationFellBack) == []
    pair.assert_open()


def test_a_synchronized_client_waits_but_not_for_ever():
    pair = prepared(Strategy.SYNCHRONIZED_SYMMETRIC, idle_timeout_s=20.0)
    pair.server.prepare_migration(1, Strategy.SYNCHRONIZED_SYMMETRIC, [], 100, False, pair.now)
    pair.drive(limit_s=0.1)
    pair.server.hold()
    pair.request()
    pair.drive(limit_s=12.0)
    assert len(pair.all(MigrationFellBack)) == 1
    assert not pair.client._role.recovery_suspended
    pair.server.abort_migration(1, "restore-failed", pair.now)
    pair.drive(limit_s=3.0)
    assert pair.answered()
    assert pair.client.migration_state == "idle"


@pytest.mark.parametrize("strategy", BY_LOSS)
def test_a_false_alarm_ends_when_the_old_address_speaks_again(strategy):
    pair = prepared(strategy)
    if strategy is Strategy.REACTIVE_EXPLICIT:
        pair.server.prepare_migration(1, strategy, [EDGE_2], 100, False, pair.now)
        pair.drive(limit_s=0.1)
    pair.load(0.010, until=pair.now + 1.0)
    pair.drive(limit_s=0.2)
    pair.network.drop = lambda data, address, direction: True
    pair.drive(limit_s=0.2)
    pair.network.drop = None
    recovered_at = pair.now
    pair.drive(limit_s=3.0)
    assert pair.first(LossNoticed) is not None
    assert pair.first(ProbeStarted) is not None
    assert pair.answered()
    assert not [t for t, address, _ in pair.up if address == EDGE_2 and t > recovered_at + 0.3]
    assert pair.client.migration_state == ("idle" if strategy is Strategy.POOL else "announced")
    assert pair.all(PathSwitched) == []


def test_a_filtered_address_is_refused_and_never_probed():
    pair = Pair(client=ExtensionConfig(allowed_networks=("10.0.3.0/24",)))
    pair.handshake()
    pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 100, False, pair.now)
    pair.drive(limit_s=0.5)
    assert pair.first(MigrationReady, side="server")[1].result is Result.ADDRESS_FILTERED
    assert pair.server.migration_state is ServerState.REFUSED
    assert {address for _, address, _ in pair.up} == {EDGE_1}
    assert pair.all(MigrationAnnounced) == []


def test_a_client_may_refuse_and_two_announcements_may_be_too_close():
    pair = Pair(client=ExtensionConfig(accept_moves=False))
    pair.handshake()
    pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 100, False, pair.now)
    pair.drive(limit_s=0.1)
    pair.server.prepare_migration(2, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 100, False, pair.now)
    pair.drive(limit_s=0.1)
    ready = [e.result for _, e in pair.server_events if isinstance(e, MigrationReady)]
    assert ready == [Result.REFUSED, Result.REFUSED]
    pair = Pair()
    pair.handshake()
    for epoch in (1, 2):
        pair.server.prepare_migration(epoch, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 100, False, pair.now)
        pair.drive(limit_s=0.1)
    ready = [e.result for _, e in pair.server_events if isinstance(e, MigrationReady)]
    assert ready == [Result.OK, Result.BUSY]


def test_a_relayed_packet_of_a_server_that_did_not_move_draws_nobody():
    """Symmetric: authentic packets from a strange address, while the old one is alive, are only data."""
    pair = prepared(Strategy.SYMMETRIC)
    relay = ("10.0.66.2", 4433)
    pair.load(0.010, until=pair.now + 1.0)
    carry = pair._carry

    def relayed(data: bytes, address, direction: str) -> None:
        if direction == "down" and len(pair.down) % 5 == 0:
            address = relay
        carry(data, address, direction)

    pair._carry = relayed
    arrive = pair._at_server
    pair._at_server = lambda data, address: arrive(data, EDGE_1 if address == relay else address)
    pair.drive(limit_s=2.0)
    assert pair.answered()
    assert any(address == relay for _, address, _ in pair.up), "it was not even probed"
    assert pair.all(PathSwitched) == []


def test_a_forged_packet_from_a_strange_address_is_not_even_probed():
    pair = prepared(Strategy.SYMMETRIC)
    _, _, data = pair.down[-1]
    forged = data[:-1] + bytes([data[-1] ^ 1])
    pair.client.receive_datagram(forged, ("10.0.66.2", 4433), pair.now)
    pair.drive(limit_s=0.5)
    assert {address for _, address, _ in pair.up} == {EDGE_1}
    assert len(pair.client._network_paths) == 1


def test_synchronized_clients_do_not_storm_while_the_server_is_away():
    counts = {}
    for strategy in (Strategy.SYMMETRIC, Strategy.SYNCHRONIZED_SYMMETRIC):
        pair = prepared(strategy)
        pair.request()
        pair.drive(limit_s=0.2)
        pair.move(strategy, downtime_s=3.0, forwarding=False)
        pair.drive(limit_s=0.1)
        pair.request()
        before = len(pair.up)
        pair.drive(limit_s=2.5)
        counts[strategy] = len(pair.up) - before
        pair.drive(limit_s=3.0)
        assert pair.answered()
    assert counts[Strategy.SYNCHRONIZED_SYMMETRIC] <= 2 < counts[Strategy.SYMMETRIC]


def test_the_rtt_of_the_new_path_is_taken_from_the_challenge():
    network = Network(one_way_s={EDGE_1: 0.061, EDGE_2: 0.009})
    pair = prepared(Strategy.PROACTIVE_EXPLICIT, network=network)
    pair.load(0.010, until=pair.now + 1.0)
    pair.drive(limit_s=0.5)
    pair.move(Strategy.PROACTIVE_EXPLICIT, downtime_s=0.3, waiting_room=True)
    pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=5.0)
    assert pair.client._loss._rtt_smoothed < 0.018 + 0.010 + 0.001
    assert pair.client._loss._rtt_min >= 0.018
    pair.drive(limit_s=3.0)
    assert not pair.client._role._answerable


def test_the_start_delay_is_random_within_its_limit():
    seen = set()
    for seed in range(3):
        config = ExtensionConfig(timings=Timings(start_delay_max_s=0.1))
        pair = Pair(client=config, seed=seed)
        pair.handshake()
        pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 500, False, pair.now)
        pair.drive(limit_s=0.3)
        announced, _ = pair.first(MigrationAnnounced)
        started, _ = pair.first(ProbeStarted)
        assert 0 <= started - announced <= 0.101
        seen.add(round(started - announced, 6))
    assert len(seen) == 3


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_the_servers_state_survives_plain_values(strategy):
    pair = prepared(strategy)
    pair.server.prepare_migration(
        1, strategy, [EDGE_2] if RULES[strategy].carries_address else [], 100, False, pair.now
    )
    pair.drive(limit_s=0.1)
    pair.server.hold()
    values = pair.server.extension_state()
    other = Pair()
    other.handshake()
    other.server.restore_extension_state(values)
    assert other.server.extension_state() == values
    assert other.server.migration_state is ServerState.FROZEN
