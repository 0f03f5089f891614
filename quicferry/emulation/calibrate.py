"""Measure what the links really do, between the two ends of each, before an experiment trusts them.

The frames have an Ethernet type of their own (0x88B5, IEEE 802: local experimental), so that neither
addresses nor routes are needed and an end may be the port of a bridge. Receive times are the kernel's
stamps. Both ends are on one machine with one clock, so each direction is measured by itself: this is
no half of a round trip.

Calibrate while nothing else uses the links, and with the hosts' interfaces up.
"""

from __future__ import annotations

import ctypes
import math
import select
import socket
import statistics
import struct
import time
from collections.abc import Sequence

import msgspec

from quicferry.emulation.cable.frames import (
    ETH_P_ALL,
    PACKET_IGNORE_OUTGOING,
    RECEIVE_BUFFER_BYTES,
    SO_RCVBUFFORCE,
    SO_TIMESTAMPNS,
    SOL_PACKET,
)
from quicferry.emulation.links import LinkLayer, MadeLink
from quicferry.emulation.namespaces import network_of
from quicferry.errors import EmulationError
from quicferry.model import LinkReading, Shape

ETHERTYPE = 0x88B5
SMALL_FRAME_BYTES = 60  # the smallest Ethernet frame without frame check sequence
PING_INTERVAL_S = 0.005
BURST_S = 0.2
LOSS_TRAIN_S = 0.5
LOSS_TRAIN_FRAMES_PER_S = 8_000
_MIN_BURST_FRAMES = 20
_OVERLOAD = 1.2  # a burst is offered at 1.2 times the rate: the queue must not run empty
_SO_ATTACH_FILTER = 26
_PING, _ECHO, _TRAIN = 1, 2, 3
_BODY = struct.Struct("!BI")  # kind, number
_HEADER_BYTES = 14
_TIMESPEC = struct.Struct("=qq")


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What one direction of a link was seen to do. None: not measured, or nothing arrived."""

    delay_median_ms: float | None
    delay_p99_ms: float | None
    rtt_median_ms: float | None  # of the link, without the time between receipt and echo
    rtt_p99_ms: float | None
    loss_percent: float | None
    rate_mbps: float | None  # Ethernet bytes; only where a rate was asked for


class LinkEnd:
    """One end of a link: a socket on the host's interface, for calibration frames only.

    Raises ``EmulationError`` when the interface is missing or down.
    """

    def __init__(self, pid: int, interface: str) -> None:
        try:
            with network_of(pid):
                self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
                try:
                    self._prepare(interface)
                except OSError:
                    self.socket.close()
                    raise
        except OSError as error:
            raise EmulationError(
                f"cannot calibrate at {interface}: {error.strerror}",
                hint="interfaces must exist and be up, and this needs root",
            ) from error
        self.hardware_address: bytes = self.socket.getsockname()[4]

    def _prepare(self, interface: str) -> None:
        self.socket.setblocking(False)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # Load the Ethernet type, keep the frame if it is ours. ETH_P_ALL is needed to see frames
        # before a bridge takes them.
        program = struct.pack(
            "=HBBIHBBIHBBIHBBI",
            *(0x28, 0, 0, 12),
            *(0x15, 0, 1, ETHERTYPE),
            *(0x06, 0, 0, 0x40000),
            *(0x06, 0, 0, 0),
        )
        buffer = ctypes.create_string_buffer(program, len(program))
        filter_program = struct.pack("@HP", 4, ctypes.addressof(buffer))
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_program)
        self.socket.bind((interface, ETH_P_ALL))

    def __enter__(self) -> LinkEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, other: LinkEnd, kind: int, number: int, length_bytes: int) -> int | None:
        """Send one frame; the time just before (CLOCK_REALTIME ns), None when the socket is full."""
        head = other.hardware_address + self.hardware_address + struct.pack("!H", ETHERTYPE)
        frame = (head + _BODY.pack(kind, number)).ljust(length_bytes, b"\0")
        sent_ns = time.time_ns()
        try:
            self.socket.send(frame)
        except (BlockingIOError, OSError):
            return None
        return sent_ns

    def receive(self) -> list[tuple[int, int, int]]:
        """All frames that are there: kind, number and receive stamp (CLOCK_REALTIME ns)."""
        found: list[tuple[int, int, int]] = []
        while True:
            try:
                frame, control, _, _ = self.socket.recvmsg(64, socket.CMSG_SPACE(_TIMESPEC.size))
            except BlockingIOError:
                return found
            stamps = [_TIMESPEC.unpack(data) for _, kind, data in control if kind == SO_TIMESTAMPNS]
            kind, number = _BODY.unpack_from(frame, _HEADER_BYTES)
            if stamps:
                found.append((kind, number, stamps[0][0] * 1_000_000_000 + stamps[0][1]))


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile (0..100); None without values."""
    if not values:
        return None
    ranked = sorted(values)
    return ranked[max(0, math.ceil(len(ranked) * percent / 100) - 1)]


def rate_of(stamps_ns: Sequence[int], frame_bytes: int) -> float | None:
    """The rate in Mbit/s at which frames of one size arrived; None with fewer than two."""
    if len(stamps_ns) < 2:
        return None
    took_ns = max(stamps_ns) - min(stamps_ns)
    return (len(stamps_ns) - 1) * frame_bytes * 8e3 / took_ns if took_ns else None


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
        delay_p99_ms=percentile(delays_ms, 99),
        rtt_median_ms=statistics.median(rtts_ms) if rtts_ms else None,
        rtt_p99_ms=percentile(rtts_ms, 99),
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
            stamp_ns = a.send(b, _PING, number, SMALL_FRAME_BYTES)
            if stamp_ns is not None:
                sent[number] = stamp_ns
            number += 1
        next_s = begun_s + number * PING_INTERVAL_S if number < count else deadline_s
        select.select([a.socket, b.socket], [], [], max(0.0, next_s - time.monotonic()))
        for kind, got, received_ns in b.receive():
            if kind == _PING and got in sent:
                there[got] = received_ns - sent[got]
                stamp_ns = b.send(a, _ECHO, got, SMALL_FRAME_BYTES)
                if stamp_ns is not None:
                    echoed[got] = stamp_ns
        for kind, got, received_ns in a.receive():
            if kind == _ECHO and got in echoed:
                back[got] = received_ns - echoed[got]
    return (
        [value / 1e6 for value in there.values()],
        [value / 1e6 for value in back.values()],
        [(there[got] + value) / 1e6 for got, value in back.items()],
    )


def frame_train(
    sender: LinkEnd,
    receiver: LinkEnd,
    frame_bytes: int,
    frames_per_s: float,
    duration_s: float,
    wait_s: float,
) -> tuple[int, list[int]]:
    """Send equal frames at a pace. How many were sent, and the stamps of those that arrived."""
    receiver.receive()
    stamps: list[int] = []
    count = max(_MIN_BURST_FRAMES, math.ceil(frames_per_s * duration_s))
    sent = 0
    begun_s = time.monotonic()
    while sent < count:
        ahead_s = begun_s + sent / frames_per_s - time.monotonic()
        if ahead_s > 0:
            time.sleep(ahead_s)
        if sender.send(receiver, _TRAIN, sent, frame_bytes) is None:
            time.sleep(0.001)  # the socket is full: the other end needs time
            continue
        sent += 1
    deadline_s = time.monotonic() + wait_s
    while len(stamps) < sent and (left_s := deadline_s - time.monotonic()) > 0:
        select.select([receiver.socket], [], [], left_s)
        stamps += [stamp for kind, _, stamp in receiver.receive() if kind == _TRAIN]
    return sent, stamps


def _loss(sender: LinkEnd, receiver: LinkEnd, shape: Shape) -> float:
    """The loss in percent of small frames, at no more than half the rate."""
    frames_per_s = float(LOSS_TRAIN_FRAMES_PER_S)
    if shape.rate_mbps is not None:
        frames_per_s = min(frames_per_s, shape.rate_mbps * 1e6 / (8 * SMALL_FRAME_BYTES) / 2)
    if shape.delay_ms and shape.queue_packets is not None:
        frames_per_s = min(frames_per_s, shape.queue_packets / (shape.delay_ms / 1e3) / 2)
    wait_s = (shape.delay_ms + 6 * shape.jitter_ms) / 1e3 + 0.2
    sent, stamps = frame_train(sender, receiver, SMALL_FRAME_BYTES, frames_per_s, LOSS_TRAIN_S, wait_s)
    return 100 * (1 - len(stamps) / sent)


def _burst(sender: LinkEnd, receiver: LinkEnd, shape: Shape, mtu_bytes: int) -> float | None:
    """The rate in Mbit/s of full frames that are offered faster than it."""
    assert shape.rate_mbps is not None
    frame_bytes = mtu_bytes + _HEADER_BYTES
    frames_per_s = shape.rate_mbps * 1e6 / (8 * frame_bytes) * _OVERLOAD
    queued_s = shape.queue_limit(mtu_bytes) * frame_bytes * 8 / (shape.rate_mbps * 1e6)
    wait_s = min(queued_s, BURST_S * _OVERLOAD + 1) + (shape.delay_ms + 6 * shape.jitter_ms) / 1e3 + 0.2
    _, stamps = frame_train(sender, receiver, frame_bytes, frames_per_s, BURST_S, wait_s)
    return rate_of(stamps, frame_bytes)
