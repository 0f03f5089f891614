"""A restored connection is the one that was frozen, field by field; key updates and odd states included."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic import events
from aioquic.quic.connection import QuicConnection
from aioquic.tls import CipherSuite

from quicferry.quic._aioquic import state_fields
from quicferry.quic._aioquic.state_fields import Fate
from quicferry.quic.snapshot import (
    PACKET_NUMBER_LEASE,
    connection_ids,
    freeze,
    restore_snapshot,
    take_snapshot,
    thaw,
)
from tests.snapshot_support import World, pattern

#: moved attributes that hold a time; they are compared as the time to or since ``now``
TIMES = {
    "_close_at",
    "_congestion_recovery_start_time",
    "_rtt_first_sample_time",
    "_sample_time",
    "_t_epoch",
    "_time_of_last_sent_ack_eliciting_packet",
    "ack_at",
    "largest_received_time",
    "last_ack",
    "validation_deadline",
}


def content(thing: Any, now: float) -> Any:
    """What was to move, as plain values that can be compared between processes."""
    if isinstance(thing, dict):
        return {key: content(value, now) for key, value in thing.items()}
    if isinstance(thing, list | tuple | deque):
        return [content(value, now) for value in thing]
    fates = state_fields.FATES.get(type(thing).__name__)
    if fates is None:
        return thing
    found: dict[str, Any] = {"class": type(thing).__name__}
    for name, fate in fates.items():
        if fate is not Fate.MOVED:
            continue
        value = getattr(thing, name)
        if name in ("_cryptos", "_crypto_streams", "_spaces"):
            value = value[tls.Epoch.ONE_RTT]
        if name in TIMES and value not in (None, 0.0):
            value = round(value - now, 6)
        elif name == "_received":
            value = {number for number in value if number >= thing._lower}
        found[name] = content(value, now)
    return found


def busy(algorithm: str, cipher: CipherSuite) -> World:
    options: dict[str, Any] = {"congestion_control_algorithm": algorithm, "cipher_suites": [cipher]}
    world = World(loss=0.1, jitter_s=0.003, seed=11, server_options=options)
    world.connect()
    for number in range(30):
        world.get(20_000, number)
    world.ask(pattern(60_000, 1))
    world.client.send_stream_data(world.client.get_next_available_stream_id(is_unidirectional=True), b"open")
    world.flush()
    world.run(lambda: world.delivered > 150)
    return world


@pytest.mark.parametrize("algorithm", ["reno", "cubic"])
@pytest.mark.parametrize("cipher", list(CipherSuite)[:3])
def test_every_moved_field_arrives(algorithm: str, cipher: CipherSuite) -> None:
    world = busy(algorithm, cipher)
    source = world.server
    assert source is not None
    source.send_datagram_frame(b"waiting datagram")
    source.send_ping(77)
    source.send_stream_data(source.get_next_available_stream_id(is_unidirectional=True), b"x" * 500)
    now = world.server_now
    freeze(source, now)
    data = take_snapshot(source, now, epoch=1)
    there = now + 12_345.0
    restored = restore_snapshot(data, configuration=world.configuration, build=QuicConnection, now=there)
    assert restored._packet_number == source._packet_number + PACKET_NUMBER_LEASE
    restored._packet_number = source._packet_number
    assert connection_ids(restored) == connection_ids(source)
    assert content(restored, there) == content(source, now)


def test_the_comparison_above_sees_what_is_wrong() -> None:
    world = busy("reno", CipherSuite.AES_128_GCM_SHA256)
    assert world.server is not None
    before = content(world.server, world.server_now)
    world.server._spaces[tls.Epoch.ONE_RTT].received_packets._received.clear()
    assert content(world.server, world.server_now) != before


@pytest.mark.parametrize("updates", [1, 2, 3])
@pytest.mark.parametrize("cipher", list(CipherSuite)[:3])
def test_hops_after_key_updates_by_both_ends(updates: int, cipher: CipherSuite) -> None:
    """The header protection keys are those of generation 0 for ever (RFC 9001 §6)."""
    world = World(server_options={"cipher_suites": [cipher]})
    world.connect()
    for number in range(updates):
        assert world.server is not None
        (world.client if number % 2 else world.server).request_key_update()
        stream = world.get(3000, number)
        world.flush()
        world.run(lambda stream=stream: stream in world.finished)  # type: ignore[misc]  # binds the loop value
        world.settle()
        world.hop(downtime_s=0.01)
        world.run(lambda: world.down_until is None)
    assert world.server is not None
    assert world.server._cryptos[tls.Epoch.ONE_RTT].recv.key_phase == updates % 2
    world.client.request_key_update()
    stream = world.get(3000, 9)
    world.flush()
    world.run(lambda: stream in world.finished)


def test_a_requested_key_update_is_done_by_the_destination() -> None:
    world = World()
    world.connect()
    world.settle()
    assert world.server is not None
    world.server.request_key_update()
    world.hop()
    stream = world.get(3000, 9)
    world.flush()
    world.run(lambda: stream in world.finished)
    assert world.server._cryptos[tls.Epoch.ONE_RTT].send.key_phase == 1
    assert world.client._cryptos[tls.Epoch.ONE_RTT].recv.key_phase == 1


def test_events_that_the_service_did_not_take_are_taken_at_the_destination() -> None:
    world = World()
    world.connect()
    world.settle()
    source = world.server
    assert source is not None
    stream = world.ask(b"GET 500 4")
    for data, _ in world.client.datagrams_to_send(world.now):
        source.receive_datagram(data, ("10.0.0.2", 40000), world.server_now)
    assert [type(event) for event in source._events] == [events.StreamDataReceived]
    world.hop()
    assert source.next_event() is None  # else the service would get it at both ends
    world.run(lambda: stream in world.finished)
    assert world.answers[stream] == pattern(500, 4)


def test_resets_and_stops_that_were_in_flight_reach_the_client() -> None:
    world = World()
    world.connect()
    stream = world.get(200_000, 1)
    world.client.send_stream_data(4, b"never finished")
    world.flush()
    world.run(lambda: world.delivered > 30)
    source = world.server
    assert source is not None
    source.reset_stream(stream, 17)
    source.stop_stream(4, 18)
    world.flush()
    world._queue.clear()  # all that was on its way is lost
    world.hop()
    world.settle(2.0)
    assert events.StreamReset(error_code=17, stream_id=stream) in world.events
    assert events.StopSendingReceived(error_code=18, stream_id=4) in world.events


def test_pings_and_datagrams_that_waited_reach_the_client() -> None:
    world = World()
    world.connect()
    world.settle()
    source = world.server
    assert source is not None
    source.send_datagram_frame(b"unreliable")
    source.send_ping(5)
    world.hop()
    world.settle(1.0)
    assert events.DatagramFrameReceived(data=b"unreliable") in world.events


def test_an_acknowledgement_that_was_in_flight_is_given_again() -> None:
    """Else the client would find out by a probe timeout that its data arrived."""
    world = World()
    world.connect()
    world.settle()
    world.client.send_stream_data(0, b"part of a request")
    world.flush()
    world.run(lambda: bool(world.server and world.server._streams), limit_s=1)
    world.now += 0.002
    assert world.server is not None
    assert world.server.datagrams_to_send(world.server_now)  # the acknowledgement, which is lost
    world._queue.clear()
    world.hop(downtime_s=0.001)
    world.run(lambda: world.client._loss.bytes_in_flight == 0, limit_s=0.015)
    assert world.client._loss._pto_count == 0


def test_the_idle_timeout_goes_on_where_it_was() -> None:
    world = World(server_options={"idle_timeout": 30.0})
    world.connect()
    world.settle()
    world.now += 20.0
    source = world.server
    assert source is not None and source._close_at is not None
    left = source._close_at - world.server_now
    world.hop()
    assert world.server is not None and world.server._close_at is not None
    assert world.server._close_at - world.server_now == pytest.approx(left, abs=0.05)
    assert left < 11.0


def test_the_validation_of_a_path_goes_on_at_the_destination() -> None:
    """The client's address changed just before the server moved (RFC 9000 §9.3)."""
    world = World()
    world.connect()
    world.settle()
    world.client_address = ("10.0.0.9", 41000)
    stream = world.get(100_000, 2)
    world.flush()
    world.run(lambda: bool(world.server and world.server._network_paths[0].addr == world.client_address))
    assert world.server is not None
    assert not world.server._network_paths[0].is_validated
    assert world.server._network_paths[0].validation_deadline is not None
    world._queue.clear()  # the challenge is lost
    world.hop()
    path = world.server._network_paths[0]
    assert path.addr == world.client_address
    assert path.validation_deadline is not None and 0 < path.validation_deadline - world.server_now < 5
    world.run(lambda: stream in world.finished)
    assert path.is_validated
    assert world.answers[stream] == pattern(100_000, 2)


def test_events_that_the_service_did_not_take_are_there_after_a_thaw() -> None:
    world = World()
    world.connect()
    world.settle()
    source = world.server
    assert source is not None
    world.ask(b"GET 500 4")
    for data, _ in world.client.datagrams_to_send(world.now):
        source.receive_datagram(data, ("10.0.0.2", 40000), world.server_now)
    freeze(source, world.server_now)
    assert source.next_event() is None
    thaw(source, world.server_now)
    assert isinstance(source.next_event(), events.StreamDataReceived)
