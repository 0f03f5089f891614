"""One direction of a link in virtual time: the rules of the cable as plain Python, or compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

from quicferry.emulation.links.cable import fate, memory, native
from quicferry.emulation.links.cable.lanes import Lanes, wants
from quicferry.model import Shape


class Direction:
    """Decides over frames as the cable does. ``compiled``: by the machine code."""

    def __init__(self, shape: Shape, *, seed: str = "test", compiled: bool = True) -> None:
        self._lanes = Lanes([(shape, seed)], mtu_bytes=[1500])
        self._native = native.load() if compiled else None
        if compiled:
            self._cable = memory.lay_out(self._lanes.table, epoll=0, lane_of=np.zeros(1, np.int64))
            self._rows = native.table_of(self._cable)

    def schedule(self, arrival_ns: int, wire_bytes: int, packets: int = 1) -> int:
        """When the frame may leave, or a code of ``fate``."""
        self._provide()
        if self._native is None:
            return int(fate.schedule(self._lanes.table, self.lane, arrival_ns, wire_bytes, packets))
        return int(self._native.decide(self._rows.ctypes.data, 0, arrival_ns, wire_bytes, packets))

    def is_duplicated(self) -> bool:
        """Whether the frame is sent twice."""
        self._provide()
        return fate.is_duplicated(self._lanes.table, self.lane)

    def corrupt_bit(self, bits: int) -> int:
        """Which bit of the frame is flipped, or ``fate.WHOLE``."""
        self._provide()
        return fate.corrupt_bit(self._lanes.table, self.lane, bits)

    def begin(self, zero_ns: int) -> None:
        """The load begins."""
        self._lanes.begin(zero_ns)

    @property
    def lane(self) -> Any:
        """The lane's record: its counters, among others."""
        return self._lanes.table.lanes[0]

    def _provide(self) -> None:
        if wants(self._lanes.table, 0, 1):
            self._lanes.provide(0, 1)
            if self._native is not None:
                self._cable = self._cable._replace(table=self._lanes.table)
                self._rows = native.table_of(self._cable)
