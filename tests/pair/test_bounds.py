"""What an end keeps of its peer's frames is bounded, however many there are."""

from __future__ import annotations

import os

import pytest
from aioquic import tls
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

from quicferry.quic import ExtensionConfig
from quicferry.quic.config import Probing
from quicferry.quic.wire import SmAddress, SmMigrated, SmPrepare
from quicferry.strategies import Strategy

from .harness import EDGE_2, Pair

CANDIDATES = 40
CHALLENGES = 100


def datagram_of_challenges(pair: Pair, count: int) -> bytes:
    """A packet of the server's that holds nothing but challenges."""
    server = pair.server
    builder = QuicPacketBuilder(
        host_cid=server.host_cid,
        is_client=False,
        max_datagram_size=1200,
        packet_number=server._packet_number,
        peer_cid=server._peer_cid.cid,
        peer_token=b"",
        version=server._version,
    )
    builder.start_packet(QuicPacketType.ONE_RTT, server._cryptos[tls.Epoch.ONE_RTT])
    for _ in range(count):
        builder.start_frame(QuicFrameType.PATH_CHALLENGE, capacity=9).push_bytes(os.urandom(8))
    datagrams, _ = builder.flush()
    server._packet_number = builder.packet_number
    return datagrams[0]


@pytest.mark.parametrize("has_id", [True, False])
def test_a_client_that_is_challenged_more_than_it_can_answer(has_id):
    """From where the server may be next; without a connection ID none of it can be answered."""
    #: wire-format 10.3: A client MUST bound the candidates
    pair = Pair()
    pair.handshake(settle_s=1.2)
    if not has_id:
        pair.client._peer_cid_available.clear()
    before = len(pair.up)
    for _ in range(20):
        pair.client.receive_datagram(datagram_of_challenges(pair, 120), EDGE_2, pair.now)
    candidates = pair.client._role._prober.candidates
    assert len(candidates[EDGE_2].responses) == CHALLENGES
    pair.drive(limit_s=0.5)
    answers = [data for _, address, data in pair.up[before:] if address == EDGE_2]
    assert bool(answers) is has_id
    pair.assert_open()


@pytest.mark.parametrize("probing", list(Probing))
def test_a_server_that_says_again_and_again_that_it_is_elsewhere(probing):
    #: wire-format 10.3: A client MUST bound the candidates
    pair = Pair(client=ExtensionConfig(probing=probing))
    pair.handshake(settle_s=1.2)
    role = pair.server._role
    role.is_current = lambda encoded: True  # it has no shame
    most = 0
    for epoch in range(1, 121):
        role.send_control(SmAddress(sequence=0, ipv4=(f"10.9.{epoch}.2", 4433), here=True))
        role.send_control(SmMigrated(epoch=epoch))
        pair.drive(limit_s=0.02)
        most = max(most, len(pair.client._role._prober.candidates))
    assert most == CANDIDATES
    request = pair.request()  # it is where it has always been
    assert pair.drive(lambda: request.answered_at is not None, limit_s=2.0)
    pair.assert_open()


def test_a_server_that_announces_again_and_again_and_acknowledges_nothing():
    pair = Pair()
    pair.handshake(settle_s=1.2)
    role = pair.server._role
    role.is_current = lambda encoded: True
    role.send_control(SmAddress(sequence=1, ipv4=EDGE_2))

    def _write_ack_frame(builder, space, now):
        space.ack_at = None

    pair.server._write_ack_frame = _write_ack_frame
    for epoch in range(1, 1001):
        role._epoch = epoch
        role.send_control(
            SmPrepare(
                epoch=epoch,
                strategy=Strategy.PROACTIVE_EXPLICIT,
                sequences=(1,),
                downtime_ms=100,
                probe_interval_ms=10,
            )
        )
        if epoch % 20 == 0:
            pair.drive(limit_s=0.02)
    pair.drive(limit_s=1.0)
    assert len(pair.client._role._control) <= 1
    pair.assert_open()
