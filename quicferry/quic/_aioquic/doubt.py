"""What was on its way when a server was frozen: in doubt, neither acknowledged nor lost.

The packets go on to the client while the server moves; most of them arrive. A destination that took them
for lost would send again what the client has, in the very flight that is to carry new data, and could make
nothing of the acknowledgements. So it takes over the list of sent packets, apart from those of its own
path: they take no part in its congestion control and its RTT (RFC 9000 §9.4). The first acknowledgement of
a packet of the destination settles them: what it does not hold is lost, as soon as it is older than the
time threshold of RFC 9002 §6.1.2. An acknowledgement that comes later still cancels the repetition.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from aioquic import tls
from aioquic.quic.packet_builder import QuicDeliveryState, QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.stream import QuicStreamSender

from quicferry.quic._aioquic.connection import HookedConnection

_TIME_THRESHOLD = 9 / 8  # RFC 9002 §6.1.2
_GRANULARITY_S = 0.001
_REMEMBERED_S = 3.0  # how long a late acknowledgement of what was taken for lost can come

#: stream data of a packet: the sender, and start, stop and FIN
_Data = tuple[QuicStreamSender, int, int, bool]


class Doubt:
    """The packets in doubt of one connection. Times are in seconds on the connection's clock.

    ``begins_at`` is the first packet number of the path that the connection goes on with, ``rtt_s`` the
    smoothed RTT of the path that the packets were sent on.
    """

    def __init__(self, packets: Iterable[QuicSentPacket], *, begins_at: int, rtt_s: float) -> None:
        self.packets = {packet.packet_number: packet for packet in packets}
        self.begins_at = begins_at
        self.rtt_s = rtt_s
        self._delay_s: float | None = None  # after which one is lost, once the peer has told what it has
        self._lost: dict[int, list[_Data]] = {}
        self._forget_at = 0.0

    @property
    def is_over(self) -> bool:
        """Whether nothing is in doubt any more, and nothing can be cancelled."""
        return not self.packets and not self._lost

    @property
    def due_at(self) -> float | None:
        """When ``look`` has something to do; None while that depends on the peer."""
        if self.packets:
            if self._delay_s is None:
                return None
            return min(packet.sent_time or 0.0 for packet in self.packets.values()) + self._delay_s
        return self._forget_at if self._lost else None

    def acknowledged(self, ranges: RangeSet, rtt_s: float, now: float) -> None:
        """An ACK frame came. ``rtt_s``: the latest sample of the new path, 0 if there is none."""
        numbers = list(self.packets)
        for r in ranges:
            for number in numbers[bisect_left(numbers, r.start) : bisect_left(numbers, r.stop)]:
                for handler, arguments in self.packets.pop(number).delivery_handlers:
                    handler(QuicDeliveryState.ACKED, *arguments)
            for number in [number for number in self._lost if r.start <= number < r.stop]:
                for data in self._lost.pop(number):
                    _cancel(*data)
        if ranges.bounds().stop > self.begins_at:
            self._delay_s = _TIME_THRESHOLD * max(self.rtt_s, rtt_s) + _GRANULARITY_S
            self.look(now)

    def look(self, now: float) -> None:
        """Give up what has been in doubt for long enough."""
        if self._delay_s is not None:
            limit = now - self._delay_s
            self._give_up([p for p in self.packets.values() if (p.sent_time or 0.0) <= limit], now)
        if self._lost and not self.packets and now >= self._forget_at:
            self._lost.clear()

    def give_up(self, now: float) -> None:
        """All of it is to be sent again: its path goes on, and knows no doubt."""
        self._give_up(list(self.packets.values()), now)
        self._lost.clear()

    def _give_up(self, packets: Iterable[QuicSentPacket], now: float) -> None:
        for packet in packets:
            del self.packets[packet.packet_number]
            self._forget_at = now + _REMEMBERED_S
            for handler, arguments in packet.delivery_handlers:
                handler(QuicDeliveryState.LOST, *arguments)
                sender = sender_of(handler)
                if sender is not None:
                    self._lost.setdefault(packet.packet_number, []).append((sender, *arguments))


def sender_of(handler: Callable[..., Any]) -> QuicStreamSender | None:
    """The sender whose data a delivery handler is about; None for other frames, and for CRYPTO."""
    sender = getattr(handler, "__self__", None)
    if not isinstance(sender, QuicStreamSender) or sender._stream_id is None:
        return None
    return sender if handler == sender.on_data_delivery else None


def is_acknowledgement(handler: Callable[..., Any]) -> bool:
    """Whether a delivery handler is about an ACK frame."""
    return getattr(handler, "__name__", "") == "_on_ack_delivery"


def doubt_flight(connection: HookedConnection, now: float) -> None:
    """Takes stream data in flight for in doubt; all other frames in flight are to be sent again.

    Those are few and small, and mean nothing twice. None of it is a sign of congestion.
    """
    loss, space = connection._loss, connection._spaces[tls.Epoch.ONE_RTT]
    former = connection._doubt
    packets = [] if former is None else list(former.packets.values())
    flight = list(space.sent_packets.values())
    for packet in flight:
        handlers = packet.delivery_handlers
        packet.delivery_handlers = [
            each for each in handlers if sender_of(each[0]) is None and not is_acknowledgement(each[0])
        ]
        kept = [each for each in handlers if each not in packet.delivery_handlers]
        if any(sender_of(handler) is not None for handler, _ in kept):
            packets.append(replace(packet, delivery_handlers=kept))
    loss._on_packets_lost(congestion_event=False, now=now, packets=flight, space=space)
    space.loss_time = None
    rtt_s = loss._rtt_smoothed if loss._rtt_initialized else loss._rtt_initial
    if former is not None and not flight:
        rtt_s = former.rtt_s  # its RTT has gone with the path
    connection._doubt = Doubt(packets, begins_at=connection._packet_number, rtt_s=rtt_s) if packets else None


def _cancel(sender: QuicStreamSender, start: int, stop: int, fin: bool) -> None:
    """What of the data still waits to be sent again has arrived. The rest is on its way a second time."""
    if sender._reset_error_code is not None:
        return
    waiting = [(max(r.start, start), min(r.stop, stop)) for r in sender._pending]
    for first, last in waiting:
        if first < last:
            sender._pending.subtract(first, last)
            sender.on_data_delivery(QuicDeliveryState.ACKED, first, last, False)
    if fin and sender._pending_eof and not any(r.stop == stop for r in sender._pending):
        sender._pending_eof = False
        sender.on_data_delivery(QuicDeliveryState.ACKED, stop, stop, True)
