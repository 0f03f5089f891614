"""The decision for each frame of one direction: lost, dropped, or when it may leave.

Pure: it is told when a frame arrived and answers with a time; it never asks a clock, so that
every rule can be tested in virtual time, and a given seed and sequence of frames always gives the
same answers.

The rules are those of ``tc netem`` (Linux, net/sched/sch_netem.c), so that both backends of the
link layer mean the same thing by a ``Shape``:

1. *Loss* is drawn for each frame independently.
2. The *queue* holds all frames that have arrived and not left: those that wait for the rate and
   those under way. When it is full, the newcomer is dropped (tail drop).
3. The *rate* is kept by a virtual finish time: a frame starts when it has arrived and its
   predecessor has finished, and finishes after its bytes at the rate. There are no bursts above it.
4. Then comes the *delay*, with a jitter from a normal distribution, cut at 0.
5. Frames never overtake each other: one whose jitter would let it pass leaves with its predecessor.
"""

from __future__ import annotations

import random
from collections import deque

from quicferry.model import Shape
from quicferry.units import ms_to_ns

LOST = -1  # by the loss that was asked for
QUEUE_FULL = -2  # tail drop


class LinkDirection:
    """One direction of a link. ``seed`` may be any text; equal seeds give equal fates."""

    def __init__(self, shape: Shape, *, mtu_bytes: int, seed: str) -> None:
        self.shape = shape
        self.lost_packets = 0
        self.queue_full_packets = 0
        self._delay_ns = ms_to_ns(shape.delay_ms)
        self._jitter_ns = shape.jitter_ms * 1e6
        # bytes * 8 / (rate * 1e6 / 1e9 ns) = bytes * 8000 / rate
        self._ns_per_byte = 8000 / shape.rate_mbps if shape.rate_mbps is not None else 0.0
        self._loss = shape.loss_percent / 100
        self._limit = shape.queue_limit(mtu_bytes)
        # Two generators, so that a frame's loss depends on its number alone, not on the jitter drawn.
        self._loss_random = random.Random(f"{seed}/loss")
        self._jitter_random = random.Random(f"{seed}/jitter")
        self._finished_ns = 0.0  # float: 53 bits resolve a quarter of a nanosecond for 70 days of uptime
        self._last_release_ns = 0
        self._held: deque[tuple[int, int]] = deque()  # (release, packets), in order of release
        self._held_packets = 0

    def schedule(self, arrival_ns: int, wire_bytes: int, packets: int = 1) -> int:
        """Decide over a frame that arrived at ``arrival_ns`` (CLOCK_MONOTONIC; not decreasing).

        ``wire_bytes`` and ``packets`` say what it is on a wire: a frame of segmentation offload is
        several packets, each with its headers. Returns the time at which it may leave, or ``LOST``
        or ``QUEUE_FULL``.
        """
        if self._loss and self._loss_random.random() < self._loss:
            self.lost_packets += packets
            return LOST
        held = self._held
        while held and held[0][0] <= arrival_ns:
            self._held_packets -= held.popleft()[1]
        if self._held_packets + packets > self._limit and self._held_packets:
            self.queue_full_packets += packets
            return QUEUE_FULL
        ready_ns = arrival_ns
        if self._ns_per_byte:
            begin_ns = self._finished_ns if self._finished_ns > arrival_ns else arrival_ns
            self._finished_ns = begin_ns + wire_bytes * self._ns_per_byte
            ready_ns = round(self._finished_ns)
        delay_ns = self._delay_ns
        if self._jitter_ns:
            delay_ns = max(0, delay_ns + round(self._jitter_random.gauss(0.0, self._jitter_ns)))
        release_ns = max(ready_ns + delay_ns, self._last_release_ns)
        self._last_release_ns = release_ns
        held.append((release_ns, packets))
        self._held_packets += packets
        return release_ns
