"""The decision for each frame of one direction: lost, dropped, or when it may leave.

Pure: it is told when a frame arrived and answers with a time; it never asks a clock, so that
every rule can be tested in virtual time, and a given seed and sequence of frames always gives the
same answers.

The rules are those of ``tc netem`` (Linux, net/sched/sch_netem.c), so that both backends of the
link layer mean the same thing by a ``Shape``:

1. During an *outage* everything is lost (netem has none).
2. *Loss* is drawn for each frame: independently, or by the two states of Gilbert's model, of which the
   bad one loses everything and lasts ``loss_burst_packets`` in the mean.
3. The *queue* holds all frames that have arrived and not left: those that wait for the rate and
   those under way. When it is full, the newcomer is dropped (tail drop).
4. The *rate* is kept by a virtual finish time, or by the moments of a trace (``rates``).
5. Then comes the *delay*, with a jitter from a normal distribution, cut at 0.
6. Frames never overtake each other: one whose jitter would let it pass leaves with its predecessor. Only
   one that is *reordered* leaves without the delay.
7. A frame may be *corrupted*, and may be *duplicated*: its copy leaves with it.
"""

from __future__ import annotations

import random
from collections import deque

from quicferry.emulation.links.cable.rates import FixedRate, NoLimit, Rate, TracedRate
from quicferry.emulation.links.trace import read_trace
from quicferry.model import Shape
from quicferry.units import NS_PER_S, ms_to_ns

LOST = -1  # by the loss that was asked for, or in an outage
QUEUE_FULL = -2  # tail drop


class LinkDirection:
    """One direction of a link. ``seed`` may be any text; equal seeds give equal fates."""

    def __init__(self, shape: Shape, *, mtu_bytes: int, seed: str) -> None:
        self.shape = shape
        self.lost_packets = 0
        self.queue_full_packets = 0
        self._delay_ns = ms_to_ns(shape.delay_ms)
        self._jitter_ns = shape.jitter_ms * 1e6
        self._rate = _rate_of(shape)
        self._loss = shape.loss_percent / 100
        self._limit = shape.queue_limit(mtu_bytes)
        # Two generators, so that a frame's loss depends on its number alone, not on the jitter drawn.
        self._loss_random = random.Random(f"{seed}/loss")
        self._jitter_random = random.Random(f"{seed}/jitter")
        self.reordered_packets = self.duplicated_packets = self.corrupted_packets = self.outage_packets = 0
        self._bad = False  # of Gilbert's model: the link loses everything now
        self._reorder, self._duplicate, self._corrupt = (
            percent / 100
            for percent in (shape.reorder_percent, shape.duplicate_percent, shape.corrupt_percent)
        )
        self._mangle_random = random.Random(f"{seed}/mangle")
        self._outages: list[tuple[int, int]] = []
        self._last_release_ns = 0
        self._held: deque[tuple[int, int]] = deque()  # (release, packets), in order of release
        self._held_packets = 0

    def schedule(self, arrival_ns: int, wire_bytes: int, packets: int = 1) -> int:
        """Decide over a frame that arrived at ``arrival_ns`` (CLOCK_MONOTONIC; not decreasing).

        ``wire_bytes`` and ``packets`` say what it is on a wire: a frame of segmentation offload is
        several packets, each with its headers. Returns the time at which it may leave, or ``LOST``
        or ``QUEUE_FULL``.
        """
        if self._outages and any(begin <= arrival_ns < end for begin, end in self._outages):
            self.outage_packets += packets
            return LOST
        if self._loss and self._is_lost():
            self.lost_packets += packets
            return LOST
        held = self._held
        while held and held[0][0] <= arrival_ns:
            self._held_packets -= held.popleft()[1]
        if self._held_packets + packets > self._limit and self._held_packets:
            self.queue_full_packets += packets
            return QUEUE_FULL
        ready_ns = self._rate.finish_ns(arrival_ns, wire_bytes)
        if self._reorder and self._mangle_random.random() < self._reorder:
            # it does not wait for those under way, nor they for it; in the queue it counts as gone
            self.reordered_packets += packets
            return ready_ns
        delay_ns = self._delay_ns
        if self._jitter_ns:
            delay_ns = max(0, delay_ns + round(self._jitter_random.gauss(0.0, self._jitter_ns)))
        release_ns = max(ready_ns + delay_ns, self._last_release_ns)
        self._last_release_ns = release_ns
        held.append((release_ns, packets))
        self._held_packets += packets
        return release_ns

    def begin(self, zero_ns: int) -> None:
        """The load begins now: outages and the trace of rates count from this moment."""
        self._rate.begin(zero_ns)
        self._outages = [
            (zero_ns + round(after_s * NS_PER_S), zero_ns + round((after_s + length_s) * NS_PER_S))
            for after_s, length_s in self.shape.outages
        ]

    @property
    def mangles(self) -> bool:
        """Whether frames may be corrupted or duplicated."""
        return bool(self._duplicate or self._corrupt)

    def is_duplicated(self) -> bool:
        """Draw whether the frame that was just scheduled is sent twice."""
        drawn = bool(self._duplicate) and self._mangle_random.random() < self._duplicate
        self.duplicated_packets += drawn
        return drawn

    def corrupt_bit(self, bits: int) -> int | None:
        """Draw whether one of these bits of the frame is flipped, and which; None: it stays whole."""
        if not self._corrupt or self._mangle_random.random() >= self._corrupt:
            return None
        self.corrupted_packets += 1
        return self._mangle_random.randrange(bits)

    def _is_lost(self) -> bool:
        burst = self.shape.loss_burst_packets
        if burst is None:
            return self._loss_random.random() < self._loss
        # the share of time in the bad state is the loss, the mean stay in it is the burst
        if self._bad:
            self._bad = self._loss_random.random() >= 1 / burst
        else:
            leave = self._loss / (burst * (1 - self._loss)) if self._loss < 1 else 1.0
            self._bad = self._loss_random.random() < leave
        return self._bad


def _rate_of(shape: Shape) -> Rate:
    """What keeps the rate of a shape. Raises ``InvalidInput`` for a trace that cannot be read."""
    if shape.rate_trace is not None:
        return TracedRate(read_trace(shape.rate_trace))
    return FixedRate(shape.rate_mbps) if shape.rate_mbps is not None else NoLimit()
