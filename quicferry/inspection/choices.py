"""Which packets are wanted: by connection, path, frame, or around a migration."""

from __future__ import annotations

from typing import NamedTuple

from quicferry.inspection.inspector import Told


class Choice(NamedTuple):
    """What a packet must have to be shown; what is empty asks for nothing.

    ``frames`` are names, or their beginnings (``SM_``), in capitals. ``paths`` are numbers of paths, or
    addresses such as ``10.0.2.2:4433``. ``window_ns`` is a stretch of time since the epoch.
    """

    connections: frozenset[int] = frozenset()
    paths: frozenset[str] = frozenset()
    frames: tuple[str, ...] = ()
    window_ns: tuple[int, int] | None = None

    def wants(self, told: Told) -> bool:
        """Whether this packet is wanted."""
        if self.connections and told.connection not in self.connections:
            return False
        if self.window_ns is not None and not self.window_ns[0] <= told.datagram.t_ns <= self.window_ns[1]:
            return False
        if self.paths and not self._on_path(told):
            return False
        return not self.frames or any(name.startswith(self.frames) for name in _names(told))

    def _on_path(self, told: Told) -> bool:
        if told.path >= 0 and str(told.path) in self.paths:
            return True
        return told.datagram.source in self.paths or told.datagram.destination in self.paths


def _names(told: Told) -> list[str]:
    if told.segment is not None:
        segment = told.segment
        return [
            *segment.flags,
            *(item.name for item in segment.records),
            *(option.name for option in segment.options.mptcp),
        ]
    return [frame.name for packet in told.packets for frame in packet.frames or ()]
