"""A client asks its server to move; the server is free to refuse, and a request is never an order."""

from __future__ import annotations

import pytest

from quicferry.quic import (
    ErrorCode,
    ExtensionConfig,
    LocalError,
    MigrationCommitted,
    MoveAnswered,
    MoveRequested,
    Reply,
)
from quicferry.quic.asking import Asked
from quicferry.quic.client import ClientRole
from quicferry.quic.request_wire import SmReply, SmRequest
from quicferry.quic.wire import Parameter, find_parameter
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, Strategy

from .harness import EDGE_2, Pair


def requests(pair: Pair) -> list[int]:
    return [event.request for _, event in pair.server_events if isinstance(event, MoveRequested)]


def answers(pair: Pair) -> list[Reply]:
    return [event.reply for event in pair.all(MoveAnswered)]


def connected(**keywords) -> Pair:
    pair = Pair(**keywords)
    pair.handshake()
    return pair


def asked(pair: Pair) -> int:
    number = pair.client.ask_for_move()
    assert pair.drive(lambda: number in requests(pair), limit_s=1.0)
    return number


@pytest.mark.parametrize("hand_off", [False, True])
def test_a_request_that_is_repeated_is_handed_on_once(hand_off):
    """Its acknowledgement was lost, or somebody doubles it: who decides would order a second move."""
    #: wire-format 4.6: MUST NOT take for a request of its own
    pair = connected(hand_off=hand_off)
    pair.drive(limit_s=1.2)
    number = asked(pair)
    for _ in range(3):
        pair.client._role.send_control(SmRequest(request=number))
    pair.drive(limit_s=0.3)
    assert requests(pair) == [number]
    pair.move(Strategy.SYMMETRIC, downtime_s=0.05)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=2.0)
    pair.client._role.send_control(SmRequest(request=number))
    pair.drive(limit_s=0.3)
    assert requests(pair) == [number]
    assert pair.server.open_request == number
    pair.server.answer_request(number, Reply.ACCEPTED)
    pair.client._role.send_control(SmRequest(request=number))
    pair.drive(limit_s=0.3)
    assert (requests(pair), answers(pair)) == ([number], [Reply.ACCEPTED])
    pair.assert_open()


@pytest.mark.parametrize("reply", Reply)
def test_the_server_is_free_in_its_answer(reply):
    pair = connected()
    number = asked(pair)
    assert answers(pair) == []
    pair.server.answer_request(number, reply)
    pair.drive(limit_s=0.5)
    assert answers(pair) == [reply]
    assert pair.client.migration_state == "idle"  # a reply moves nobody
    pair.assert_open()


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_a_move_that_the_client_has_asked_for(strategy):
    pair = connected()
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
    pair.load(0.010, until=pair.now + 1.0)
    number = asked(pair)
    pair.server.answer_request(number, Reply.ACCEPTED)
    pair.move(strategy, downtime_s=0.1)
    pair.drive(limit_s=3.0)
    assert answers(pair) == [Reply.ACCEPTED]
    assert pair.switched_to(EDGE_2)
    assert pair.first(MigrationCommitted, side="server") is not None
    assert pair.answered()


def test_who_decides_may_take_its_time_and_the_client_asks_no_second_time():
    #: wire-format 4.6: MUST NOT send another one before the last was answered
    pair = connected()
    number = asked(pair)
    with pytest.raises(LocalError, match="has not answered"):
        pair.client.ask_for_move()
    pair.drive(limit_s=5.0)
    pair.server.answer_request(number, Reply.NOWHERE)
    pair.drive(limit_s=0.5)
    assert answers(pair) == [Reply.NOWHERE]
    assert asked(pair) == number + 1


def test_a_request_that_comes_too_soon_after_another_is_answered_by_itself():
    pair = connected()
    pair.server.answer_request(asked(pair), Reply.REFUSED)
    pair.drive(limit_s=0.1)
    pair.client.ask_for_move()
    pair.drive(limit_s=0.2)
    assert answers(pair) == [Reply.REFUSED, Reply.BUSY]
    assert requests(pair) == [1]
    pair.drive(limit_s=1.5)
    assert asked(pair) == 3


@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_lost_frame_is_sent_again(direction):
    pair = connected()
    until = pair.now + 0.2
    pair.network.drop = lambda data, address, way: way == direction and pair.now < until
    number = pair.client.ask_for_move()
    assert pair.drive(lambda: number in requests(pair), limit_s=3.0)
    pair.server.answer_request(number, Reply.ACCEPTED)
    pair.drive(limit_s=2.0)
    assert answers(pair) == [Reply.ACCEPTED]
    assert requests(pair) == [number]


def test_an_answer_that_is_lost_in_the_freeze_comes_from_the_destination():
    """It crosses with the connection: the client is not left without one."""
    pair = connected(hand_off=True)
    pair.load(0.010, until=pair.now + 1.0)
    number = asked(pair)
    pair.network.drop = lambda data, address, direction: direction == "down"
    pair.server.answer_request(number, Reply.ACCEPTED)
    pair.flush()
    pair.server.prepare_migration(1, Strategy.SYMMETRIC, [], 100, True, pair.now)
    pair.freeze(EDGE_2)
    pair.network.drop = None
    pair.after(0.1, lambda: pair.resume(1, Strategy.SYMMETRIC, EDGE_2, True))
    pair.drive(limit_s=3.0)
    assert pair.switched_to(EDGE_2)
    assert answers(pair) == [Reply.ACCEPTED]


def test_a_request_that_is_still_open_is_answered_by_the_destination():
    pair = connected(hand_off=True)
    number = asked(pair)
    pair.server.prepare_migration(1, Strategy.SYMMETRIC, [], 100, True, pair.now)
    pair.freeze(EDGE_2)
    pair.after(0.1, lambda: pair.resume(1, Strategy.SYMMETRIC, EDGE_2, True))
    pair.drive(limit_s=1.0)
    pair.server.answer_request(number, Reply.BUSY)
    pair.drive(limit_s=1.0)
    assert answers(pair) == [Reply.BUSY]


def test_a_client_cannot_ask_who_does_not_listen():
    for server in ("stock", ExtensionConfig(strategies=frozenset({Strategy.ALTERNATIVE_ADDRESS}))):
        pair = connected(server=server)
        assert not pair.client.may_ask
        with pytest.raises(LocalError, match="cannot be asked"):
            pair.client.ask_for_move()


def test_a_server_cannot_ask():
    pair = connected()
    with pytest.raises(LocalError, match="only a client"):
        pair.server.ask_for_move()


def test_the_flag_is_answered_only_where_it_was_offered(monkeypatch):
    plain = Parameter(strategies=frozenset({Strategy.SYMMETRIC})).encode()
    monkeypatch.setattr(ClientRole, "own_parameter", lambda self: plain)
    pair = Pair()
    pair.handshake()
    answer = find_parameter(pair.server._role.own_parameter())
    assert answer is not None
    assert Parameter.decode(answer).flags == 0
    assert not pair.client.may_ask
    pair.client._role.send_control(SmRequest(request=1))
    pair.drive(limit_s=0.5)
    assert pair.server._close_event.error_code == ErrorCode.PROTOCOL_VIOLATION


@pytest.mark.parametrize("frame", [SmRequest(request=1), SmReply(request=1, reply=Reply.ACCEPTED)])
def test_from_the_wrong_side_it_is_a_protocol_violation(frame):
    pair = connected()
    sender, receiver = (
        (pair.server, pair.client) if isinstance(frame, SmRequest) else (pair.client, pair.server)
    )
    sender._role.send_control(frame)
    pair.drive(limit_s=0.5)
    assert receiver._close_event.error_code == ErrorCode.PROTOCOL_VIOLATION


@pytest.mark.parametrize(
    "frames",
    [
        [SmReply(request=2, reply=Reply.ACCEPTED)],
        [SmReply(request=1, reply=Reply.ACCEPTED), SmReply(request=1, reply=Reply.BUSY)],
    ],
)
def test_an_answer_that_cannot_be_is_a_protocol_violation(frames):
    pair = connected()
    asked(pair)
    for frame in frames:
        pair.server._role._control.append(frame.encode())
        pair.server._role.asked._latest = frame.request
        pair.drive(limit_s=0.1)
    assert pair.client._close_event.error_code == ErrorCode.PROTOCOL_VIOLATION


def test_answering_twice_says_it_once():
    records = Asked(ExtensionConfig().timings)
    records.agreed = True
    assert records.take(SmRequest(request=1), 10.0) is None
    assert records.is_open == 1
    assert records.answer(1, Reply.REFUSED) == SmReply(request=1, reply=Reply.REFUSED)
    assert records.answer(1, Reply.ACCEPTED) is None
    assert records.take(SmRequest(request=1), 20.0) is None
    assert records.is_open is None
