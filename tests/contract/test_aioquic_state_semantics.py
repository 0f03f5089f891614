"""What the hand-off believes of aioquic's behaviour, beyond the names of its fields."""

from __future__ import annotations

import hashlib
import inspect

import pytest
from aioquic import tls
from aioquic.quic import connection, packet_builder, recovery, stream
from aioquic.quic.congestion import base, cubic, reno
from aioquic.quic.crypto import CryptoContext, CryptoPair

from tests.snapshot_support import World

#: first 12 digits of the SHA-256 of the source that ``state.py`` was written against
SOURCES = {
    "connection.Limit": (connection.Limit, "ee53b2572877"),
    "connection.QuicConnection.__init__": (connection.QuicConnection.__init__, "81aea715e344"),
    "connection.QuicConnection._discard_epoch": (connection.QuicConnection._discard_epoch, "124889133f0c"),
    "connection.QuicConnection._initialize": (connection.QuicConnection._initialize, "6a41681e541c"),
    "connection.QuicConnectionId": (connection.QuicConnectionId, "9257a29a172b"),
    "connection.QuicNetworkPath": (connection.QuicNetworkPath, "e099644f9dd5"),
    "crypto.CryptoContext": (CryptoContext, "2e18271cdbb7"),
    "crypto.CryptoPair": (CryptoPair, "b15d4150ed18"),
    "cubic.CubicCongestionControl": (cubic.CubicCongestionControl, "768b2b694f8f"),
    "reno.RenoCongestionControl": (reno.RenoCongestionControl, "1c85e3dec1a7"),
    "base.QuicRttMonitor": (base.QuicRttMonitor, "c94f3ef2e971"),
    "recovery.QuicPacketNumberWindow": (recovery.QuicPacketNumberWindow, "3dd3a30b9125"),
    "recovery.QuicPacketPacer": (recovery.QuicPacketPacer, "d845e32503fb"),
    "recovery.QuicPacketRecovery.__init__": (recovery.QuicPacketRecovery.__init__, "11dd9eddeac7"),
    "recovery.QuicPacketRecovery._on_packets_lost": (
        recovery.QuicPacketRecovery._on_packets_lost,
        "77a0ba759513",
    ),
    "recovery.QuicPacketSpace": (recovery.QuicPacketSpace, "c7cc186fce73"),
    "stream.QuicStreamReceiver.__init__": (stream.QuicStreamReceiver.__init__, "d7dd149186a6"),
    "stream.QuicStreamSender.__init__": (stream.QuicStreamSender.__init__, "a049a2be2f28"),
    "stream.QuicStreamSender.on_data_delivery": (stream.QuicStreamSender.on_data_delivery, "675e1c2812ea"),
    "tls.Context.__init__": (tls.Context.__init__, "bb8bb2f67ef5"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_the_source_is_the_one_that_was_read(name: str) -> None:
    thing, expected = SOURCES[name]
    assert hashlib.sha256(inspect.getsource(thing).encode()).hexdigest()[:12] == expected


def test_packet_numbers_are_written_in_two_bytes() -> None:
    """The gaps in packet numbers are chosen for this (RFC 9000 §17.1, appendix A.2)."""
    assert packet_builder.PACKET_NUMBER_SEND_SIZE == 2


def test_tls_keeps_the_secrets_of_generation_0_through_key_updates() -> None:
    world = World()
    world.connect()
    world.settle()
    assert world.server is not None
    pair = world.server._cryptos[tls.Epoch.ONE_RTT]
    first = (pair.send.secret, pair.recv.secret)
    assert (world.server.tls._enc_key, world.server.tls._dec_key) == first
    for _ in range(2):
        world.client.request_key_update()
        world.client.send_ping(1)
        world.flush()
        world.settle()
    assert (pair.send.secret, pair.recv.secret) != first
    assert (world.server.tls._enc_key, world.server.tls._dec_key) == first


def test_the_old_key_phase_is_gone_at_once_after_a_local_key_update() -> None:
    """Why a destination does not open with a key update (docs/adr/0005-hand-off-format.md).

    RFC 9001 §6.3 lets an endpoint keep the old keys for a while; aioquic does not. What the client had
    sent before it learned of the update would be lost, its probes of the new path among them.
    """
    world = World()
    world.connect()
    world.settle()
    assert world.server is not None
    world.client.send_ping(1)
    late = world.client.datagrams_to_send(world.now)
    world.server.request_key_update()
    world.server.send_ping(2)
    assert world.server.datagrams_to_send(world.server_now)
    before = world.server._spaces[tls.Epoch.ONE_RTT].largest_received_packet
    for data, _ in late:
        world.deliver("server", data)
    assert world.server._spaces[tls.Epoch.ONE_RTT].largest_received_packet == before
