"""Measures what the links really do, between the two ends of each, before an experiment relies on them.

Receive times are the kernel's stamps. Both ends are on one machine with one clock, so each direction is
measured by itself: this is no half of a round trip.

Calibrate while nothing else uses the links, and with the hosts' interfaces up.
"""

from __future__ import annotations

import math
import select
import statistics
import time
from collections.abc import Sequence

import msgspec
import numpy as np

from quicferry.emulation.links.batch import RepeatedFrame
from quicferry.emulation.links.cable.packets import wire_size
from quicferry.emulation.links.layer import LinkLayer, MadeLink, train_segments
from quicferry.emulation.links.link_end import BATCH, ECHO, PING, TRAIN, LinkEnd
from quicferry.model import LinkReading, Shape

SMALL_FRAME_BYTES = 60  # the smallest Ethernet frame without frame check sequence
PING_INTERVAL_S = 0.005
BURST_S = 0.2
LOSS_TRAIN_S = 0.5
LOSS_TRAIN_FRAMES_PER_S = 8_000
_MIN_BURST_FRAMES = 20
_SMALLEST_GROUP = 10
_GROUP_S = 0.002  # long compared with the cable's lateness, short compared with a stall
_OVERLOAD = 1.2  # a burst is offered at 1.2 times the rate: the queue must not run empty
_ETHERNET_BYTES = 14
_MOST_SEGMENTS = 16


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """The measured behaviour of one direction of a link. None: not measured, or nothing arrived."""

    delay_median_ms: float | None
    delay_p99_ms: float | None
    rtt_median_ms: float | None  # of the link, without the time between receipt and echo
    rtt_p99_ms: float | None
    loss_percent: float | None
    rate_mbps: float | None  # Ethernet bytes; only where a rate was asked for


def nearest_rank(values: Sequence[float], percent: float) -> float | None:
    """The percentile (0..100) by nearest rank: a value that was measured; None without values."""
    if not values:
        return None
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def rate_of(stamps_ns: Sequence[int], frame_bytes: int, group: int) -> float | None:
    """The rate in Mbit/s at which frames of one size arrived; None when there are fewer than two.

    The median over groups of successive frames: when the sender was kept from the CPU for a while,
    the queue ran empty, and the gap says nothing about the link.
    """
    ranked = sorted(stamps_ns)
    group = max(1, min(group, len(ranked) - 1))
    spans_ns = [ranked[i + group] - ranked[i] for i in range(0, len(ranked) - group, group)]
    median_ns = statistics.median(spans_ns) if spans_ns else 0
    return group * frame_bytes * 8e3 / median_ns if median_ns else None


def calibrate(layer: LinkLayer, *, pings: int = 100) -> list[LinkReading]:
    """Measure all links of a layer, one after the other; about a second for each.

    The layer's own readings with the measured values, in its order; ``read_back`` also gets
    ``rtt_median_ms``, ``rtt_p99_ms`` and ``delay_p99_ms``. Raises ``EmulationError``.
    """
    measured = [way for made in layer.made for way in calibrate_link(made, pings=pings)]
    return [
        msgspec.structs.replace(
            reading,
            measured_delay_ms=seen.delay_median_ms,
            measured_loss_percent=seen.loss_percent,
            measured_rate_mbps=seen.rate_mbps,
            read_back=reading.read_back
            | {
                "delay_p99_ms": seen.delay_p99_ms,
                "rtt_median_ms": seen.rtt_median_ms,
                "rtt_p99_ms": seen.rtt_p99_ms,
            },
        )
        for reading, seen in zip(layer.readings(), measured, strict=True)
    ]


def calibrate_link(made: MadeLink, *, pings: int = 100) -> tuple[Measured, Measured]:
    """Measure one link: from ``a`` to ``b``, and back. Raises ``EmulationError``."""
    link = made.link
    with LinkEnd(made.a_pid, made.a_interface) as a, LinkEnd(made.b_pid, made.b_interface) as b:
        longest_ms = sum(shape.delay_ms + 6 * shape.jitter_ms for shape in (link.a_to_b, link.b_to_a))
        there, back, rtts = ping_train(a, b, pings, longest_ms)
        return (
            _measure(a, b, link.a_to_b, link.mtu_bytes, pings, there, rtts),
            _measure(b, a, link.b_to_a, link.mtu_bytes, len(there), back, rtts),
        )


def _measure(
    sender: LinkEnd,
    receiver: LinkEnd,
    shape: Shape,
    mtu_bytes: int,
    pinged: int,
    delays_ms: Sequence[float],
    rtts_ms: Sequence[float],
) -> Measured:
    loss = 100 * (1 - len(delays_ms) / pinged) if pinged else None
    if shape.loss_percent:
        loss = _loss(sender, receiver, shape)
    return Measured(
        delay_median_ms=statistics.median(delays_ms) if delays_ms else None,
        delay_p99_ms=nearest_rank(delays_ms, 99),
        rtt_median_ms=statistics.median(rtts_ms) if rtts_ms else None,
        rtt_p99_ms=nearest_rank(rtts_ms, 99),
        loss_percent=loss,
        rate_mbps=_burst(sender, receiver, shape, mtu_bytes) if shape.rate_mbps is not None else None,
    )


def ping_train(
    a: LinkEnd, b: LinkEnd, count: int, longest_ms: float
) -> tuple[list[float], list[float], list[float]]:
    """Delays there, delays back and round-trip times, in milliseconds."""
    sent: dict[int, int] = {}
    echoed: dict[int, int] = {}
    there: dict[int, int] = {}
    back: dict[int, int] = {}
    begun_s = time.monotonic()
    deadline_s = begun_s + count * PING_INTERVAL_S + longest_ms / 1e3 + 0.2
    number = 0
    while (now_s := time.monotonic()) < deadline_s and len(back) < count:
        if number < count and now_s >= begun_s + number * PING_INTERVAL_S:
            stamp_ns = a.send(b, PING, number, SMALL_FRAME_BYTES)
            if stamp_ns is not None:
                sent[number] = stamp_ns
            number += 1
        next_s = begun_s + number * PING_INTERVAL_S if number < count else deadline_s
        select.select([a.socket, b.socket], [], [], max(0.0, next_s - time.monotonic()))
        for kind, got, received_ns in b.receive():
            if kind == PING and got in sent:
                there[got] = received_ns - sent[got]
                stamp_ns = b.send(a, ECHO, got, SMALL_FRAME_BYTES)
                if stamp_ns is not None:
                    echoed[got] = stamp_ns
        for kind, got, received_ns in a.receive():
            if kind == ECHO and got in echoed:
                back[got] = received_ns - echoed[got]
    return (
        [value / 1e6 for value in there.values()],
        [value / 1e6 for value in back.values()],
        [(there[got] + value) / 1e6 for got, value in back.items()],
    )


def frame_train(
    sender: LinkEnd, receiver: LinkEnd, frame: bytes, frames_per_s: float, duration_s: float, wait_s: float
) -> tuple[int, list[int]]:
    """Send equal frames at a pace. How many were sent, and the stamps of those that arrived."""
    receiver.receive()
    stamps: list[int] = []
    count = max(_MIN_BURST_FRAMES, math.ceil(frames_per_s * duration_s))
    repeated = RepeatedFrame(frame, BATCH)
    sent = 0
    begun_s = time.monotonic()
    while sent < count:
        owed = min(count, int((time.monotonic() - begun_s) * frames_per_s) + 1) - sent
        if owed <= 0:
            time.sleep(1 / frames_per_s)
        elif not (done := repeated.send(sender.socket.fileno(), owed)):
            time.sleep(0.001)  # the socket is full: the other end needs time
        else:
            sent += done
        # The receiver's buffer is finite too.
        stamps += [stamp for kind, _, stamp in receiver.receive() if kind == TRAIN]
    deadline_s = time.monotonic() + wait_s
    while len(stamps) < sent and (left_s := deadline_s - time.monotonic()) > 0:
        select.select([receiver.socket], [], [], left_s)
        stamps += [stamp for kind, _, stamp in receiver.receive() if kind == TRAIN]
    return sent, stamps


def _loss(sender: LinkEnd, receiver: LinkEnd, shape: Shape) -> float:
    """The loss in percent of small frames, at no more than half the rate."""
    frames_per_s = float(LOSS_TRAIN_FRAMES_PER_S)
    if shape.rate_mbps is not None:
        frames_per_s = min(frames_per_s, shape.rate_mbps * 1e6 / (8 * SMALL_FRAME_BYTES) / 2)
    if shape.delay_ms and shape.queue_packets is not None:
        frames_per_s = min(frames_per_s, shape.queue_packets / (shape.delay_ms / 1e3) / 2)
    wait_s = (shape.delay_ms + 6 * shape.jitter_ms) / 1e3 + 0.2
    frame = sender.frame(receiver, TRAIN, 0, SMALL_FRAME_BYTES)
    sent, stamps = frame_train(sender, receiver, frame, frames_per_s, LOSS_TRAIN_S, wait_s)
    return 100 * (1 - len(stamps) / sent)


def wire_bytes_of(frame: bytes) -> int:
    """What a frame with its virtio header is on a wire, in bytes of Ethernet: a number of Python's."""
    return int(wire_size(np.frombuffer(frame, np.uint8)).wire_bytes)


def _burst(sender: LinkEnd, receiver: LinkEnd, shape: Shape, mtu_bytes: int) -> float | None:
    """The rate in Mbit/s of full packets that are offered faster than it.

    At high rates in frames of segmentation offload, as TCP would: else the sender, not the link, would
    be measured.
    """
    assert shape.rate_mbps is not None
    segments = min(train_segments(shape, mtu_bytes), _MOST_SEGMENTS)
    frame = sender.frame(receiver, TRAIN, 0, mtu_bytes + _ETHERNET_BYTES)
    if segments > 1:
        frame = sender.offloaded_frame(receiver, mtu_bytes, segments)
    wire_bytes = wire_bytes_of(frame)
    frames_per_s = shape.rate_mbps * 1e6 / (8 * wire_bytes) * _OVERLOAD
    queued_s = shape.queue_limit(mtu_bytes) * mtu_bytes * 8 / (shape.rate_mbps * 1e6)
    wait_s = min(queued_s, BURST_S * _OVERLOAD + 1) + (shape.delay_ms + 6 * shape.jitter_ms) / 1e3 + 0.2
    _, stamps = frame_train(sender, receiver, frame, frames_per_s, BURST_S, wait_s)
    in_group = max(_SMALLEST_GROUP, int(_GROUP_S * shape.rate_mbps * 1e6 / (8 * wire_bytes)))
    return rate_of(stamps, wire_bytes, in_group)
