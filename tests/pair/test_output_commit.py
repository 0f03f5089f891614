"""Until the commit is recorded, the client is told nothing that a source which goes on would not know."""

from __future__ import annotations

import copy

import pytest
from aioquic import tls
from aioquic.quic import events as quic_events

from quicferry.quic import PathSwitched
from quicferry.quic.snapshot import freeze, restore_snapshot, take_snapshot
from quicferry.quic.wire import SmAddress
from quicferry.strategies import RULES, strategies
from simulation.protocol.mover import forked

from .harness import EDGE_1, EDGE_2, Pair
from .test_lease import EXTENDED

SERVED_S = 0.6


def ready(strategy: str, **keywords: bool) -> Pair:
    pair = Pair(**keywords)
    pair.handshake(settle_s=1.0)
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
        pair.drive(limit_s=0.2)
    return pair


def prepare(pair: Pair, strategy: str, epoch: int) -> None:
    addresses = [EDGE_2] if RULES[strategy].carries_address else []
    pair.server.prepare_migration(epoch, strategy, addresses, 100, True, pair.now)
    pair.drive(limit_s=0.1)


def serve_at_destination(pair: Pair, strategy: str, epoch: int, *, process: bool):
    """Freezes, and lets a destination serve that has not heard of the commit; returns the source."""
    source = pair.server
    source.hold()
    if process:
        there = forked(source)
    else:
        freeze(source, pair.now)
        data = take_snapshot(source, pair.now, epoch=epoch)
        there = restore_snapshot(
            data, configuration=pair._server_configuration, build=EXTENDED, now=pair.now, epoch=epoch
        )
    pair.server, pair.server_at = there, EDGE_2
    there.resume(epoch, strategy, True, pair.now, address=EDGE_2, withhold=True)
    pair.flush()
    return source


@pytest.mark.parametrize("process", [False, True], ids=["hand-off", "process"])
@pytest.mark.parametrize("strategy", strategies())
def test_three_moves_are_taken_back_in_a_row_and_a_fourth_stays(strategy, process):
    """Requests, uploads and pushed data at each destination: nothing is forgotten or doubled."""
    pair = ready(strategy)
    for epoch in (1, 2, 3):
        prepare(pair, strategy, epoch)
        uploaded = {stream: bytes(data) for stream, data in pair.uploaded.items()}
        source = serve_at_destination(pair, strategy, epoch, process=process)
        requests = [pair.request(size) for size in (20, 5000)]
        pushed = pair.server.get_next_available_stream_id(is_unidirectional=True)
        pair.server.send_stream_data(pushed, b"only the destination says this %d" % epoch)
        pair.server.send_datagram_frame(b"nor this")
        pair.drive(limit_s=SERVED_S)
        assert all(request.answered_at is None for request in requests)
        assert pushed not in pair.received
        pair.uploaded = {stream: bytearray(data) for stream, data in uploaded.items()}
        pair.go_on(source, EDGE_1, epoch, thawed=not process)
        said = b"the source %d" % epoch
        pair.server.send_stream_data(pushed, said, end_stream=True)
        assert pair.drive(pair.answered, limit_s=10.0)
        pair.drive(limit_s=1.1)
        assert bytes(pair.received[pushed]) == said
    prepare(pair, strategy, 4)
    serve_at_destination(pair, strategy, 4, process=process)
    request = pair.request()
    pair.after(0.004, lambda: pair.server.record_commit())
    assert pair.drive(lambda: request.answered_at is not None, limit_s=5.0)
    assert pair.switched_to(EDGE_2)
    pair.assert_open()


@pytest.mark.parametrize("strategy", strategies())
def test_what_was_held_back_leaves_with_the_commit(strategy):
    #: wire-format 9: MUST NOT be told anything that a source which goes on
    pair = ready(strategy)
    prepare(pair, strategy, 1)
    serve_at_destination(pair, strategy, 1, process=False)
    request = pair.request(3000)
    pair.drive(limit_s=SERVED_S)
    assert request.answered_at is None
    pair.server.record_commit()
    committed_at = pair.now
    assert pair.drive(pair.answered, limit_s=1.0)
    assert request.answered_at is not None and request.answered_at - committed_at < 0.010
    pair.drive(limit_s=1.0)
    kept = len(pair.client._role._kept._ids)
    assert len(pair.client._peer_cid_available) + kept == 7, "the server has given new ones"
    assert kept == 0 or not RULES[strategy].extended, "that of the old path is retired"


def test_data_that_was_written_before_the_freeze_does_not_wait_for_the_commit():
    pair = ready("symmetric")
    pair.response_size = 400_000
    pair.request()
    pair.drive(limit_s=0.025)
    prepare_at = pair.now
    pair.server.prepare_migration(1, "symmetric", [], 100, True, prepare_at)
    source = serve_at_destination(pair, "symmetric", 1, process=False)
    before = sum(map(len, pair.received.values()))
    pair.drive(limit_s=0.010)
    in_flight = copy.copy(pair.down)
    pair.drive(limit_s=0.2)
    assert sum(map(len, pair.received.values())) > before + 10_000
    assert source is not pair.server and in_flight


def test_the_destinations_place_takes_no_number_from_the_source():
    """Symmetric: nobody has named the destination. The source names another place with the next number."""
    pair = ready("symmetric")
    prepare(pair, "symmetric", 1)
    source = serve_at_destination(pair, "symmetric", 1, process=False)
    pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=1.0)
    pair.go_on(source, EDGE_1, 1)
    pair.drive(limit_s=1.2)
    assert [event.new for event in pair.all(PathSwitched)] == [EDGE_2, EDGE_1]
    source.prepare_migration(2, "proactive-explicit", [("10.0.3.2", 4433)], 100, False, pair.now)
    pair.drive(limit_s=0.2)
    assert pair.client._role._book.known == {1: SmAddress(sequence=1, ipv4=("10.0.3.2", 4433))}
    assert not any(isinstance(e, quic_events.ConnectionTerminated) for _, e in pair.client_events)
    pair.assert_open()


@pytest.mark.parametrize("process", [False, True], ids=["hand-off", "process"])
@pytest.mark.parametrize("goes_on", [False, True], ids=["commit", "fence"])
def test_a_key_update_of_the_client_is_followed_in_sending_with_the_commit(
    process: bool, goes_on: bool
) -> None:
    pair = ready("symmetric", hand_off=True)
    prepare(pair, "symmetric", 1)
    before = pair.server._cryptos[tls.Epoch.ONE_RTT].send.secret
    source = serve_at_destination(pair, "symmetric", 1, process=process)
    pair.client.request_key_update()
    pair.request()
    pair.drive(limit_s=SERVED_S)
    keys = pair.server._cryptos[tls.Epoch.ONE_RTT]
    assert keys.recv.key_phase == 1, "what the client sends is read"
    assert (keys.send.key_phase, keys.send.secret) == (0, before)
    if goes_on:
        pair.go_on(source, EDGE_1, 1, thawed=not process)
    else:
        pair.server.record_commit()
        pair.flush()
    assert pair.drive(pair.answered, limit_s=5.0)
    keys = pair.server._cryptos[tls.Epoch.ONE_RTT]
    assert keys.send.key_phase == keys.recv.key_phase == 1
    assert keys.send.secret == pair.client._cryptos[tls.Epoch.ONE_RTT].recv.secret
