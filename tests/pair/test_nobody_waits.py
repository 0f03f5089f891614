"""A server that is not to speak first speaks after one PTO: nobody waits for ever, whatever was said."""

from __future__ import annotations

import pytest

from quicferry.quic import ExtensionConfig, MigrationReady, Result
from quicferry.quic._aioquic.seam import pto_s
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, Strategy

from .harness import EDGE_2, RTT_S, Pair, edge

CLIENT_FIRST = [strategy for strategy in EXTENSION_STRATEGIES if not RULES[strategy].server_first]
EXPLICIT = [strategy for strategy in EXTENSION_STRATEGIES if RULES[strategy].carries_address]
DOWNTIME_S = 0.1


def ready(strategy: Strategy, **keywords) -> Pair:
    pair = Pair(hand_off=True, idle_timeout_s=30.0, **keywords)
    pair.handshake(settle_s=1.0)
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
    pair.drive(limit_s=1.0)
    return pair


def moved(pair: Pair, strategy: Strategy, *, forwarding: bool = True) -> float:
    """Freezes now, resumes later; returns when the server spoke, counted from then."""
    patience_s = pto_s(pair.server)
    pair.freeze(EDGE_2, forwarding=forwarding, waiting_room=forwarding)
    pair.after(DOWNTIME_S, lambda: pair.resume(1, strategy, EDGE_2, False))
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=5.0), "nobody restarted the traffic"
    spoke_at = next(t for t, address, _ in pair.down if address == EDGE_2)
    assert spoke_at - pair.resumed_at <= patience_s + 0.001
    return spoke_at - pair.resumed_at


def told(pair: Pair, strategy: Strategy, *, settle_s: float, epoch: int = 1) -> Result | None:
    addresses = [EDGE_2] if RULES[strategy].carries_address else []
    pair.server.prepare_migration(epoch, strategy, addresses, 1000 * DOWNTIME_S, False, pair.now)
    pair.drive(limit_s=settle_s)
    results = [e.result for _, e in pair.server_events if isinstance(e, MigrationReady)]
    return results[-1] if results else None


@pytest.mark.parametrize("strategy", CLIENT_FIRST)
def test_a_client_with_nothing_in_flight_finds_out(strategy):
    pair = ready(strategy)
    assert told(pair, strategy, settle_s=0.5) is Result.OK
    moved(pair, strategy)


@pytest.mark.parametrize("strategy", CLIENT_FIRST)
def test_a_client_that_asks_is_not_spoken_to_before(strategy):
    """As published, the client restarts the traffic: the server's own word comes after a PTO of silence."""
    pair = ready(strategy)
    told(pair, strategy, settle_s=0.5)
    pair.load(0.010, until=pair.now + 2.0)
    pair.drive(limit_s=0.2)
    moved(pair, strategy)
    first_up = next(t for t, address, _ in pair.up if address == EDGE_2)
    first_down = next(t for t, address, _ in pair.down if address == EDGE_2)
    assert first_up + RTT_S / 2 <= first_down
    assert pair.drive(pair.answered, limit_s=5.0)


@pytest.mark.parametrize("silent_s", [0.0, 0.3])
@pytest.mark.parametrize("strategy", CLIENT_FIRST)
def test_a_client_that_only_downloads_follows(strategy, silent_s):
    pair = ready(strategy)
    told(pair, strategy, settle_s=silent_s)
    pair.response_size = 1_000_000
    pair.request()
    pair.drive(limit_s=0.08)
    moved(pair, strategy)
    assert pair.drive(pair.answered, limit_s=10.0)
    assert len(pair.received[0]) == 1_000_000


@pytest.mark.parametrize(
    "known",
    [{strategy} for strategy in EXPLICIT] + [set(EXTENSION_STRATEGIES)],
    ids=lambda known: "+".join(sorted(known)),
)
def test_a_client_that_the_notice_never_reached_is_found(known):
    """It does not know the address either; the packet itself tells, as it is authentic."""
    strategy = next(s for s in EXPLICIT if s in known)
    pair = ready(strategy, client=ExtensionConfig(strategies=frozenset(known)))
    pair.network.drop = lambda data, address, direction: direction == "down"
    told(pair, strategy, settle_s=0.0)
    pair.flush()
    pair.network.drop = None
    request = pair.request()
    moved(pair, strategy)
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)


@pytest.mark.parametrize("strategy", EXPLICIT)
def test_a_busy_client_is_found(strategy):
    pair = ready(strategy)
    assert told(pair, strategy, settle_s=0.1) is Result.OK
    assert told(pair, strategy, settle_s=0.1, epoch=2) is Result.BUSY
    moved(pair, strategy)


@pytest.mark.parametrize("strategy", EXPLICIT)
def test_a_refusing_client_is_found(strategy):
    pair = ready(strategy, client=ExtensionConfig(accept_moves=False))
    assert told(pair, strategy, settle_s=0.1) is Result.REFUSED
    moved(pair, strategy)


@pytest.mark.parametrize("strategy", CLIENT_FIRST)
def test_a_key_update_of_which_the_client_has_not_heard(strategy):
    """The destination cannot read what the client says in the old phase, so it must speak."""
    pair = ready(strategy)
    pair.request()
    pair.drive(limit_s=0.3)
    told(pair, strategy, settle_s=0.15)
    pair.server.request_key_update()
    pair.server.send_ping(1)
    pair.network.drop = lambda data, address, direction: direction == "down"
    pair.flush()
    pair.network.drop = None
    request = pair.request()
    moved(pair, strategy)
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)


@pytest.mark.parametrize("strategy", CLIENT_FIRST)
def test_the_word_of_a_mute_server_may_be_lost(strategy):
    pair = ready(strategy)
    told(pair, strategy, settle_s=0.5)
    dropped: list[bytes] = []

    def drop(data: bytes, address, direction: str) -> bool:
        if direction == "down" and address == EDGE_2 and len(dropped) < 2:
            dropped.append(data)
            return True
        return False

    pair.network.drop = drop
    moved(pair, strategy)
    assert len(dropped) == 2


@pytest.mark.parametrize("strategy", CLIENT_FIRST)
def test_connection_close_leaves_a_mute_server_at_once(strategy):
    pair = ready(strategy)
    told(pair, strategy, settle_s=0.5)
    pair.freeze(EDGE_2)
    pair.drive(limit_s=DOWNTIME_S)
    pair.resume(1, strategy, EDGE_2, False)
    closed_at = pair.now
    pair.server.close(error_code=7, reason_phrase="restarting")
    pair.flush()
    assert pair.down[-1][:2] == (closed_at, EDGE_2)
    pair.drive(limit_s=RTT_S)
    assert pair.client._close_event is not None
    assert pair.client._close_event.error_code == 7


@pytest.mark.parametrize("strategy", CLIENT_FIRST)
def test_a_server_that_is_moved_again_before_it_spoke(strategy):
    pair = ready(strategy)
    told(pair, strategy, settle_s=0.5)
    pair.freeze(EDGE_2)
    pair.resume(1, strategy, EDGE_2, False)
    pair.drive(limit_s=0.005)
    pair.freeze(edge(3))
    pair.drive(limit_s=0.005)
    pair.resume(2, strategy, edge(3), False)
    assert pair.drive(lambda: pair.switched_to(edge(3)), limit_s=3.0)
    request = pair.request()
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)
