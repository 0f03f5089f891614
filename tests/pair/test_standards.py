"""The two standards by which a server moves: RFC 9000 §9.6, and the draft of alternative addresses."""

from __future__ import annotations

import itertools

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.packet import QuicFrameType as F

from quicferry.errors import InvalidInput
from quicferry.quic import (
    ClientState,
    ErrorCode,
    ExtensionConfig,
    MigrationAborted,
    MigrationAnnounced,
    MigrationCommitted,
    MigrationReady,
    PathSwitched,
    PathValidated,
    ProbeStarted,
    Result,
)
from quicferry.quic._aioquic.seam import pto_s
from quicferry.quic.errors import PeerError
from quicferry.quic.snapshot import thaw
from quicferry.quic.standard_wire import (
    ALTERNATIVE_ADDRESS_ID,
    AlternativeAddress,
    Entry,
    check_alternative_parameter,
)
from quicferry.quic.wire import Address, FrameType, decode_frame, find_parameter
from quicferry.strategies import STANDARD_STRATEGIES, Strategy

from .harness import EDGE_1, EDGE_2, RTT_S, Network, Pair, edge, preferred_in

PREFERRED, ALTERNATIVE = Strategy.PREFERRED_ADDRESS, Strategy.ALTERNATIVE_ADDRESS
NON_PROBING = {F.PADDING, F.PATH_CHALLENGE, F.PATH_RESPONSE, F.NEW_CONNECTION_ID}
SLACK_S = 0.0035


def alone(strategy: Strategy, **keywords) -> Pair:
    """Client and server that know this standard and nothing of the extension."""
    only = frozenset({strategy})
    where = preferred_in(strategy)
    server = ExtensionConfig(strategies=only, preferred_address=() if where is None else (where,))
    pair = Pair(client=ExtensionConfig(strategies=only), server=server, **keywords)
    pair.handshake()
    return pair


def told(pair: Pair, epoch: int = 1) -> list[Result]:
    return [e.result for _, e in pair.server_events if isinstance(e, MigrationReady) and e.epoch == epoch]


@pytest.mark.parametrize("forwarding", [False, True])
@pytest.mark.parametrize("downtime_s", [0.02, 0.4])
@pytest.mark.parametrize("strategy", STANDARD_STRATEGIES)
def test_the_server_moves_without_the_extension(strategy, downtime_s, forwarding):
    pair = alone(strategy)
    assert find_parameter(pair.client._role.own_parameter()) is None
    pair.load(0.010, until=pair.now + downtime_s + 1.5)
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=downtime_s, forwarding=forwarding)
    pair.drive(limit_s=downtime_s + 3.0)
    assert pair.switched_to(EDGE_2)
    assert pair.answered()
    assert told(pair) == [Result.OK]
    assert pair.first(MigrationCommitted, side="server") is not None
    assert pair.client.migration_state == ClientState.IDLE
    assert pair.client.negotiated == pair.server.negotiated == {strategy}
    pair.assert_open()


@pytest.mark.parametrize("strategy", STANDARD_STRATEGIES)
def test_with_a_waiting_room_it_costs_a_round_trip_and_a_half(strategy):
    """Half to validate, one for the client's first packet and its answer; the server may not speak before."""
    pair = alone(strategy)
    pair.load(0.010, until=pair.now + 1.5)
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=0.4)
    pair.drive(limit_s=3.0)
    overhead = pair.first_answer_after_move() - pair.resumed_at
    assert RTT_S <= overhead <= 1.5 * RTT_S + SLACK_S


@pytest.mark.parametrize("strategy", STANDARD_STRATEGIES)
def test_until_the_client_has_come_the_server_only_probes(strategy):
    """RFC 9000 §9.6.2: no other packet from the new address before the path is validated."""
    #: RFC 9000 9.6.2: The server MUST send non-probing packets from its original address until
    pair = alone(strategy)
    pair.load(0.010, until=pair.now + 1.0)
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=0.1)
    assert pair.drive(lambda: pair.first(MigrationCommitted, side="server") is not None, limit_s=3.0)
    committed_at, _ = pair.first(MigrationCommitted, side="server")
    before = [data for t, address, data in pair.down if address == EDGE_2 and t < committed_at]
    assert before
    for data in before:
        assert Pair.frames(data, pair.server) <= NON_PROBING
        assert len(data) >= 1200
    assert pair.server._role._probation is None


@pytest.mark.parametrize("strategy", STANDARD_STRATEGIES)
@pytest.mark.parametrize("hand_off", [False, True])
def test_a_client_with_nothing_in_flight_finds_out(strategy, hand_off):
    pair = alone(strategy)
    pair.drive(limit_s=1.0)
    patience_s = pto_s(pair.server)
    pair.move(strategy, downtime_s=0.1)
    pair.drive(limit_s=0.1 + 1.0)
    challenged_at = next(t for t, address, _ in pair.down if address == EDGE_2)
    assert challenged_at - pair.resumed_at <= patience_s + 0.005
    assert pair.switched_to(EDGE_2)
    request = pair.request()
    assert pair.drive(lambda: request.answered_at is not None, limit_s=1.0)


@pytest.mark.parametrize("strategy", STANDARD_STRATEGIES)
def test_data_of_a_server_whose_client_only_listens_comes_through(strategy):
    pair = alone(strategy)
    pair.response_size = 400_000
    pair.request()
    pair.drive(limit_s=0.08)
    pair.move(strategy, downtime_s=0.1)
    assert pair.drive(pair.answered, limit_s=10.0)
    assert len(pair.received[0]) == 400_000


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strategy", STANDARD_STRATEGIES)
def test_losses_only_cost_time(strategy, seed):
    pair = alone(strategy, seed=seed, network=Network(jitter_s=0.002))
    pair.network.loss = 0.1
    pair.load(0.020, until=pair.now + 1.0)
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=0.1)
    assert pair.drive(lambda: pair.switched_to(EDGE_2) and pair.answered(), limit_s=20.0)
    pair.assert_open()


@pytest.mark.parametrize("strategy", STANDARD_STRATEGIES)
def test_probes_are_no_more_frequent_than_initial_packets(strategy):
    """RFC 9000 §8.2.1: nothing else was agreed in the handshake."""
    #: RFC 9000 8.2.1: SHOULD NOT probe a new path with packets
    #: RFC 9000 9.4: This timer SHOULD be set as described
    pair = alone(strategy)
    pair.request()
    pair.drive(limit_s=0.5)
    before_s = pto_s(pair.client)
    pair.request()
    pair.move(strategy, downtime_s=3.0, forwarding=False)
    pair.drive(limit_s=3.0)
    times = [t for t, address, _ in pair.up if address == EDGE_2 and t > pair.prepared_at]
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert 3 <= len(times) <= 8
    assert gaps[0] >= 0.9 * before_s
    assert all(later >= 1.9 * earlier for earlier, later in itertools.pairwise(gaps))


# ---------------------------------------------------------------------- preferred_address


def test_the_address_is_validated_once_the_handshake_is_confirmed_and_then_let_be():
    """RFC 9000 §9.6.1: a client whose validation fails keeps to the original address."""
    #: wire-format 13.1: keeps to the original address, as it MUST
    #: RFC 9000 9.6.1: SHOULD select one of the two addresses
    #: RFC 9000 9.6.1: MUST continue sending all future packets to the server
    #: RFC 9000 9.6.2: MUST validate the address it chooses before migrating
    pair = alone(PREFERRED)
    pair.load(0.010, until=pair.now + 1.0)
    pair.drive(limit_s=1.5)
    probes = [t for t, address, _ in pair.up if address == EDGE_2]
    assert 1 <= len(probes) <= 3
    assert pair.all(ProbeStarted) == [ProbeStarted(EDGE_2)]
    assert pair.all(PathSwitched) == []
    assert pair.client.migration_state == ClientState.IDLE
    assert pair.answered()
    for _, address, data in pair.up:
        if address == EDGE_2:
            assert Pair.frames(data, pair.client) <= NON_PROBING


def test_its_connection_id_has_the_sequence_number_one_and_leaves_in_no_frame():
    """RFC 9000 §5.1.1; and the token with it is the one for stateless resets."""
    pair = alone(PREFERRED)
    first = next(cid for cid in pair.server._host_cids if cid.sequence_number == 1)
    known = {cid.sequence_number: cid for cid in pair.client._peer_cid_available}
    probed = [cid for c in pair.client._role._prober.candidates.values() if (cid := c.cid) is not None]
    kept = [cid for cid, _ in pair.client._role._kept._ids.values()]
    mine = known.get(1) or next(cid for cid in [*probed, *kept] if cid.sequence_number == 1)
    assert (mine.cid, mine.stateless_reset_token) == (first.cid, first.stateless_reset_token)
    assert len({cid.sequence_number for cid in pair.server._host_cids}) == len(pair.server._host_cids)


def test_any_client_of_rfc_9000_follows():
    """aioquic as it is: its one challenge waits at the destination until the server is there."""
    pair = Pair(client="stock", preferred=EDGE_2)
    pair.waiting_room_at = EDGE_2
    pair.handshake()
    pair.validated.add(EDGE_2)  # the harness counts by our events, which this client has not
    early = list(pair._room)
    assert early, "it has not asked at the preferred address"
    pair.load(0.010, until=pair.now + 1.0)
    pair.drive(limit_s=0.3)
    assert pair.server.negotiated == {PREFERRED}
    pair.server.prepare_migration(1, PREFERRED, [EDGE_2], 100, False, pair.now)
    pair.freeze(EDGE_2, waiting_room=True)
    pair._room[:0] = early
    pair._client_came = True
    pair.after(0.1, lambda: pair.resume(1, PREFERRED, EDGE_2, False))
    pair.drive(limit_s=4.0)
    assert pair.client._network_paths[0].addr == EDGE_2
    assert pair.answered()
    assert pair.first(MigrationCommitted, side="server") is not None
    pair.assert_open()


def test_one_move_and_no_other():
    pair = alone(PREFERRED)
    pair.load(0.010, until=pair.now + 2.0)
    pair.drive(limit_s=0.3)
    pair.move(PREFERRED, downtime_s=0.1)
    pair.drive(limit_s=1.2)
    assert pair.switched_to(EDGE_2)
    for epoch, place in ((2, EDGE_1), (3, edge(3)), (4, EDGE_2)):
        pair.server.prepare_migration(epoch, PREFERRED, [place], 100, False, pair.now)
        pair.drive(limit_s=0.05)
        assert told(pair, epoch) == [Result.NO_ADDRESS]
    pair.drive(limit_s=2.0)
    assert pair.answered()


def test_nor_to_another_address_than_the_handshake_said():
    pair = alone(PREFERRED)
    pair.server.prepare_migration(1, PREFERRED, [edge(3)], 100, False, pair.now)
    pair.drive(limit_s=0.1)
    assert told(pair) == [Result.NO_ADDRESS]


def test_a_server_without_one_cannot_move_so():
    pair = Pair()
    pair.handshake()
    pair.server.prepare_migration(1, PREFERRED, [EDGE_2], 100, False, pair.now)
    pair.drive(limit_s=0.1)
    assert told(pair) == [Result.NOT_NEGOTIATED]


def test_two_addresses_of_one_family_are_refused():
    with pytest.raises(InvalidInput, match="one family"):
        ExtensionConfig(preferred_address=(EDGE_1, EDGE_2))


# ---------------------------------------------------------------------- the draft


def test_ten_moves_by_the_draft():
    pair = alone(ALTERNATIVE)
    for epoch in range(1, 11):
        to = edge(1 + epoch % 3)
        pair.load(0.010, until=pair.now + 0.5)
        pair.drive(limit_s=0.2)
        pair.move(ALTERNATIVE, to=to, downtime_s=0.05, epoch=epoch)
        assert pair.drive(pair.answered, limit_s=3.0)
        pair.drive(limit_s=1.0)
        assert pair.all(PathSwitched)[-1].new == to
    pair.assert_open()


def test_a_move_that_is_called_off_is_taken_back():
    pair = alone(ALTERNATIVE)
    pair.load(0.010, until=pair.now + 1.0)
    pair.server.prepare_migration(1, ALTERNATIVE, [EDGE_2], 100, False, pair.now)
    pair.drive(limit_s=0.1)
    assert pair.all(MigrationAnnounced) == [MigrationAnnounced(0, ALTERNATIVE, (EDGE_2,))]
    pair.server.abort_migration(1, "operator", pair.now)
    pair.drive(limit_s=0.2)
    assert pair.all(MigrationAborted) == [MigrationAborted(0, 0)]
    assert pair.client.migration_state == ClientState.IDLE
    sent = len(pair.up)
    pair.drive(limit_s=1.0)
    assert [address for _, address, _ in pair.up[sent:] if address == EDGE_2] == []
    assert pair.answered()


@pytest.mark.parametrize("strategy", STANDARD_STRATEGIES)
def test_a_client_comes_back_when_the_destination_was_taken_down(strategy):
    """It has switched already, and the source goes on: it finds it where the server has been before."""
    pair = alone(strategy)
    pair.load(0.010, until=pair.now + 2.0)
    pair.drive(limit_s=0.3)
    source = pair.server
    pair.hand_off = True
    pair.move(strategy, downtime_s=0.1, forwarding=False)
    assert pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=3.0)
    pair.server, pair.server_at = source, EDGE_1
    thaw(source, pair.now)
    source.abort_migration(1, "deadline", pair.now)
    assert pair.drive(lambda: PathSwitched(EDGE_2, EDGE_1) in pair.all(PathSwitched), limit_s=10.0)
    request = pair.request()
    assert pair.drive(lambda: request.answered_at is not None, limit_s=5.0)
    pair.assert_open()


def test_an_older_set_and_a_repeated_one_mean_nothing():
    pair = alone(ALTERNATIVE)
    role = pair.client._role
    for sequence, where in ((5, EDGE_2), (4, edge(3)), (5, edge(4))):
        frame = AlternativeAddress(sequence=sequence, before=(Entry(where),))
        role.frame(frame, EDGE_1, pair.now)
    assert pair.client._role._standard.better(EDGE_1) == (EDGE_2,)


def test_a_client_that_takes_no_moves_does_not_go():
    only = frozenset({ALTERNATIVE})
    pair = Pair(client=ExtensionConfig(strategies=only, accept_moves=False), server=ExtensionConfig())
    pair.handshake()
    pair.server.prepare_migration(1, ALTERNATIVE, [EDGE_2], 100, False, pair.now)
    pair.drive(limit_s=0.5)
    assert told(pair) == [Result.OK]  # the draft has no way to refuse
    assert [address for _, address, _ in pair.up if address == EDGE_2] == []


def test_a_client_that_has_not_offered_is_sent_nothing():
    pair = Pair(client="stock")
    pair.handshake()
    pair.server.prepare_migration(1, ALTERNATIVE, [EDGE_2], 100, False, pair.now)
    pair.drive(limit_s=0.3)
    assert told(pair) == [Result.NOT_NEGOTIATED]
    pair.assert_open()


def test_the_frame_from_a_client_is_a_protocol_violation():
    pair = alone(ALTERNATIVE)
    pair.client._role.send_control(AlternativeAddress(sequence=1))
    pair.drive(limit_s=0.5)
    assert pair.server._close_event.error_code == ErrorCode.PROTOCOL_VIOLATION


def test_the_parameter_from_a_server_is_a_transport_parameter_error(monkeypatch):
    pair = Pair()
    make = pair._make

    def made(configuration, extension, **keywords):
        connection = make(configuration, extension, **keywords)
        parameter = encode_uint_var(ALTERNATIVE_ADDRESS_ID) + encode_uint_var(0)
        monkeypatch.setattr(connection._role, "own_parameter", lambda: parameter)
        return connection

    monkeypatch.setattr(pair, "_make", made)
    pair.drive(limit_s=1.0)
    assert pair.client._close_event.error_code == QuicErrorCode.TRANSPORT_PARAMETER_ERROR


@pytest.mark.parametrize(
    "body",
    [
        "0100",  # no entry at all
        "0101",  # cut off
        "0101" + "010a0a00020211" + "51",  # no current path
        "01020000",  # twice
        "010203" + "00",  # a type that was not offered
        "0103" + "01050a0002021151" + "01040a0002031151" + "00",  # the hints fall
        "0140ff" + "00",  # more entries than a datagram has room for
    ],
)
def test_what_cannot_be_meant_is_a_frame_encoding_error(body):
    with pytest.raises(PeerError) as caught:
        decode_frame(encode_uint_var(FrameType.ALTERNATIVE_ADDRESS) + bytes.fromhex(body))
    assert caught.value.code is ErrorCode.FRAME_ENCODING_ERROR


def test_the_frame_survives_the_wire():
    frame = AlternativeAddress(
        sequence=300,
        before=(Entry(EDGE_2, 1), Entry(("2001:db8::1", 443), 7)),
        after=(Entry(EDGE_1),),
    )
    assert decode_frame(frame.encode()) == frame
    assert AlternativeAddress(sequence=1).encode().hex() == "9d5845e2010100"


@pytest.mark.parametrize(("types", "right"), [((), True), ((3, 9), True), ((9, 3), False), ((3, 3), False)])
def test_further_types_increase(types, right):
    value = b"".join(encode_uint_var(each) for each in types)
    if right:
        check_alternative_parameter(value)
        return
    with pytest.raises(PeerError) as caught:
        check_alternative_parameter(value)
    assert caught.value.code is ErrorCode.TRANSPORT_PARAMETER_ERROR


def test_a_parameter_that_is_cut_off_is_refused():
    with pytest.raises(PeerError, match="cut off"):
        check_alternative_parameter(b"\xc0\x01")


def test_the_path_is_validated_from_both_ends():
    """RFC 9000 §9.6.2: the server probes the path from its preferred address, too."""
    #: RFC 9000 9.6.2: MUST probe on the path toward the client
    pair = alone(PREFERRED)
    pair.load(0.010, until=pair.now + 1.0)
    pair.drive(limit_s=0.3)
    pair.move(PREFERRED, downtime_s=0.1)
    pair.drive(limit_s=2.0)
    assert pair.first(PathValidated) is not None
    from_server = [Pair.frames(d, pair.server) for _, a, d in pair.down if a == EDGE_2][:1]
    assert F.PATH_CHALLENGE in from_server[0]


@pytest.mark.parametrize("strategy", STANDARD_STRATEGIES)
def test_a_client_whose_address_changes_on_the_switch_is_challenged_with_what_it_is_granted(strategy):
    """RFC 9000 §8.2.1: it has sent too little for 1200 bytes, and only listens: nothing else would go on."""
    #: RFC 9000 8.2.1: MUST perform a second path validation
    #: RFC 9000 8.2.3: MUST initiate another path validation with an expanded datagram
    rebound = ("10.0.0.99", 5555)
    pair = alone(strategy)
    carried = {"up": 0, "down": 0}
    sizes: list[int] = []

    def nat(data: bytes, address: Address, direction: str) -> bool:
        if address != EDGE_2 or pair.server is None:
            return False
        if direction == "up":
            if pair.switched_to(EDGE_2):
                pair.client_seen_as[EDGE_2] = rebound
            carried["up"] += len(data) if pair.client_seen_as else 0
            return False
        if not pair.client_seen_as:
            return False
        if pair.sent_to != rebound:
            return True
        if F.PATH_CHALLENGE in pair.frames(data, pair.server):
            sizes.append(len(data))
        carried["down"] += len(data)
        if not any(path.is_validated for path in pair.server._network_paths if path.addr == rebound):
            assert carried["down"] <= 3 * carried["up"]
        return False

    pair.network.drop = nat
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=0.1)
    assert pair.drive(lambda: bool(pair.client_seen_as), limit_s=3.0)
    stream_id = pair.server.get_next_available_stream_id(is_unidirectional=True)
    pair.server.send_stream_data(stream_id, bytes(range(200)) * 20, end_stream=True)
    assert pair.drive(lambda: len(pair.received.get(stream_id, b"")) == 4000, limit_s=5.0)
    assert bytes(pair.received[stream_id]) == bytes(range(200)) * 20
    assert pair.server._network_paths[0].addr == rebound
    if strategy is PREFERRED:  # the other's client answers an announcement besides: enough for a whole one
        assert sizes[0] < 1200
    assert sizes[-1] == 1200
