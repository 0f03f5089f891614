"""Every strategy, as published and with the server first: what it costs, and in which order things happen."""

from __future__ import annotations

import pytest

from quicferry.quic import LossNoticed, MigrationCommitted, PathSwitched, PathValidated, PeerMigrated
from quicferry.quic._aioquic.seam import pto_s
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, ProbeOn, Strategy, speaks_first

from .harness import EDGE_1, EDGE_2, RTT_S, Pair, preferred_in

SLACK_S = 0.0035  # acknowledgement delay and pacing
PROBE_INTERVAL_S = 0.010
POOL_PROBE_INTERVAL_S = 0.020  # no downtime was announced
#: those of the standards probe at longer intervals, for which their documents have numbers of their own
EXTENDED_CLIENT_FIRST = [strategy for strategy in EXTENSION_STRATEGIES if not RULES[strategy].server_first]
CLIENT_FIRST = [strategy for strategy, rules in RULES.items() if not rules.server_first]
BY_LOSS = [strategy for strategy, rules in RULES.items() if rules.probe_on is ProbeOn.LOSS]


def moved(
    strategy: Strategy, server_first: bool, downtime_s: float, *, forwarding: bool = True, **keywords
) -> Pair:
    pair = Pair(preferred=preferred_in(strategy))
    pair.handshake()
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
    pair.load(0.010, until=pair.now + downtime_s + 1.5)
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=downtime_s, server_first=server_first, forwarding=forwarding, **keywords)
    pair.drive(limit_s=downtime_s + 2.0)
    return pair


@pytest.mark.parametrize("downtime_s", [0.02, 0.4])
@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_every_strategy_moves_the_server(strategy, server_first, downtime_s):
    pair = moved(strategy, server_first, downtime_s)
    assert pair.switched_to(EDGE_2)
    assert pair.answered()
    assert pair.first(MigrationCommitted, side="server") is not None
    pair.assert_open()
    assert pair.client.migration_state == "idle"


@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_the_path_is_validated_before_the_switch(strategy, server_first):
    #: RFC 9000 9: MUST perform path validation (Section 8.2) if it detects any change
    #: RFC 9000 9.6.1: SHOULD begin sending all future packets to the new server address
    #: RFC 9000 9.6.3: MUST abandon validation of the original address and migrate
    pair = moved(strategy, server_first, 0.2)
    validated = pair.first(PathValidated)
    switched = pair.first(PathSwitched)
    assert validated is not None and switched is not None
    assert validated[0] <= switched[0]
    assert switched[1] == PathSwitched(EDGE_1, EDGE_2)
    to_new = [(t, data) for t, address, data in pair.up if address == EDGE_2]
    assert to_new, "nothing went to the new address"
    for t, data in to_new:
        if t < validated[0]:
            assert len(data) >= 1200


@pytest.mark.parametrize("strategy", EXTENDED_CLIENT_FIRST)
def test_a_client_that_asks_first_needs_a_probe_and_a_request(strategy):
    """The downtime is longer than a PTO: the loss was noticed before the server ran again."""
    pair = moved(strategy, False, 0.4, forwarding=False)
    overhead = pair.first_answer_after_move() - pair.resumed_at
    interval_s = POOL_PROBE_INTERVAL_S if strategy is Strategy.POOL else PROBE_INTERVAL_S
    assert overhead <= interval_s + 2 * RTT_S + SLACK_S


@pytest.mark.parametrize("strategy", CLIENT_FIRST)
def test_a_waiting_room_saves_half_a_probe(strategy):
    #: wire-format 9: SHOULD keep datagrams that come before the state does
    pair = moved(strategy, False, 0.4, forwarding=False, waiting_room=True)
    overhead = pair.first_answer_after_move() - pair.resumed_at
    assert overhead <= 1.5 * RTT_S + SLACK_S


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_a_server_that_speaks_first_needs_half_an_rtt(strategy):
    """What was asked before the move is answered by the first flight."""
    pair = moved(strategy, True, 0.2)
    overhead = pair.first_answer_after_move() - pair.resumed_at
    assert overhead <= RTT_S / 2 + SLACK_S


@pytest.mark.parametrize("strategy", EXTENDED_CLIENT_FIRST)
def test_what_waited_comes_in_with_the_client(strategy):
    """With the room and forwarding of the node agents, a client that probed meanwhile is answered at once."""
    pair = moved(strategy, False, 0.4)
    overhead = pair.first_answer_after_move() - pair.resumed_at
    assert overhead <= RTT_S / 2 + SLACK_S


@pytest.mark.parametrize("strategy", BY_LOSS)
def test_what_waited_does_not_speak_for_the_client(strategy):
    """A client that is to find out by loss does find out by loss, and then needs one probe."""
    pair = moved(strategy, False, 0.02)
    _, noticed = pair.first(LossNoticed)
    answered = pair.first_answer_after_move()
    first_from_new = min(t for t, address, _ in pair.down if address == EDGE_2)
    first_to_new = min(t for t, address, _ in pair.up if address == EDGE_2)
    assert first_from_new > first_to_new
    assert answered - pair.resumed_at <= noticed.pto_s + 1.1 * RTT_S


@pytest.mark.parametrize("strategy", BY_LOSS)
def test_silence_costs_one_pto_however_often_the_client_sends(strategy):
    pair = moved(strategy, False, 0.02, forwarding=False)
    noticed = pair.first(LossNoticed)
    assert noticed is not None
    _, event = noticed
    assert event.silent_s <= event.pto_s + 0.001
    validated_at, _ = pair.first(PathValidated)
    assert validated_at - pair.resumed_at <= event.pto_s + 1.1 * RTT_S
    overhead = pair.first_answer_after_move() - pair.resumed_at
    assert overhead <= event.pto_s + 2 * RTT_S + POOL_PROBE_INTERVAL_S + SLACK_S


@pytest.mark.parametrize("server_first", [False, True])
@pytest.mark.parametrize("strategy", list(Strategy))
def test_who_restarts_the_traffic(strategy, server_first):
    pair = moved(strategy, server_first, 0.2, forwarding=False)
    from_new = [t for t, address, _ in pair.down if address == EDGE_2]
    to_new = [t for t, address, _ in pair.up if address == EDGE_2 and t >= pair.prepared_at]
    if speaks_first(strategy, server_first):
        assert from_new[0] == pair.resumed_at
        assert pair.first(PeerMigrated) is not None
    else:
        assert from_new[0] >= min(t for t in to_new) + RTT_S / 2
        assert from_new[0] > pair.resumed_at
    if RULES[strategy].probe_on is ProbeOn.NOTICE:
        assert to_new[0] < pair.frozen_at


def test_the_pto_is_that_of_rfc_9002():
    pair = Pair()
    pair.handshake()
    loss = pair.client._loss
    expected = loss._rtt_smoothed + max(4 * loss._rtt_variance, 0.001) + loss.max_ack_delay
    assert pto_s(pair.client) == pytest.approx(expected)
