"""What an end does when the other breaks the rules, and the odd networks."""

from __future__ import annotations

import pytest
from aioquic import tls
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.logger import QuicLogger

from quicferry.quic import (
    ErrorCode,
    ExtensionConfig,
    LocalError,
    MigrationAnnounced,
    MigrationReady,
    PathSwitched,
    ProbeStarted,
    Result,
)
from quicferry.quic._aioquic.seam import Seam, plain_address
from quicferry.quic.client import ClientRole
from quicferry.quic.wire import (
    FrameType,
    Parameter,
    SmAbort,
    SmAddress,
    SmMigrated,
    SmPrepare,
    SmReady,
)
from quicferry.strategies import EXTENSION_STRATEGIES, RULES, Strategy

from .harness import EDGE_1, EDGE_2, Network, Pair, edge, preferred_in


def prepare(**keywords) -> SmPrepare:
    fields = {
        "epoch": 1,
        "strategy": Strategy.PROACTIVE_EXPLICIT,
        "sequences": (1,),
        "downtime_ms": 100,
        "probe_interval_ms": 10,
    }
    return SmPrepare(**(fields | keywords))


def said_by(side: str, *frames, **keywords) -> Pair:
    pair = Pair(**keywords)
    pair.handshake()
    role = getattr(pair, side)._role
    role.is_current = lambda encoded: True
    if side == "server":
        role._epoch = 100  # it has announced all that is said here
    for frame in frames:
        role.send_control(frame)
        pair.drive(limit_s=0.05)
    pair.drive(limit_s=1.0)
    return pair


def close_code(pair: Pair) -> int | None:
    for events in (pair.client_events, pair.server_events):
        for _, event in events:
            if isinstance(event, ConnectionTerminated):
                return event.error_code
    return None


ADDRESS = SmAddress.of(1, EDGE_2)


@pytest.mark.parametrize(
    ("side", "frames", "code"),
    [
        ("client", [ADDRESS], ErrorCode.PROTOCOL_VIOLATION),
        ("client", [prepare()], ErrorCode.PROTOCOL_VIOLATION),
        ("client", [SmMigrated(epoch=1)], ErrorCode.PROTOCOL_VIOLATION),
        ("client", [SmAbort(epoch=1)], ErrorCode.PROTOCOL_VIOLATION),
        ("client", [SmReady(epoch=1, result=Result.OK)], ErrorCode.PROTOCOL_VIOLATION),
        ("server", [SmReady(epoch=0, result=Result.OK)], ErrorCode.PROTOCOL_VIOLATION),
        ("server", [ADDRESS, SmAddress.of(1, edge(3))], ErrorCode.PROTOCOL_VIOLATION),
        ("server", [ADDRESS, SmAddress.of(1, EDGE_2, pool=True)], ErrorCode.PROTOCOL_VIOLATION),
        ("server", [ADDRESS, prepare(), prepare(downtime_ms=101)], ErrorCode.PROTOCOL_VIOLATION),
        ("server", [prepare(sequences=())], ErrorCode.PROTOCOL_VIOLATION),
        ("server", [prepare(strategy=Strategy.SYNCHRONIZED_SYMMETRIC)], ErrorCode.PROTOCOL_VIOLATION),
        ("server", [prepare(strategy=Strategy.POOL)], ErrorCode.PROTOCOL_VIOLATION),
        ("server", [SmAddress.of(n, edge(n)) for n in range(1, 18)], ErrorCode.SM_LIMIT),
    ],
)
def test_who_breaks_a_rule_is_closed_on(side, frames, code):
    assert close_code(said_by(side, *frames)) == code


def test_a_strategy_that_was_not_negotiated_is_a_violation():
    only_pool = ExtensionConfig(strategies=frozenset({Strategy.POOL}))
    assert close_code(said_by("server", ADDRESS, prepare(), client=only_pool)) == (
        ErrorCode.PROTOCOL_VIOLATION
    )


@pytest.mark.parametrize(
    "frames",
    [
        [ADDRESS, ADDRESS],
        [ADDRESS, prepare(), prepare()],
        [ADDRESS, prepare(epoch=5), prepare(epoch=4, downtime_ms=3)],
        [SmAbort(epoch=3), ADDRESS, prepare(epoch=3), SmMigrated(epoch=2), SmAbort(epoch=3)],
        [SmMigrated(epoch=3), SmMigrated(epoch=3), SmMigrated(epoch=1), ADDRESS, prepare(epoch=3)],
        [SmAddress.of(1, EDGE_2, retire=True), ADDRESS],
        [SmAddress.of(n, edge(n + 1), retire=n % 2 == 0) for n in range(1, 30)],
    ],
)
def test_what_is_stale_or_repeated_is_ignored(frames):
    assert close_code(said_by("server", *frames)) is None


def test_an_announcement_may_overtake_its_address():
    pair = said_by("server", prepare())
    assert pair.all(MigrationAnnounced) == []
    pair.server._role.send_control(ADDRESS)
    pair.drive(limit_s=0.1)
    assert pair.all(MigrationAnnounced) == [MigrationAnnounced(1, Strategy.PROACTIVE_EXPLICIT, (EDGE_2,))]
    assert pair.all(ProbeStarted) == [ProbeStarted(EDGE_2)]


@pytest.mark.parametrize(
    "answer",
    [
        Parameter(strategies=frozenset(EXTENSION_STRATEGIES)),
        Parameter(strategies=frozenset({Strategy.POOL}), max_addresses=7),
        Parameter(strategies=frozenset({Strategy.POOL}), version=2, max_addresses=3),
    ],
)
def test_an_answer_beyond_the_offer_is_a_transport_parameter_error(answer):
    pair = Pair(client=ExtensionConfig(strategies=frozenset({Strategy.POOL}), max_addresses=3))
    make = pair._make

    def made(configuration, extension, **keywords):
        connection = make(configuration, extension, **keywords)
        role = connection._role
        role.own_parameter = lambda: answer.encode() if role.negotiated else b""
        return connection

    pair._make = made
    pair.drive(limit_s=1.0)
    assert close_code(pair) == ErrorCode.TRANSPORT_PARAMETER_ERROR


def test_another_version_is_answered_by_silence(monkeypatch):
    offer = Parameter(strategies=frozenset(EXTENSION_STRATEGIES), version=2).encode()
    monkeypatch.setattr(ClientRole, "own_parameter", lambda self: offer)
    pair = Pair()
    pair.handshake()
    assert pair.client.negotiated == pair.server.negotiated == frozenset()
    pair.request()
    pair.drive(limit_s=0.5)
    assert pair.answered()


def test_orders_that_do_not_fit_are_refused():
    pair = Pair()
    pair.handshake()
    with pytest.raises(LocalError):
        pair.client.hold()
    with pytest.raises(LocalError):
        pair.client.extension_state()
    with pytest.raises(LocalError):
        pair.server.resume(1, Strategy.SYMMETRIC, True, pair.now)
    with pytest.raises(LocalError):
        pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [], 100, False, pair.now)
    with pytest.raises(LocalError):
        pair.server.restore_extension_state({"version": 0})
    pair.server.prepare_migration(2, Strategy.SYMMETRIC, [], 100, False, pair.now)
    with pytest.raises(LocalError):
        pair.server.prepare_migration(2, Strategy.SYMMETRIC, [], 100, False, pair.now)
    pair.server.prepare_migration(3, Strategy.POOL, [], 100, False, pair.now)
    pair.drive(limit_s=0.1)
    assert [e.result for _, e in pair.server_events if isinstance(e, MigrationReady)] == [
        Result.OK,
        Result.NO_POOL,
    ]


def test_a_server_is_not_asked_before_the_handshake_is_confirmed():
    #: wire-format 3.2: The frames of this document MUST NOT be sent unless
    #: RFC 9000 9: MUST NOT initiate connection migration before the handshake is confirmed
    pair = Pair()
    pair.drive(lambda: pair.server is not None and bool(pair.server.negotiated), limit_s=1.0)
    assert not pair.server._handshake_confirmed
    pair.server.offer_addresses([EDGE_2], pair.now)
    pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 100, False, pair.now)
    pair._server_turn()
    assert pair.first(MigrationReady, side="server")[1].result is Result.NOT_CONFIRMED
    pair.handshake()
    assert [frame.ipv4 for frame in pair.client._role._book.known.values()] == [EDGE_2]


def test_a_held_connection_is_deaf_dumb_and_timeless():
    #: wire-format 9: The source MUST NOT answer late datagrams
    pair = Pair()
    pair.handshake()
    pair.server.send_stream_data(1, b"x" * 100)
    pair.server.hold()
    assert pair.server.datagrams_to_send(pair.now) == []
    assert pair.server.get_timer() is None
    before = pair.server._spaces[tls.Epoch.ONE_RTT]
    largest = before.largest_received_packet
    pair.request()
    pair.drive(limit_s=100.0)
    assert before.largest_received_packet == largest
    assert pair.server._close_event is None


@pytest.mark.parametrize("strategy", list(Strategy))
def test_a_nat_may_give_the_client_another_address_on_the_new_path(strategy):
    #: RFC 9000 9.3: it MUST send subsequent packets to the new peer address
    #: RFC 9000 9.3: it MUST protect against potential attacks
    #: RFC 9000 9.6.3: SHOULD initiate path validation to the client's new address
    pair = Pair(preferred=preferred_in(strategy))
    pair.client_seen_as = {EDGE_2: ("10.0.0.99", 5555)}
    pair.handshake()
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
    pair.load(0.010, until=pair.now + 1.0)
    pair.drive(limit_s=0.3)
    pair.move(strategy, downtime_s=0.1, server_first=False)
    pair.drive(limit_s=3.0)
    assert pair.switched_to(EDGE_2)
    assert pair.answered()
    assert pair.server.get_peer_address() == ("10.0.0.99", 5555)
    assert pair.server._network_paths[0].is_validated
    pair.assert_open()


@pytest.mark.parametrize("strategy", EXTENSION_STRATEGIES)
def test_qlog_shows_probes_and_control_frames(strategy):
    logger = QuicLogger()
    pair = Pair(logger=logger)
    pair.handshake()
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
    pair.load(0.010, until=pair.now + 0.5)
    pair.drive(limit_s=0.1)
    pair.move(strategy, downtime_s=0.1)
    pair.drive(limit_s=2.0)
    assert pair.switched_to(EDGE_2)
    frames = [
        frame["frame_type"]
        for trace in logger.to_dict()["traces"]
        for event in trace["events"]
        for frame in event["data"].get("frames", [])
    ]
    assert frames.count("sm_migrated") >= 2  # sent and received
    assert "path_challenge" in frames and "path_response" in frames
    if RULES[strategy].notice:
        assert frames.count("sm_prepare") >= 2 and frames.count("sm_ready") >= 2


def test_control_frames_end_their_packet():
    """A dissector stops at a frame type it does not know."""
    #: wire-format 4: SHOULD put them in a packet that holds nothing else
    logger = QuicLogger()
    pair = Pair(logger=logger)
    pair.handshake()
    pair.load(0.010, until=pair.now + 0.5)
    pair.drive(limit_s=0.1)
    pair.move(Strategy.PROACTIVE_EXPLICIT, downtime_s=0.1, server_first=True)
    pair.drive(limit_s=2.0)
    ours = {frame_type.name.lower() for frame_type in FrameType}
    seen = 0
    for trace in logger.to_dict()["traces"]:
        for event in trace["events"]:
            names = [frame["frame_type"] for frame in event["data"].get("frames", [])]
            if event["name"] == "transport:packet_sent" and ours & set(names):
                first = next(i for i, name in enumerate(names) if name in ours)
                assert set(names[first:]) <= ours, names
                seen += 1
    assert seen >= 3


@pytest.mark.parametrize(
    ("current", "address", "form"),
    [
        (("10.0.1.2", 1), EDGE_2, ("10.0.2.2", 4433)),
        (("::ffff:10.0.1.2", 1, 0, 0), EDGE_2, ("::ffff:10.0.2.2", 4433, 0, 0)),
        (("fd00::1", 1, 0, 0), ("fd00::2", 4433), ("fd00::2", 4433, 0, 0)),
    ],
)
def test_addresses_take_the_form_of_the_socket(current, address, form):
    pair = Pair()
    seam = Seam(pair.client)
    pair.client._network_paths[0].addr = current
    assert seam.socket_form(address) == form
    assert plain_address(form) == address


def test_probes_are_kept_out_of_recovery():
    pair = Pair()
    pair.handshake()
    pair.drive(limit_s=0.2)
    window, in_flight = pair.client._loss.congestion_window, pair.client._loss.bytes_in_flight
    pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 500, False, pair.now)
    pair.drive(limit_s=0.5)
    assert len([1 for _, address, _ in pair.up if address == EDGE_2]) > 30
    assert pair.client._loss.congestion_window >= window
    assert pair.client._loss.bytes_in_flight == in_flight
    pair.request()
    pair.drive(limit_s=0.5)
    assert pair.answered()


def test_a_switch_starts_congestion_control_anew():
    #: RFC 9000 9.4: MUST NOT contribute to congestion control or RTT estimation
    #: RFC 9000 9.4: MUST immediately reset the congestion controller
    pair = Pair(network=Network())
    pair.handshake()
    pair.response_size = 200_000
    pair.request()
    pair.drive(limit_s=1.0)
    assert pair.server._loss.congestion_window > 100_000
    pair.response_size = 100
    pair.move(Strategy.SYMMETRIC, downtime_s=0.1)
    pair.drive(lambda: pair.switched_to(EDGE_2), limit_s=3.0)
    initial = 10 * pair.client._max_datagram_size
    assert pair.client._loss.congestion_window <= 2 * initial
    assert pair.server._loss.congestion_window <= 2 * initial
    assert pair.all(PathSwitched) == [PathSwitched(EDGE_1, EDGE_2)]


def test_a_candidate_whose_connection_id_is_retired_takes_another():
    """RFC 9000 §5.1.2: Retire Prior To is for those in use on other paths, too."""
    #: RFC 9000 5.1.2: the peer MUST stop using the corresponding connection IDs
    pair = Pair()
    pair.handshake()
    pair.server.prepare_migration(1, Strategy.PROACTIVE_EXPLICIT, [EDGE_2], 500, False, pair.now)
    pair.drive(limit_s=0.1)
    (candidate,) = pair.client._role._prober.candidates.values()
    first = candidate.cid
    pair.client._role.retire_prior_to(first.sequence_number + 1)
    assert candidate.cid is None and not candidate.challenges
    pair.drive(limit_s=0.1)
    assert candidate.cid is not None and candidate.cid.cid != first.cid
    pair.freeze(EDGE_2)
    pair.resume(1, Strategy.PROACTIVE_EXPLICIT, EDGE_2, speak_first=True)
    pair.drive(limit_s=1.0)
    assert pair.switched_to(EDGE_2)
    pair.assert_open()
    assert len(pair.client._peer_cid_available) == 7
