"""Measure what the links really do, between the two ends of each, before an experiment trusts them.

The frames have an Ethernet type of their own (0x88B5, IEEE 802: local experimental), so that neither
addresses nor routes are needed and an end may be the port of a bridge. Receive times are the kernel's
stamps. Both ends are on one machine with one clock, so each direction is measured by itself: this is
no half of a round trip.

Calibrate while nothing else uses the links, and with the hosts' interfaces up.
"""

from __future__ import annotations

import math
import select
import socket
import statistics
import struct
import time
from collections.abc import Sequence

import msgspec

from quicferry import packet_filter
from quicferry.emulation.links.cable.batch import BatchReader, RepeatedFrame
from quicferry.emulation.links.cable.frames import (
    ETH_P_ALL,
    PACKET_IGNORE_OUTGOING,
    PACKET_QDISC_BYPASS,
    PACKET_VNET_HDR,
    RECEIVE_BUFFER_BYTES,
    SO_RCVBUFFORCE,
    SO_TIMESTAMPNS,
    SOL_PACKET,
    VNET_HEADER,
    VNET_HEADER_BYTES,
    wire_size,
)
from quicferry.emulation.links.layer import LinkLayer, MadeLink, train_segments
from quicferry.emulation.sandbox.namespaces import network_of
from quicferry.errors import EmulationError
from quicferry.model import LinkReading, Shape

ETHERTYPE = 0x88B5
ETH_P_IP = 0x0800
TRAIN_SOURCE = 0x7F000053  # 127.0.0.83
SMALL_FRAME_BYTES = 60  # the smallest Ethernet frame without frame check sequence
PING_INTERVAL_S = 0.005
BURST_S = 0.2
LOSS_TRAIN_S = 0.5
LOSS_TRAIN_FRAMES_PER_S = 8_000
_MIN_BURST_FRAMES = 20
_SMALLEST_GROUP = 10
_GROUP_S = 0.002  # long compared with the cable's lateness, short compared with a stall
_OVERLOAD = 1.2  # a burst is offered at 1.2 times the rate: the queue must not run empty
PING, ECHO, TRAIN = 1, 2, 3
_BODY = struct.Struct("!BI")  # kind, number
_ETHERNET_BYTES = 14
_ETHERTYPE_AT = VNET_HEADER_BYTES + 12
_TRAIN_ETHERTYPE = struct.pack("!H", ETH_P_IP)
_NEEDS_CHECKSUM, _GSO_TCPV4 = 1, 1  # <linux/virtio_net.h>
_MOST_SEGMENTS = 16
BATCH = 32


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
        self._reader = BatchReader(BATCH)
        self.hardware_address: bytes = self.socket.getsockname()[4]

    def _prepare(self, interface: str) -> None:
        self.socket.setblocking(False)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        # ETH_P_ALL is needed to see frames before a bridge takes them; the filter keeps ours.
        program = struct.pack(
            "=" + 7 * "HBBI",
            *(0x28, 0, 0, 12),  # load the Ethernet type
            *(0x15, 3, 0, ETHERTYPE),  # equal: accept
            *(0x15, 0, 3, ETH_P_IP),  # not equal: refuse
            *(0x20, 0, 0, 26),  # load the IPv4 source address
            *(0x15, 0, 1, TRAIN_SOURCE),  # not equal: refuse
            *(0x06, 0, 0, 0x40000),  # accept
            *(0x06, 0, 0, 0),  # refuse
        )
        packet_filter.attach(self.socket, program)
        self.socket.bind((interface, ETH_P_ALL))

    def __enter__(self) -> LinkEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, other: LinkEnd, kind: int, number: int, length_bytes: int) -> int | None:
        """Send one frame; the time just before (CLOCK_REALTIME ns), None when the socket is full."""
        frame = self.frame(other, kind, number, length_bytes)
        sent_ns = time.time_ns()
        try:
            self.socket.send(frame)
        except BlockingIOError:
            return None
        return sent_ns

    def receive(self) -> list[tuple[int, int, int]]:
        """All frames that are there: kind, number and receive stamp (CLOCK_REALTIME ns)."""
        found: list[tuple[int, int, int]] = []
        while arrived := self._reader.read(self.socket.fileno()):
            for frame, stamp_ns in arrived:
                if frame[_ETHERTYPE_AT : _ETHERTYPE_AT + 2] == _TRAIN_ETHERTYPE:
                    found.append((TRAIN, 0, stamp_ns))
                else:
                    found.append((*_BODY.unpack_from(frame, _ETHERTYPE_AT + 2), stamp_ns))
        return found

    def frame(self, other: LinkEnd, kind: int, number: int, length_bytes: int) -> bytes:
        """One frame to the other end, with its virtio header."""
        head = other.hardware_address + self.hardware_address + struct.pack("!H", ETHERTYPE)
        body = (head + _BODY.pack(kind, number)).ljust(length_bytes, b"\0")
        return b"\0" * VNET_HEADER_BYTES + body

    def offloaded_frame(self, other: LinkEnd, mtu_bytes: int, segments: int) -> bytes:
        """A frame of segmentation offload that is ``segments`` full packets on a wire.

        It looks like TCP, as the kernel asks for that. Nobody takes it for a packet: its source is a
        loopback address and its IP checksum is wrong, so that the receiving host drops it unread.
        """
        payload_bytes = mtu_bytes - 40
        total_bytes = 40 + segments * payload_bytes
        header = VNET_HEADER.pack(_NEEDS_CHECKSUM, _GSO_TCPV4, 54, payload_bytes, 34, 16)
        ethernet = other.hardware_address + self.hardware_address + _TRAIN_ETHERTYPE
        ip = struct.pack("!BBHHHBBHII", 0x45, 0, total_bytes, 0, 0, 1, 6, 0xBAD, TRAIN_SOURCE, TRAIN_SOURCE)
        tcp = struct.pack("!HHIIBBHHH", 9, 9, 0, 0, 5 << 4, 0, 0, 0, 0)  # port 9: discard
        return header + ethernet + ip + tcp + bytes(segments * payload_bytes)


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The nearest-rank percentile (0..100); None without values."""
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
    wire_bytes = wire_size(frame).wire_bytes
    frames_per_s = shape.rate_mbps * 1e6 / (8 * wire_bytes) * _OVERLOAD
    queued_s = shape.queue_limit(mtu_bytes) * mtu_bytes * 8 / (shape.rate_mbps * 1e6)
    wait_s = min(queued_s, BURST_S * _OVERLOAD + 1) + (shape.delay_ms + 6 * shape.jitter_ms) / 1e3 + 0.2
    _, stamps = frame_train(sender, receiver, frame, frames_per_s, BURST_S, wait_s)
    in_group = max(_SMALLEST_GROUP, int(_GROUP_S * shape.rate_mbps * 1e6 / (8 * wire_bytes)))
    return rate_of(stamps, wire_bytes, in_group)
