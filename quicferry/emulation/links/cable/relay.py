"""The cable's loop: read frames, let ``LinkDirection`` decide, wait, write.

Two things decide how exact it is. It must not be kept from the CPU when a frame is due, which is
the business of ``__main__`` (SCHED_FIFO); and it must not oversleep. A sleep ends 7 to 18 microseconds
late (median; measured with SCHED_FIFO and a timer slack of 1 ns), so the loop sleeps until ``SPIN_NS``
before a frame is due and polls from there. More would burn CPU time that the hosts need.
With nothing due it sleeps without end: an idle cable costs no CPU.

The time of arrival is the kernel's receive stamp, not the time of reading. When the loop is behind,
frames still leave at the right time as long as their delay is longer than the backlog.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from collections.abc import Callable

from quicferry.emulation.links.cable.batch import BatchReader
from quicferry.emulation.links.cable.config import (
    CableConfig,
    CableLink,
    CableStats,
    DirectionCounters,
    LinkCounters,
)
from quicferry.emulation.links.cable.direction import LinkDirection
from quicferry.emulation.links.cable.frames import (
    ETHERNET_HEADER_BYTES,
    VNET_HEADER_BYTES,
    flip_bit,
    open_wire_end,
    overruns,
    wire_size,
)
from quicferry.emulation.links.cable.lateness import Lateness
from quicferry.units import now_ns

SPIN_NS = 20_000
BATCH = 32  # frames read from one wire end before what is due is written


class Lane:
    """One direction of a link at work: from a wire end to the other."""

    __slots__ = (
        "bytes",
        "direction",
        "frames",
        "lateness",
        "overrun",
        "packets",
        "read_from",
        "refused",
        "waiting",
        "write_to",
    )

    def __init__(self, read_from: socket.socket, write_to: socket.socket, direction: LinkDirection) -> None:
        self.read_from = read_from
        self.write_to = write_to
        self.direction = direction
        self.lateness = Lateness()
        self.frames = self.packets = self.bytes = 0
        self.waiting = self.refused = self.overrun = 0

    def counters(self) -> DirectionCounters:
        """What it has done so far."""
        self.overrun += overruns(self.read_from)
        return DirectionCounters(
            frames=self.frames,
            packets=self.packets,
            bytes=self.bytes,
            waiting=self.waiting,
            lost_packets=self.direction.lost_packets,
            queue_full_packets=self.direction.queue_full_packets,
            refused_frames=self.refused,
            overrun_frames=self.overrun,
            reordered_packets=self.direction.reordered_packets,
            duplicated_packets=self.direction.duplicated_packets,
            corrupted_packets=self.direction.corrupted_packets,
            outage_packets=self.direction.outage_packets,
            late_p50_us=self.lateness.percentile_us(50),
            late_p99_us=self.lateness.percentile_us(99),
            late_max_us=self.lateness.max_us,
        )


class Relay:
    """All links of a run in one loop. Use ``watch`` for other descriptors, ``stop`` to end it."""

    def __init__(self, config: CableConfig) -> None:
        self._epoll = select.epoll()
        self._lanes: dict[int, Lane] = {}
        self._links: dict[str, tuple[Lane, Lane]] = {}
        self._watched: dict[int, Callable[[], None]] = {}
        # (release, serial number, frame, wire bytes, packets, lane); the serial number keeps equals in order
        self._due: list[tuple[int, int, bytes, int, int, Lane]] = []
        self._serial = 0
        self._reader = BatchReader(BATCH)
        self._stopping = False
        for link in config.links:
            self._add(link, config.seed)

    def _add(self, link: CableLink, seed: int) -> None:
        left, right = open_wire_end(link.left_interface), open_wire_end(link.right_interface)

        def lane(source: socket.socket, target: socket.socket, way: str) -> Lane:
            shape = link.left_to_right if way == "left-to-right" else link.right_to_left
            made = Lane(
                source,
                target,
                LinkDirection(shape, mtu_bytes=link.mtu_bytes, seed=f"{seed}/{link.name}/{way}"),
            )
            self._lanes[source.fileno()] = made
            self._epoll.register(source.fileno(), select.EPOLLIN)
            return made

        self._links[link.name] = (lane(left, right, "left-to-right"), lane(right, left, "right-to-left"))

    def watch(self, descriptor: int, react: Callable[[], None]) -> None:
        """Call ``react`` whenever the descriptor is readable."""
        self._watched[descriptor] = react
        self._epoll.register(descriptor, select.EPOLLIN)

    def stop(self) -> None:
        """Let ``run`` return. Frames that still wait are not delivered, as when a cable is pulled."""
        self._stopping = True

    def close(self) -> None:
        """Close all sockets."""
        for lane in self._lanes.values():
            lane.read_from.close()
        self._epoll.close()

    def stats(self, *, scheduler: str, final: bool) -> CableStats:
        """All counters as of now."""
        return CableStats(
            written_ns=now_ns(),
            final=final,
            scheduler=scheduler,
            cpu_s=time.process_time(),
            links={
                name: LinkCounters(left_to_right=there.counters(), right_to_left=back.counters())
                for name, (there, back) in self._links.items()
            },
        )

    def run(self) -> None:
        """Carry frames until ``stop``."""
        due, epoll, lanes = self._due, self._epoll, self._lanes
        # epoll_wait rounds to milliseconds; select on the epoll descriptor takes microseconds.
        descriptor = [epoll.fileno()]
        clock = time.monotonic_ns
        while not self._stopping:
            gap_ns = due[0][0] - clock() - SPIN_NS if due else None
            if gap_ns is None:
                select.select(descriptor, (), ())
            elif gap_ns > 0 and not select.select(descriptor, (), (), gap_ns / 1e9)[0]:
                self._write_when_due()
                continue
            for fd, _ in epoll.poll(0):
                lane = lanes.get(fd)
                if lane is not None:
                    self._read(lane)
                else:
                    self._watched[fd]()
            self._write_due()

    def _write_when_due(self) -> None:
        """Wait for the frame that is due within ``SPIN_NS`` without giving up the CPU; write."""
        release_ns, clock = self._due[0][0], time.monotonic_ns
        while clock() < release_ns:
            pass
        self._write_due()

    def _read(self, lane: Lane) -> None:
        """Read up to ``BATCH`` frames and schedule each."""
        schedule, due = lane.direction.schedule, self._due
        # Stamps are CLOCK_REALTIME. The difference is taken anew for each batch: it may be stepped.
        realtime_ahead_ns = time.time_ns() - time.monotonic_ns()
        try:
            arrived = self._reader.read(lane.read_from.fileno())
        except OSError:
            # The interface went down or away: the kernel reports that once. Links may come and go.
            return
        for frame, stamp_ns in arrived:
            # The second byte of the virtio header is 0 where nothing is to be segmented.
            wire_bytes, packets = wire_size(frame) if frame[1] else (len(frame) - VNET_HEADER_BYTES, 1)
            release_ns = schedule(stamp_ns - realtime_ahead_ns, wire_bytes, packets)
            if release_ns >= 0:
                if lane.direction.mangles:
                    frame = self._mangled(frame, lane.direction)
                    if lane.direction.is_duplicated():
                        self._serial += 1
                        lane.waiting += 1
                        heapq.heappush(due, (release_ns, self._serial, frame, wire_bytes, packets, lane))
                self._serial += 1
                lane.waiting += 1
                heapq.heappush(due, (release_ns, self._serial, frame, wire_bytes, packets, lane))

    def _mangled(self, frame: bytes, direction: LinkDirection) -> bytes:
        """The frame as it came, or with one bit of its packet flipped."""
        bit = direction.corrupt_bit((len(frame) - VNET_HEADER_BYTES - ETHERNET_HEADER_BYTES) * 8)
        return frame if bit is None else flip_bit(frame, bit)

    def begin(self) -> None:
        """The load begins: outages and traces of rates count from now."""
        zero_ns = now_ns()
        for lane in self._lanes.values():
            lane.direction.begin(zero_ns)

    def _write_due(self) -> None:
        """Write the frames that are due, at most ``BATCH`` of them."""
        due, clock = self._due, time.monotonic_ns
        for _ in range(BATCH):
            if not due:
                return
            now = clock()
            if due[0][0] > now:
                return
            release_ns, _, frame, wire_bytes, packets, lane = heapq.heappop(due)
            lane.waiting -= 1
            try:
                lane.write_to.send(frame)
            except OSError:
                lane.refused += 1  # interface down or gone, or its peer's backlog is full
                continue
            lane.lateness.add(now - release_ns)
            lane.frames += 1
            lane.packets += packets
            lane.bytes += wire_bytes
