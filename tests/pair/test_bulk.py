"""Much is under way when the server moves: something new comes within 0.7 RTT, little comes twice.

The destination keeps to itself what the source does not know until the commit is recorded, which takes
``COMMIT_S`` here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from aioquic import tls
from aioquic.quic import events as quic_events

from quicferry.quic import ExtensionConfig, MigratableConnection
from quicferry.quic.snapshot import restore_snapshot
from quicferry.strategies import RULES

from .harness import EDGE_2, RTT_S, Address, Pair, configure_both
from .test_in_doubt import Sent, sent  # noqa: F401  (a fixture)

COMMIT_S = 0.003
OVERHEAD_RTTS = 0.7
SENT_AGAIN = 0.02  # of the bytes in flight


class Committing(Pair):
    """Its destinations hear of the commit a moment after they run."""

    def resume(self, epoch: int, strategy: str, to: Address, speak_first: bool) -> None:
        build = functools.partial(MigratableConnection, extension=ExtensionConfig())
        self.resumed_at, self.server_at = self.now, to
        if self.hand_off:
            self.server = restore_snapshot(
                self._snapshot, configuration=self._server_configuration, build=build, now=self.now
            )
        self.server.resume(epoch, strategy, speak_first, self.now, address=to, withhold=True)
        self._await_client = not (speak_first or self._client_came)
        if not self._await_client:
            self._let_in()
        self.flush()
        self.after(COMMIT_S, self.server.record_commit)


def download(pair: Pair) -> None:
    pair.response_size = 2_000_000
    pair.request()


def large_responses(pair: Pair) -> None:
    pair.response_size = 60_000
    pair.load(0.050, until=pair.now + 1.0)


def many_streams(pair: Pair) -> None:
    pair.response_size = 20_000
    for _ in range(60):
        pair.request()


def datagrams(pair: Pair) -> None:
    end = pair.now + 0.8

    def burst() -> None:
        if pair.server is not None and not pair.server._role.held:
            for number in range(10):
                pair.server.send_datagram_frame(b"%010.6f %d" % (pair.now, number) * 40)
        if pair.now < end:
            pair.after(0.005, burst)

    burst()


def upload(pair: Pair) -> None:
    stream = pair.client.get_next_available_stream_id(is_unidirectional=True)
    pair.client.send_stream_data(stream, bytes(2_000_000), end_stream=True)


DOWN = {f.__name__: f for f in (download, large_responses, many_streams, datagrams)}
#: a server that speaks first, or a client that has been told where to ask. A server that moves by a standard
#: may say nothing but probes before its client has come, which is a round trip more
WAYS = [
    *((name, True) for name, rules in RULES.items() if rules.extended),
    *((name, False) for name, rules in RULES.items() if rules.extended and rules.carries_address),
]


def moving(strategy: str, traffic: Callable[[Pair], None], *, server_first: bool, hand_off: bool) -> Pair:
    pair = Committing(hand_off=hand_off)
    pair.handshake(settle_s=1.0)
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
        pair.drive(limit_s=0.1)
    traffic(pair)
    pair.drive(limit_s=5.2 * RTT_S)
    # not fewer round trips than the client takes to fall silent: what knows by loss has noticed
    pair.move(strategy, downtime_s=0.2, server_first=server_first, notice_s=0.1)
    return pair


@pytest.fixture
def with_datagrams(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_both(monkeypatch, max_datagram_frame_size=65_536)


@pytest.mark.usefixtures("with_datagrams")
@pytest.mark.parametrize(
    ("traffic", "hand_off"),
    [(name, name != "datagrams") for name in DOWN] + [("download", False)],
    ids=lambda value: value if isinstance(value, str) else "hand-off" if value else "process",
)
@pytest.mark.parametrize(("strategy", "server_first"), WAYS)
def test_something_new_comes_at_once_and_little_comes_twice(
    sent: Sent,  # noqa: F811
    strategy: str,
    server_first: bool,
    traffic: str,
    hand_off: bool,
):
    pair = moving(strategy, DOWN[traffic], server_first=server_first, hand_off=hand_off)
    assert pair.drive(lambda: pair.server_at is None, limit_s=1.0)
    before = sum(map(len, pair.received.values()))
    flight = max(1, sum(packet.sent_bytes for packet in in_doubt(pair)))
    sent.counting = True
    assert pair.drive(lambda: pair.server_at == EDGE_2, limit_s=1.0)
    useful = (quic_events.StreamDataReceived, quic_events.DatagramFrameReceived)
    assert pair.drive(
        lambda: any(isinstance(e, useful) for t, e in pair.client_events if t > pair.resumed_at), limit_s=1.0
    )
    assert pair.now - pair.resumed_at <= OVERHEAD_RTTS * RTT_S
    pair.drive(pair.answered, limit_s=3.0)
    assert pair.answered()
    assert sent.again <= max(SENT_AGAIN * flight, 1200)
    if traffic != "datagrams":
        assert sum(map(len, pair.received.values())) > before
    pair.assert_open()


def in_doubt(pair: Pair) -> list:
    server = pair.server
    if server is None:
        return []
    return list(server._spaces[tls.Epoch.ONE_RTT].sent_packets.values())


@pytest.mark.parametrize("hand_off", [False, True], ids=["process", "hand-off"])
@pytest.mark.parametrize(("strategy", "server_first"), WAYS)
def test_an_upload_is_acknowledged_at_once(strategy: str, server_first: bool, hand_off: bool):
    """What the client sent while nobody was there waits at the destination; its acknowledgement is news."""
    pair = moving(strategy, upload, server_first=server_first, hand_off=hand_off)
    assert pair.drive(lambda: pair.server_at is None, limit_s=1.0)
    pair.drive(limit_s=RTT_S)
    before = pair.client._spaces[tls.Epoch.ONE_RTT].largest_acked_packet
    assert pair.drive(lambda: pair.server_at == EDGE_2, limit_s=1.0)
    space = pair.client._spaces[tls.Epoch.ONE_RTT]
    assert pair.drive(lambda: space.largest_acked_packet > before, limit_s=1.0)
    assert pair.now - pair.resumed_at <= OVERHEAD_RTTS * RTT_S
    (stream,) = pair.client._streams
    assert pair.drive(lambda: len(pair.uploaded.get(stream, b"")) == 2_000_000, limit_s=10.0)
    pair.assert_open()
