"""The cable as Python sees it: opens the wire ends, runs the compiled loop, provides for it, counts.

The loop is ``loop.carry``. It returns when a watched descriptor is readable, or when a lane wants more room
or more numbers to draw.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable

import numpy as np

from quicferry.emulation.links.cable import native
from quicferry.emulation.links.cable.config import (
    CableConfig,
    CableStats,
    DirectionCounters,
    LinkCounters,
)
from quicferry.emulation.links.cable.frames import open_wire_end, overruns
from quicferry.emulation.links.cable.lanes import Lanes
from quicferry.emulation.links.cable.lateness import percentile_us
from quicferry.emulation.links.cable.loop import WANTS
from quicferry.emulation.links.cable.memory import BATCH, WATCHED, lay_out
from quicferry.units import now_ns


class Relay:
    """All links of a run in one loop. Use ``watch`` for other descriptors, ``stop`` to end it.

    Raises ``EmulationError`` for a wire end that is not there, ``InvalidInput`` for a trace that cannot be
    read and ``PermissionError`` without CAP_NET_RAW.
    """

    def __init__(self, config: CableConfig) -> None:
        self._native = native.load()
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._names = [link.name for link in config.links]
        # lane 2n is the way from left to right of link n, lane 2n + 1 that from right to left
        self._lanes = Lanes(
            [
                (shape, f"{config.seed}/{link.name}/{way}")
                for link in config.links
                for way, shape in (
                    ("left-to-right", link.left_to_right),
                    ("right-to-left", link.right_to_left),
                )
            ],
            mtu_bytes=[link.mtu_bytes for link in config.links for _ in range(2)],
        )
        self._wires = [
            open_wire_end(interface)
            for link in config.links
            for interface in (link.left_interface, link.right_interface)
        ]
        self._overrun = [0] * len(self._wires)
        self._stopping = False
        lane_of = np.full(1 + max((wire.fileno() for wire in self._wires), default=0), WATCHED)
        for number, wire in enumerate(self._wires):
            lane = self._lanes.table.lanes[number]
            lane["read_from"], lane["write_to"] = wire.fileno(), self._wires[number ^ 1].fileno()
            lane_of[wire.fileno()] = number
            self._lanes.provide(number, BATCH)
            self._epoll.register(wire.fileno(), select.EPOLLIN)
        self._cable = lay_out(self._lanes.table, epoll=self._epoll.fileno(), lane_of=lane_of)

    def watch(self, descriptor: int, react: Callable[[], None]) -> None:
        """Call ``react`` whenever the descriptor is readable."""
        self._watched[descriptor] = react
        lane_of = self._cable.lane_of
        if descriptor >= len(lane_of):
            wider = np.full(descriptor + 1, WATCHED)
            wider[: len(lane_of)] = lane_of
            self._cable = self._cable._replace(lane_of=wider)
        self._epoll.register(descriptor, select.EPOLLIN)

    def stop(self) -> None:
        """Let ``run`` return. Frames that still wait are not delivered, as when a cable is pulled."""
        self._stopping = True

    def close(self) -> None:
        """Close all sockets."""
        for wire in self._wires:
            wire.close()
        self._epoll.close()

    def begin(self) -> None:
        """The load begins: outages and traces of rates count from now."""
        self._lanes.begin(now_ns())

    def run(self) -> None:
        """Carry frames until ``stop``."""
        table = native.table_of(self._cable)
        while not self._stopping:
            if self._native.carry(table.ctypes.data) == WANTS:
                self._lanes.provide(int(self._cable.which[0]), BATCH)
                self._cable = self._cable._replace(table=self._lanes.table)
                table = native.table_of(self._cable)
                continue
            for descriptor, _ in self._epoll.poll(0):
                if descriptor in self._watched:
                    self._watched[descriptor]()

    def stats(self, *, scheduler: str, final: bool) -> CableStats:
        """All counters as of now."""
        return CableStats(
            written_ns=now_ns(),
            final=final,
            scheduler=scheduler,
            cpu_s=time.process_time(),
            links={
                name: LinkCounters(
                    left_to_right=self._counters(2 * number), right_to_left=self._counters(2 * number + 1)
                )
                for number, name in enumerate(self._names)
            },
        )

    def _counters(self, number: int) -> DirectionCounters:
        """What a lane has done so far."""
        lane = self._cable.table.lanes[number]
        self._overrun[number] += overruns(self._wires[number])
        late, max_us = self._cable.late[number], int(lane["late_max_ns"]) / 1000
        return DirectionCounters(
            **{name: int(lane[name]) for name in _COUNTED},
            overrun_frames=self._overrun[number] + int(lane["no_room_frames"]),
            late_p50_us=percentile_us(late, 50, max_us=max_us),
            late_p99_us=percentile_us(late, 99, max_us=max_us),
            late_max_us=max_us,
        )


_COUNTED = (
    *("frames", "packets", "bytes", "waiting", "lost_packets", "queue_full_packets", "refused_frames"),
    *("reordered_packets", "duplicated_packets", "corrupted_packets", "outage_packets"),
)
