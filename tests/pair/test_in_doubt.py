"""What was in flight at the freeze is in doubt: it is sent again only if the client has not got it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from aioquic import tls
from aioquic.quic.events import StreamDataReceived
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.stream import QuicStreamSender

from quicferry.quic._aioquic.doubt import Doubt
from quicferry.strategies import RULES, Strategy

from .harness import EDGE_2, RTT_S, Network, Pair

DOWNLOAD_BYTES = 2_000_000


class Sent:
    """Stream bytes that left, and how many of them left a second time."""

    def __init__(self) -> None:
        self.seen: dict[int, RangeSet] = {}
        self.again = 0
        self.counting = False

    def add(self, stream_id: int, start: int, stop: int) -> None:
        seen = self.seen.setdefault(stream_id, RangeSet())
        if self.counting:
            self.again += sum(max(0, min(r.stop, stop) - max(r.start, start)) for r in seen)
        if start < stop:
            seen.add(start, stop)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sent]:
    made = Sent()
    original = QuicStreamSender.get_frame

    def watched(self, max_size, max_offset=None):
        frame = original(self, max_size, max_offset)
        if frame is not None and self._stream_id is not None:
            made.add(self._stream_id, frame.offset, frame.offset + len(frame.data))
        return frame

    monkeypatch.setattr(QuicStreamSender, "get_frame", watched)
    yield made


def downloading(strategy: Strategy, *, rtt_s: float = RTT_S, hand_off: bool, **keywords) -> Pair:
    """In the middle of a download; the window has grown."""
    network = Network(one_way_s={}, **keywords)
    network.delay_s = lambda address, rng: rtt_s / 2  # type: ignore[method-assign]
    pair = Pair(hand_off=hand_off, network=network)
    pair.handshake(settle_s=8 * rtt_s)
    if RULES[strategy].pool:
        pair.server.offer_addresses([EDGE_2], pair.now)
    pair.drive(limit_s=4 * rtt_s)
    pair.response_size = DOWNLOAD_BYTES
    pair.request()
    pair.drive(limit_s=6.2 * rtt_s)
    assert not pair.answered()
    return pair


def in_flight_bytes(pair: Pair) -> int:
    return pair.server._loss.bytes_in_flight


@pytest.mark.parametrize("hand_off", [False, True])
@pytest.mark.parametrize("rtt_s", [RTT_S, 0.1])
@pytest.mark.parametrize("strategy", [s for s, rules in RULES.items() if rules.server_first])
def test_the_first_flight_is_new_and_little_is_sent_twice(sent: Sent, strategy, rtt_s, hand_off):
    pair = downloading(strategy, rtt_s=rtt_s, hand_off=hand_off)
    flight = in_flight_bytes(pair)
    assert flight > 40_000
    sent.counting = True
    pair.move(strategy, downtime_s=rtt_s, notice_s=0.0)  # what the source sent has arrived by then
    assert pair.drive(pair.answered, limit_s=10.0)
    first = next(
        t for t, e in pair.client_events if isinstance(e, StreamDataReceived) and t > pair.resumed_at
    )
    assert first - pair.resumed_at <= 0.6 * rtt_s
    assert sent.again <= 0.02 * flight
    assert len(pair.received[0]) == DOWNLOAD_BYTES


@pytest.mark.parametrize("hand_off", [False, True])
@pytest.mark.parametrize("strategy", list(RULES))
def test_a_part_of_the_flight_that_was_lost_is_sent_again(sent: Sent, strategy, hand_off):
    lost: list[int] = []
    pair = downloading(strategy, hand_off=hand_off)
    flight = in_flight_bytes(pair)
    at_client = pair._at_client

    def unlucky(data: bytes, address) -> None:
        if address != EDGE_2 and pair.server_at is None and len(data) > 1000 and len(lost) < 5:
            lost.append(len(data))
            return
        at_client(data, address)

    pair._at_client = unlucky  # type: ignore[method-assign]
    sent.counting = True
    pair.move(strategy, downtime_s=RTT_S, notice_s=0.0)
    assert pair.drive(pair.answered, limit_s=10.0)
    assert lost
    assert sum(lost) * 0.8 <= sent.again <= sum(lost) + 0.02 * flight
    assert len(pair.received[0]) == DOWNLOAD_BYTES


def test_a_slow_old_path_does_not_make_a_loss(sent: Sent):
    """The client hears the destination before the last packets of the source have come."""
    pair = downloading(Strategy.SYMMETRIC, hand_off=True)
    flight = in_flight_bytes(pair)
    at_client, slow_s = pair._at_client, 0.010

    def arrives(data: bytes, address) -> None:
        if address == EDGE_2:
            at_client(data, address)
        else:
            pair.after(slow_s, lambda: at_client(data, address))

    pair._at_client = arrives  # type: ignore[method-assign]
    sent.counting = True
    pair.move(Strategy.SYMMETRIC, downtime_s=0.001)
    assert pair.drive(pair.answered, limit_s=10.0)
    assert sent.again <= 0.02 * flight


def test_moves_closer_than_a_round_trip_make_progress(sent: Sent):
    """A download goes on although nothing is acknowledged between two moves."""
    pair = downloading(Strategy.SYMMETRIC, hand_off=True)
    flight = in_flight_bytes(pair)
    sent.counting = True
    for number, to in enumerate((EDGE_2, ("10.0.3.2", 4433), ("10.0.4.2", 4433)), start=1):
        pair.move(Strategy.SYMMETRIC, to=to, epoch=number, downtime_s=0.002)
        pair.drive(limit_s=0.004)
    assert pair.drive(pair.answered, limit_s=10.0)
    assert pair.client._network_paths[0].addr == to
    assert sent.again <= 0.02 * flight
    assert len(pair.received[0]) == DOWNLOAD_BYTES


def packet(number: int, sender: QuicStreamSender, start: int, stop: int, fin: bool = False) -> QuicSentPacket:
    return QuicSentPacket(
        epoch=tls.Epoch.ONE_RTT,
        in_flight=True,
        is_ack_eliciting=True,
        is_crypto_packet=False,
        packet_number=number,
        packet_type=None,  # type: ignore[arg-type]  # nobody looks at it
        sent_time=10.0,
        delivery_handlers=[(sender.on_data_delivery, (start, stop, fin))],
    )


def ranges(*pairs: tuple[int, int]) -> RangeSet:
    made = RangeSet()
    for start, stop in pairs:
        made.add(start, stop)
    return made


def written(size: int) -> QuicStreamSender:
    """A sender all of whose data has left."""
    sender = QuicStreamSender(stream_id=0, writable=True)
    sender.write(bytes(size), end_stream=True)
    while sender.get_frame(1000) is not None:
        pass
    return sender


def test_nothing_is_lost_before_the_peer_has_heard_the_destination():
    sender = written(3000)
    doubt = Doubt(
        [packet(n, sender, n * 1000, n * 1000 + 1000, n == 2) for n in range(3)], begins_at=9, rtt_s=1
    )
    doubt.acknowledged(ranges((2, 3)), 0.0, 100.0)
    assert doubt.due_at is None and list(doubt.packets) == [0, 1]
    assert not sender._pending.__len__()
    doubt.acknowledged(ranges((0, 1), (9, 10)), 0.0, 100.0)
    assert doubt.packets == {}
    assert list(sender._pending) == [range(1000, 2000)]


def test_a_late_acknowledgement_cancels_the_repetition():
    sender = written(3000)
    doubt = Doubt(
        [packet(n, sender, n * 1000, n * 1000 + 1000, n == 2) for n in range(3)], begins_at=9, rtt_s=1
    )
    doubt.acknowledged(ranges((9, 10)), 0.0, 100.0)
    assert list(sender._pending) == [range(3000)]
    assert sender.get_frame(500).offset == 0  # a part has left again
    doubt.acknowledged(ranges((0, 3)), 0.0, 100.1)
    assert len(sender._pending) == 0
    assert not sender.is_finished
    sender.on_data_delivery(QuicDeliveryState.ACKED, 0, 500, False)
    assert sender.is_finished
    assert doubt.is_over


def test_what_may_still_be_on_its_way_is_waited_for():
    sender = written(1000)
    doubt = Doubt([packet(0, sender, 0, 1000, True)], begins_at=9, rtt_s=0.08)
    doubt.acknowledged(ranges((9, 10)), 0.018, 10.05)
    assert doubt.due_at == pytest.approx(10.0 + 9 / 8 * 0.08 + 0.001)
    doubt.look(10.06)
    assert len(sender._pending) == 0
    doubt.look(doubt.due_at)
    assert list(sender._pending) == [range(1000)]
