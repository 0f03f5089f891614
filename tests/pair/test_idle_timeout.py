"""The idle timeout of a connection whose server stands still (RFC 9000 §10.1)."""

from __future__ import annotations

import pytest
from aioquic.quic.events import ConnectionTerminated

from quicferry.quic.snapshot import thaw
from quicferry.strategies import RULES, Strategy

from .harness import EDGE_1, EDGE_2, Pair, preferred_in

IDLE_S = 10.0


def prepared(strategy: Strategy) -> Pair:
    """A client with nothing to ask, whose server has announced a move."""
    pair = Pair(hand_off=True, idle_timeout_s=IDLE_S, preferred=preferred_in(strategy))
    pair.handshake(settle_s=0.5)
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
        pair.drive(limit_s=0.2)
    addresses = [EDGE_2] if RULES[strategy].carries_address else []
    pair.server.prepare_migration(1, strategy, addresses, 1000, False, pair.now)
    pair.drive(limit_s=0.3)
    return pair


def frozen(strategy: Strategy) -> Pair:
    """The same; its server stands still."""
    pair = prepared(strategy)
    pair.freeze(EDGE_2, forwarding=True, waiting_room=True)
    return pair


def ended(events: list) -> list[tuple[float, ConnectionTerminated]]:
    return [(at, event) for at, event in events if isinstance(event, ConnectionTerminated)]


@pytest.mark.parametrize("strategy", list(RULES))
def test_a_server_that_stands_still_for_half_the_idle_timeout_loses_nobody(strategy: Strategy) -> None:
    #: wire-format 9.2: idle timer MUST begin anew when it resumes
    pair = frozen(strategy)
    pair.drive(limit_s=IDLE_S / 2 - 0.2)
    pair.resume(1, strategy, EDGE_2, False)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=4.0)
    request = pair.request()
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)
    pair.assert_open()


@pytest.mark.parametrize("strategy", list(RULES))
def test_clients_of_a_server_that_stood_still_for_too_long_are_gone(strategy: Strategy) -> None:
    """They close silently, at their own time; the server ends an idle timeout after it has resumed."""
    pair = frozen(strategy)
    pair.drive(limit_s=2 * IDLE_S)
    (closed_at, why) = ended(pair.client_events)[0]
    assert why.reason_phrase == "Idle timeout"
    # one that looked in vain for half of it, and then asked at the old address, begins anew there
    assert IDLE_S - 1.0 <= closed_at - pair.frozen_at <= 1.5 * IDLE_S + 1.0
    pair.resume(1, strategy, EDGE_2, False)
    assert pair.server._close_event is None, "the time in which it was frozen does not count"
    pair.drive(limit_s=IDLE_S + 2.0)
    (server_ended_at, why) = ended(pair.server_events)[-1]
    assert why.reason_phrase == "Idle timeout"
    assert IDLE_S - 0.1 <= server_ended_at - pair.resumed_at <= IDLE_S + 1.0


@pytest.mark.parametrize("strategy", list(RULES))
def test_a_source_that_goes_on_has_a_full_idle_timeout(strategy: Strategy) -> None:
    #: wire-format 9.2: idle timer MUST begin anew when it resumes
    pair = prepared(strategy)
    source = pair.server
    pair.freeze(EDGE_2)
    pair.drive(limit_s=IDLE_S / 2 - 0.2)
    pair.server, pair.server_at = source, EDGE_1
    thaw(source, pair.now)
    source.abort_migration(1, "operator", pair.now)
    assert source.get_timer() is not None
    assert source._close_at == pytest.approx(pair.now + IDLE_S)
    request = pair.request()
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)
    pair.assert_open()
