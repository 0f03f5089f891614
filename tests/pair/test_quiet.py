"""The short way of a packet does what upstream's does: the same datagrams, and the same state after each."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aioquic import tls
from aioquic._crypto import CryptoError
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.tls import CipherSuite

from quicferry.quic._aioquic import connection as hooked
from quicferry.quic._aioquic.keys import RetainingPair, ShortHeaderContext, retain_former_keys

from .harness import CLIENT, EDGE_1, Pair

Script = Callable[[Any, Any, float], None]
WATCHED = (
    "_ack_eliciting_sent_since_receipt",
    "_close_at",
    "_packet_number",
    "_pacing_at",
    "_remote_max_data_used",
    "_spin_bit",
    "_spin_highest_pn",
    "_state",
)


@dataclass
class Life:
    """What both ends sent and were told, from the handshake on."""

    seed: int
    loss: float
    trace: list[Any] = field(default_factory=list)
    short: int = 0


def live(life: Life, script: Script) -> list[Any]:
    pair = Pair()
    pair.drive(limit_s=0.5)
    chance, now = random.Random(life.seed), pair.now
    client, server = pair.client, pair.server
    for each in (client, server):
        each._loss._cc.congestion_window = 14_000  # the handshake's signatures differ in length
        each._loss._pacer.update_rate(congestion_window=14_000, smoothed_rtt=each._loss._rtt_smoothed)
        each._loss._pacer.bucket_time = 0.0
    begun = now
    ends = ((client, server, CLIENT), (server, client, EDGE_1))
    for step in range(260):
        script(client, server, now - begun)
        for sender, receiver, address in ends:
            due = sender.get_timer()
            if due is not None and due <= now:
                sender.handle_timer(now)
            for data, _ in sender.datagrams_to_send(now):
                life.trace.append((step, sender is client, len(data)))
                if chance.random() >= life.loss:
                    receiver.receive_datagram(data, address, now)
                if chance.random() < life.loss:
                    receiver.receive_datagram(data, address, now)  # a duplicate
            while (event := receiver.next_event()) is not None:
                life.trace.append((step, type(event).__name__, len(getattr(event, "data", b""))))
        life.trace.append([state(each, begun) for each in (client, server)])
        now += 0.005
    return life.trace


def state(connection: Any, begun: float) -> list[Any]:
    space = connection._spaces[tls.Epoch.ONE_RTT]
    values = [getattr(connection, name) for name in WATCHED]
    values[1] = round(values[1] - begun, 6)
    return [
        *values,
        [type(event).__name__ for event in connection._events],
        list(space.ack_queue),
        space.largest_received_packet,
        space.expected_packet_number,
        space.ack_at is None,
        sorted(space.sent_packets),
        connection._loss.bytes_in_flight,
        connection._loss.congestion_window,
        connection._local_max_data.used,
        [stream.stream_id for stream in connection._streams_queue],
    ]


def download(client: Any, server: Any, since: float) -> None:
    if since == 0:
        client.send_stream_data(0, b"go", True)
        server.send_stream_data(1, bytes(600_000), True)


def both_ways(client: Any, server: Any, since: float) -> None:
    if since == 0:
        client.send_stream_data(0, bytes(300_000), True)
        server.send_stream_data(1, bytes(300_000), True)
        server.send_stream_data(5, bytes(90_000), True)


def mixture(client: Any, server: Any, since: float) -> None:
    number = round(since / 0.005)
    if number % 10 == 0:
        client.send_stream_data(client.get_next_available_stream_id(), bytes(40 * number), True)
    if number % 40 == 7:
        server.send_stream_data(server.get_next_available_stream_id(), bytes(30_000), True)
    if number == 55:
        client.send_ping(1)
    if number in (80, 200):
        server.request_key_update()
    if number == 120:
        client.change_connection_id()
    if number == 160:
        server.reset_stream(server.get_next_available_stream_id() - 4, 7)
    if number == 250:
        client.close()


@pytest.mark.parametrize("script", [download, both_ways, mixture])
@pytest.mark.parametrize("loss", [0.0, 0.05])
def test_the_short_way_leads_where_upstreams_does(script, loss, monkeypatch):
    receive, taken = hooked.receive, []

    def counted(*arguments: Any) -> bool:
        done = receive(*arguments)
        taken.append(done)
        return done

    monkeypatch.setattr(hooked, "receive", counted)
    short = live(Life(seed=3, loss=loss), script)
    assert sum(taken) > len(taken) / 2 > 50
    monkeypatch.setattr(hooked, "quiet", lambda connection: None)
    taken.clear()
    assert live(Life(seed=3, loss=loss), script) == short
    assert not taken


def pairs(suite: CipherSuite) -> tuple[CryptoPair, CryptoPair]:
    """A pair of ours and one of upstream's, with the same keys in both directions."""
    ours, upstream = CryptoPair(), CryptoPair()
    for pair in (ours, upstream):
        for context in (pair.send, pair.recv):
            context.setup(
                cipher_suite=suite, secret=bytes(range(48)), version=int(QuicProtocolVersion.VERSION_1)
            )
    retain_former_keys(ours)
    assert isinstance(ours, RetainingPair) and isinstance(ours.send, ShortHeaderContext)
    return ours, upstream


@pytest.mark.parametrize(
    "suite",
    [
        CipherSuite.AES_128_GCM_SHA256,
        CipherSuite.AES_256_GCM_SHA384,
        CipherSuite.CHACHA20_POLY1305_SHA256,
    ],
)
def test_packet_protection_is_upstreams(suite):
    ours, upstream = pairs(suite)
    chance = random.Random(5)
    for length in (1, 2, 3, 4):
        for first in (0x40, 0x60, 0xC0):
            number = chance.randrange(1 << 8 * length)
            cid = chance.randbytes(8)
            header = bytes([first | length - 1]) + cid + number.to_bytes(length, "big")
            payload = chance.randbytes(chance.randrange(4, 1200))
            sent = ours.encrypt_packet(header, payload, number)
            assert sent == upstream.encrypt_packet(header, payload, number)
            read = ours.decrypt_packet(sent, 9, number)
            assert read == upstream.decrypt_packet(sent, 9, number) == (header, payload, number)
            for broken in (sent[:-1], sent[:20], sent[:10] + b"\0" + sent[11:], sent[:1] + b"x" + sent[2:]):
                if broken == sent:
                    continue
                with pytest.raises(CryptoError):
                    ours.decrypt_packet(broken, 9, number)
