"""The lanes of a cable: each direction of each link as one record, and the tables that records point into.

Everything is a NumPy array, so that compiled code and Python work on the same memory. Compiled code never
asks for memory: before it reads frames of a lane it looks whether the lane has room to hold them and numbers
to draw (``wants``), and else returns to Python, which provides (``Lanes.provide``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quicferry.emulation.links.cable.compiling import compiled
from quicferry.emulation.links.trace import OPPORTUNITY_BYTES, read_trace
from quicferry.model import Shape
from quicferry.units import NS_PER_S, ms_to_ns

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]

NOT_BEGUN = -1
LOSS, JITTER, MANGLE = range(3)  # kinds of numbers that are drawn
DRAWS = 4096  # numbers of a kind that are drawn at a time
MOST_DRAWS_PER_FRAME = 4  # of a kind: whether reordered, corrupted, where, and duplicated
FIRST_ROOM = 256

LANE = np.dtype(
    [
        # what was asked for
        ("number", np.int64),
        ("delay_ns", np.int64),
        ("jitter_ns", np.float64),
        ("ns_per_byte", np.float64),  # 0: no rate
        ("queue_limit", np.int64),  # packets
        ("loss", np.float64),  # this and the next: shares, 0 to 1
        ("reorder", np.float64),
        ("duplicate", np.float64),
        ("corrupt", np.float64),
        ("burst", np.float64),  # packets; 0: losses are independent
        ("outage_at", np.int64),  # this and the next: rows of Table.outages
        ("outage_count", np.int64),
        ("trace_at", np.int64),  # this and the next: of Table.moments_ms
        ("trace_count", np.int64),  # 0: no trace
        ("trace_length_ms", np.int64),
        # what has become of it
        ("zero_ns", np.int64),  # when the load began
        ("trace_zero_ns", np.int64),
        ("trace_index", np.int64),  # of the opportunity that is being used, counted over all repetitions
        ("trace_left", np.int64),  # bytes of it
        ("finished_ns", np.float64),
        ("last_release_ns", np.int64),
        ("is_bad", np.int64),  # of Gilbert's model: the link loses everything now
        ("held_at", np.int64),  # the ring of Table.held that is this lane's, and what of it is in use
        ("held_room", np.int64),
        ("held_first", np.int64),
        ("held_count", np.int64),
        ("held_packets", np.int64),
        ("draws_at", np.int64),  # row of Table.draws; -1: it draws nothing
        # what it has done
        ("frames", np.int64),
        ("packets", np.int64),
        ("bytes", np.int64),
        ("waiting", np.int64),
        ("lost_packets", np.int64),
        ("queue_full_packets", np.int64),
        ("reordered_packets", np.int64),
        ("duplicated_packets", np.int64),
        ("corrupted_packets", np.int64),
        ("outage_packets", np.int64),
        ("refused_frames", np.int64),
        ("no_room_frames", np.int64),
        ("late_max_ns", np.int64),
        # where frames come from and go to
        ("read_from", np.int64),
        ("write_to", np.int64),
    ],
    align=True,
)


class Table(NamedTuple):
    """What the decision about a frame looks at and changes."""

    lanes: npt.NDArray[np.void]  # of LANE
    held: Int64s  # (rows, 2): when a frame that is held leaves (ns), and how many packets it is
    draws: Float64s  # (lanes that draw, 3, DRAWS)
    drawn: Int64s  # (lanes, 3): how many of the numbers in ``draws`` are used
    moments_ms: Int64s  # of all traces, one behind the other
    outages: Int64s  # (outages, 2): begin and end, in ns after the load began


@compiled
def wants(table: Table, number: int, frames: int) -> bool:
    """Whether a lane must be provided for before so many frames of it are decided over."""
    lane = table.lanes[number]
    if lane["held_count"] + frames > lane["held_room"]:
        return True
    if lane["draws_at"] < 0:
        return False
    for kind in range(3):  # noqa: SIM110 - Numba knows no generators here
        if table.drawn[number, kind] + frames * MOST_DRAWS_PER_FRAME > DRAWS:
            return True
    return False


class Lanes:
    """All lanes of a cable. ``shapes`` with the text that seeds each; equal seeds give equal fates.

    Raises ``InvalidInput`` for a trace that cannot be read.
    """

    def __init__(self, shapes: list[tuple[Shape, str]], *, mtu_bytes: list[int]) -> None:
        records = np.zeros(len(shapes), LANE)
        moments: list[int] = []
        outages: list[tuple[int, int]] = []
        self._generators: list[tuple[np.random.Generator, ...]] = []
        for number, ((shape, seed), mtu) in enumerate(zip(shapes, mtu_bytes, strict=True)):
            lane = records[number]
            lane["number"] = number
            lane["zero_ns"] = lane["trace_zero_ns"] = NOT_BEGUN
            lane["delay_ns"] = ms_to_ns(shape.delay_ms)
            lane["jitter_ns"] = shape.jitter_ms * 1e6
            # bytes * 8 / (rate * 1e6 / 1e9 ns) = bytes * 8000 / rate
            lane["ns_per_byte"] = 8000 / shape.rate_mbps if shape.rate_mbps is not None else 0
            lane["queue_limit"] = shape.queue_limit(mtu)
            lane["burst"] = shape.loss_burst_packets or 0
            for field in ("loss", "reorder", "duplicate", "corrupt"):
                lane[field] = getattr(shape, f"{field}_percent") / 100
            lane["outage_at"], lane["outage_count"] = len(outages), len(shape.outages)
            outages += [
                (round(after_s * NS_PER_S), round((after_s + length_s) * NS_PER_S))
                for after_s, length_s in shape.outages
            ]
            if shape.rate_trace is not None:
                trace = read_trace(shape.rate_trace)
                lane["trace_at"], lane["trace_count"] = len(moments), len(trace)
                lane["trace_length_ms"], lane["trace_left"] = trace[-1], OPPORTUNITY_BYTES
                moments += trace
            lane["held_at"], lane["held_room"] = number * FIRST_ROOM, FIRST_ROOM
            lane["draws_at"] = -1
            if any(lane[field] for field in ("loss", "jitter_ns", "reorder", "duplicate", "corrupt")):
                lane["draws_at"] = len(self._generators)
                self._generators.append(_generators(seed))
        self.table = Table(
            lanes=records,
            held=np.zeros((max(1, len(shapes)) * FIRST_ROOM, 2), np.int64),
            draws=np.zeros((max(1, len(self._generators)), 3, DRAWS)),
            drawn=np.full((max(1, len(shapes)), 3), DRAWS, np.int64),
            moments_ms=np.array(moments or [0], np.int64),
            outages=np.array(outages or [(0, 0)], np.int64),
        )

    def begin(self, zero_ns: int) -> None:
        """The load begins now: outages and traces of rates count from this moment."""
        lanes = self.table.lanes
        lanes["zero_ns"] = lanes["trace_zero_ns"] = zero_ns
        lanes["trace_index"], lanes["trace_left"] = 0, OPPORTUNITY_BYTES

    def provide(self, number: int, frames: int) -> None:
        """Give a lane room to hold so many more frames, and numbers to draw for them."""
        lane = self.table.lanes[number]
        while lane["held_count"] + frames > lane["held_room"]:
            self._widen(number)
        if lane["draws_at"] >= 0:
            self._draw_more(number)

    def _widen(self, number: int) -> None:
        """Twice the room, behind all that is there; the old one is not used again."""
        lane = self.table.lanes[number]
        room, first = int(lane["held_room"]), int(lane["held_first"])
        old = self.table.held
        ring = old[lane["held_at"] : lane["held_at"] + room]
        fresh = np.zeros((len(old) + 2 * room, 2), np.int64)
        fresh[: len(old)] = old
        fresh[len(old) : len(old) + room] = np.roll(ring, -first, axis=0)
        lane["held_at"], lane["held_room"], lane["held_first"] = len(old), 2 * room, 0
        self.table = self.table._replace(held=fresh)

    def _draw_more(self, number: int) -> None:
        """Fill up what was used: a lane's n-th number of a kind is the same whenever it is drawn."""
        row = int(self.table.lanes[number]["draws_at"])
        for kind, generator in enumerate(self._generators[row]):
            used = int(self.table.drawn[number, kind])
            numbers = self.table.draws[row, kind]
            numbers[: DRAWS - used] = numbers[used:].copy()
            numbers[DRAWS - used :] = (
                generator.standard_normal(used) if kind == JITTER else generator.random(used)
            )
            self.table.drawn[number, kind] = 0


def _generators(seed: str) -> tuple[np.random.Generator, ...]:
    """One for each kind, so that a frame's loss depends on its number alone, not on the jitter drawn."""
    return tuple(
        np.random.default_rng(list(f"{seed}/{kind}".encode())) for kind in ("loss", "jitter", "mangle")
    )
