"""Rules of RFC 9000 on paths and connection IDs, seen in what leaves and what is done with what comes."""

from __future__ import annotations

from collections import defaultdict

import pytest
from aioquic import tls
from aioquic.buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicFrameType as F
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from aioquic.quic.packet_builder import QuicPacketBuilder

from quicferry.quic import ErrorCode, ExtensionConfig, PathSwitched, PeerMigrated
from quicferry.quic._aioquic.connection import HookedConnection
from quicferry.quic.errors import PeerError
from quicferry.quic.wire import (
    CIDS_BESIDE_A_RACE,
    MAX_ADDRESSES,
    SmAddress,
    decode_frame,
    find_parameter,
)
from quicferry.strategies import STANDARD_STRATEGIES, Strategy

from .harness import CLIENT, EDGE_1, EDGE_2, Address, Pair, edge, preferred_in


def opened(data: bytes, sender: QuicConnection) -> tuple[bytes, bytes]:
    """Destination connection ID and payload of a 1-RTT datagram."""
    buf = Buffer(data=data)
    header = pull_quic_header(buf, host_cid_length=8)
    crypto = sender._cryptos[tls.Epoch.ONE_RTT].send
    _, plain, _, _ = crypto.decrypt_packet(data, buf.tell(), sender._packet_number)
    return header.destination_cid, plain


def probes(data: bytes, sender: QuicConnection) -> dict[int, list[bytes]]:
    """The data of the challenges and responses that a datagram begins with, by frame type."""
    _, plain = opened(data, sender)
    found: dict[int, list[bytes]] = defaultdict(list)
    while plain[:1] in (b"\x1a", b"\x1b"):
        found[plain[0]].append(plain[1:9])
        plain = plain[9:]
    return found


def connected(**keywords) -> Pair:
    pair = Pair(**keywords)
    pair.handshake(settle_s=1.0)
    return pair


def raced(pair: Pair, *addresses: Address, seconds: float = 0.3) -> None:
    pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, list(addresses), 500, False, pair.now)
    pair.drive(limit_s=seconds)


def test_the_limit_of_connection_ids_goes_with_the_offer():
    #: wire-format 3.1: MUST send an `active_connection_id_limit`
    #: wire-format 3.2: A server MUST have given its client two connection IDs more
    pair = connected()
    assert pair.client._local_active_connection_id_limit >= MAX_ADDRESSES + CIDS_BESIDE_A_RACE
    raced(pair, *(edge(n) for n in range(2, 2 + MAX_ADDRESSES)), seconds=0.05)
    assert len(pair.server._host_cids) >= MAX_ADDRESSES + CIDS_BESIDE_A_RACE
    assert {address for _, address, _ in pair.up if address != EDGE_1} == {
        edge(n) for n in range(2, 2 + MAX_ADDRESSES)
    }


def test_the_parameter_of_a_ticket_is_not_read():
    """Neither ours nor the preferred address: what a session was told is not for the next connection."""
    #: wire-format 3.2: MUST NOT be remembered for 0-RTT
    #: RFC 9000 9.6.2: MUST NOT use these for other connections
    pair = Pair(preferred=EDGE_2)
    told = []
    parse = HookedConnection._parse_transport_parameters

    def overheard(self, data, from_session_ticket=False):
        told.append(data)
        return parse(self, data, from_session_ticket)

    HookedConnection._parse_transport_parameters = overheard  # type: ignore[method-assign]
    try:
        pair.handshake(settle_s=0.5)
    finally:
        HookedConnection._parse_transport_parameters = parse  # type: ignore[method-assign]
    where = bytes([10, 0, 2, 2]) + (4433).to_bytes(2, "big")
    servers = next(data for data in told if where in data)
    assert find_parameter(servers) is not None
    fresh = Pair()
    fresh.client._parse_transport_parameters(servers, from_session_ticket=True)
    assert fresh.client.negotiated == frozenset()
    assert fresh.client._remote_preferred_address is None


def test_each_datagram_has_one_challenge_that_nobody_can_guess():
    #: RFC 9000 8.2.1: SHOULD NOT send multiple PATH_CHALLENGE frames in a single packet
    #: RFC 9000 8.2.1: MUST use unpredictable data in every PATH_CHALLENGE
    #: RFC 9000 8.2.1: MUST expand datagrams that contain a PATH_CHALLENGE frame
    pair = connected()
    raced(pair, EDGE_2, edge(3))
    sent = [data for _, address, data in pair.up if address in (EDGE_2, edge(3))]
    challenges = [probes(data, pair.client)[F.PATH_CHALLENGE] for data in sent]
    assert len(sent) > 10
    assert {len(each) for each in challenges} == {1}
    assert len({each[0] for each in challenges}) == len(sent)
    assert all(len(data) >= 1200 for data in sent)


def test_every_challenge_has_one_answer_at_once():
    #: RFC 9000 8.2.2: MUST respond by echoing
    #: RFC 9000 8.2.2: MUST NOT delay transmission
    #: RFC 9000 8.2.2: MUST NOT send more than one PATH_RESPONSE frame
    #: RFC 9000 8.2.2: MUST expand datagrams that contain a PATH_RESPONSE frame
    pair = connected()
    raced(pair, EDGE_2, seconds=0.1)
    pair.freeze(EDGE_2, waiting_room=True)
    pair.after(0.1, lambda: pair.resume(1, Strategy.PROACTIVE_EXPLICIT, EDGE_2, True))
    pair.drive(limit_s=0.5)
    came = [data for data, _ in pair._room]
    asked = [
        each
        for _, address, data in pair.up
        if address == EDGE_2
        for each in probes(data, pair.client)[F.PATH_CHALLENGE]
    ]
    answers = [
        (t, each, len(data))
        for t, address, data in pair.down
        if address == EDGE_2
        for each in probes(data, pair.server)[F.PATH_RESPONSE]
    ]
    assert answers and not came
    assert len({data for _, data, _ in answers}) == len(answers)
    assert {data for _, data, _ in answers} <= set(asked)
    assert min(t for t, _, _ in answers) == pair.resumed_at
    assert all(size >= 1200 for _, _, size in answers)


def small_challenge(pair: Pair, data: bytes, cid: bytes | None = None) -> bytes:
    """A datagram of a few bytes with a challenge of the client."""
    client = pair.client
    builder = QuicPacketBuilder(
        host_cid=client.host_cid,
        is_client=True,
        max_datagram_size=1200,
        packet_number=client._packet_number,
        peer_cid=client._peer_cid_available[0].cid if cid is None else cid,
        version=client._version,
    )
    builder.start_packet(QuicPacketType.ONE_RTT, client._cryptos[tls.Epoch.ONE_RTT])
    buf = builder.start_frame(F.PATH_CHALLENGE, capacity=9)
    buf.push_bytes(data)
    # what the builder pads is cut off again: the packet is encrypted as it stands
    builder._flight_capacity = builder._buffer.tell() + 40
    builder._datagram_needs_padding = False
    datagrams, _ = builder.flush()
    client._packet_number = builder.packet_number
    return datagrams[0]


def test_a_small_challenge_is_answered():
    #: RFC 9000 8.2.1: MUST NOT discard datagrams that appear to be too small
    pair = connected()
    datagram = small_challenge(pair, b"12345678")
    pair.server.receive_datagram(datagram, CLIENT, pair.now)
    leaving = [data for data, _ in pair.server.datagrams_to_send(pair.now)]
    assert [b"12345678"] in [probes(data, pair.server)[F.PATH_RESPONSE] for data in leaving]


def test_a_server_on_probation_keeps_to_the_anti_amplification_limit():
    """Whoever has not shown that he is where he says gets three times what he sent, at most."""
    #: RFC 9000 8.2.2: MUST NOT expand the datagram containing the PATH_RESPONSE if
    #: RFC 9000 9.6.3: the server MUST protect against potential attacks
    only = frozenset({Strategy.PREFERRED_ADDRESS})
    pair = connected(
        client=ExtensionConfig(strategies=only),
        server=ExtensionConfig(strategies=only, preferred_address=(EDGE_2,)),
    )
    pair.server.prepare_migration(1, Strategy.PREFERRED_ADDRESS, [EDGE_2], 100, False, pair.now)
    pair.freeze(EDGE_2)
    pair.resume(1, Strategy.PREFERRED_ADDRESS, EDGE_2, False)
    stranger = ("10.0.0.77", 7777)
    datagram = small_challenge(pair, b"abcdefgh")
    assert len(datagram) < 400
    pair.server.receive_datagram(datagram, stranger, pair.now)
    first = [data for data, to in pair.server.datagrams_to_send(pair.now) if to == stranger]
    assert [probes(data, pair.server)[F.PATH_RESPONSE] for data in first] == [[b"abcdefgh"]]
    assert sum(map(len, first)) <= 3 * len(datagram)
    path = next(path for path in pair.server._network_paths if path.addr == stranger)
    assert not path.is_validated
    for _ in range(4):  # as many bytes as make room for one answer of full size
        pair.server.receive_datagram(bytes(400), stranger, pair.now)
    pair.server.receive_datagram(small_challenge(pair, b"ijklmnop"), stranger, pair.now)
    leaving = [data for data, to in pair.server.datagrams_to_send(pair.now) if to == stranger]
    assert leaving
    assert sum(map(len, first + leaving)) <= 3 * path.bytes_received


def test_of_many_challenges_from_a_new_address_the_newest_is_answered_first():
    """They may have waited for the server, and the client takes the RTT from the first that is answered."""
    pair = connected()
    rebound = ("10.0.0.99", 5555)
    asked = [bytes([number]) * 8 for number in range(40)]
    for data in asked:
        pair.server.receive_datagram(small_challenge(pair, data), rebound, pair.now)
    leaving = [data for data, to in pair.server.datagrams_to_send(pair.now) if to == rebound]
    answered = [each for data in leaving for each in probes(data, pair.server)[F.PATH_RESPONSE]]
    assert answered == asked[::-1][: len(answered)]
    assert len(answered) == 32  # of so many it takes note


@pytest.mark.parametrize("strategy", STANDARD_STRATEGIES)
def test_a_client_of_a_standard_drops_what_comes_from_elsewhere(strategy):
    #: RFC 9000 9: the client MUST discard these packets
    #: RFC 9000 9.6: the client SHOULD discard these packets
    only = frozenset({strategy})
    where = preferred_in(strategy)
    server = ExtensionConfig(strategies=only, preferred_address=() if where is None else (where,))
    pair = connected(client=ExtensionConfig(strategies=only), server=server)
    pair.request()
    pair.server_at = edge(7)  # it has moved, and nobody was told
    pair.flush()
    pair.response_size = 100
    pair.server.send_stream_data(pair.server.get_next_available_stream_id(), b"from elsewhere", True)
    before = len(pair.received)
    pair.drive(limit_s=0.3)
    assert any(address == edge(7) for _, address, _ in pair.down)
    assert len(pair.received) == before
    assert pair.all(PeerMigrated) == []
    assert [address for _, address, _ in pair.up if address == edge(7)] == []


def test_a_challenge_on_the_active_path_is_acknowledged():
    """PATH_CHALLENGE is ack-eliciting, and a packet with an ACK is no probing packet."""
    #: RFC 9000 9.3.3: SHOULD send a non-probing packet in response
    pair = connected()
    pair.server.receive_datagram(small_challenge(pair, b"12345678"), CLIENT, pair.now)
    pair.drive(limit_s=0.2)
    assert any(F.ACK in Pair.frames(data, pair.server) for t, _, data in pair.down if t >= pair.now - 0.2)


def test_no_connection_id_is_used_on_two_paths():
    #: RFC 9000 9.5: MUST NOT reuse a connection ID when sending from more than one local address
    #: RFC 9000 9.5: MUST NOT reuse a connection ID when sending to more than one destination address
    pair = connected()
    pair.load(0.010, until=pair.now + 2.5)
    for epoch, to in enumerate((EDGE_2, edge(3), EDGE_1), 1):
        pair.drive(limit_s=0.3)
        pair.move(Strategy.PROACTIVE_EXPLICIT, to=to, downtime_s=0.1, epoch=epoch, forwarding=False)
        pair.drive(limit_s=1.1)
    assert [event.new for event in pair.all(PathSwitched)] == [EDGE_2, edge(3), EDGE_1]
    for sent in (pair.up, pair.down):
        used: dict[bytes, set[Address]] = defaultdict(set)
        for _, address, data in sent:
            if not data[0] & 0x80:  # 1-RTT
                used[data[1:9]].add(address)
        assert len(used) > 3
        assert all(len(addresses) == 1 for addresses in used.values())


def test_an_address_of_the_other_family_is_not_probed():
    #: RFC 9000 9.6.3: SHOULD use a preferred address from the same address family
    only = frozenset({Strategy.PREFERRED_ADDRESS})
    six = ("2001:db8::2", 4433)
    pair = connected(
        client=ExtensionConfig(strategies=only),
        server=ExtensionConfig(strategies=only, preferred_address=(six, EDGE_2)),
    )
    pair.drive(limit_s=0.5)
    assert {address for _, address, _ in pair.up} == {EDGE_1, EDGE_2}


def test_a_packet_that_does_not_decrypt_is_no_duplicate():
    """A forged copy that comes first must not make the genuine one look like a repetition."""
    #: RFC 9000 12.3: Duplicate suppression MUST happen after
    pair = connected()
    request = pair.request()
    pair.flush()
    genuine = next(data for _, _, data in reversed(pair.up) if not data[0] & 0x80)
    forged = genuine[:-1] + bytes([genuine[-1] ^ 1])
    pair.server.receive_datagram(forged, CLIENT, pair.now)
    assert pair.drive(lambda: request.answered_at is not None, limit_s=0.2)


@pytest.mark.parametrize("open_stream", [False, True])
def test_a_client_that_may_be_sent_something_asks_after_a_while(open_stream):
    """It would else not find out that its server, or its NAT's binding, is somewhere else."""
    #: wire-format 6.2: SHOULD send a PING after 3 s
    pair = connected()
    if open_stream:
        pair.server.send_stream_data(pair.server.get_next_available_stream_id(), b"to be continued", False)
    pair.drive(limit_s=1.0)
    last = pair.up[-1][0]
    pair.drive(limit_s=10.0)
    later = [t for t, _, data in pair.up if t > last and F.PING in Pair.frames(data, pair.client)]
    if open_stream:
        assert later and 2.9 <= later[0] - last <= 3.1
    else:
        assert later == []


@pytest.mark.parametrize("flags", [{}, {"pool": True}, {"retire": True}, {"here": True, "pool": True}])
def test_the_number_0_names_nothing(flags):
    #: wire-format 4.1: With 0, Here MUST be set
    with pytest.raises(PeerError) as caught:
        decode_frame(SmAddress(sequence=0, ipv4=EDGE_2, **flags).encode())
    assert caught.value.code is ErrorCode.FRAME_ENCODING_ERROR
    assert decode_frame(SmAddress(sequence=0, ipv4=EDGE_2, here=True).encode()).sequence == 0
