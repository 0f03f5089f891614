"""All memory that the cable's loop works on: frames that wait, messages of system calls, counters.

Structures of system calls are rows of 64-bit numbers, as Linux has them where pointers have 64 bits: a
``struct mmsghdr`` is eight, a ``struct iovec`` two, the control message of a receive stamp four.
"""

from __future__ import annotations

import mmap
import platform
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quicferry.emulation.links.cable.due import Heap
from quicferry.emulation.links.cable.lanes import Int64s, Table
from quicferry.emulation.links.cable.lateness import BUCKETS
from quicferry.emulation.links.cable.packets import VNET_HEADER_BYTES

BATCH = 64  # frames read from one wire end before what is due is written
EVENTS = 64
WATCHED = -1  # in Cable.lane_of: a descriptor that is no wire end
# virtio header, Ethernet, IP; more only with jumbo segmentation offload, which we forbid
LARGEST_FRAME_BYTES = VNET_HEADER_BYTES + 14 + 65_535 + 512
SMALL_BYTES = 2048
LARGE_BYTES = (LARGEST_FRAME_BYTES + 63) // 64 * 64
# So many frames may be under way. The kernel gives memory when it is touched: what is not used costs nothing.
SMALL_SLOTS = 1 << 18
LARGE_SLOTS = 1 << 13
FIRST_LEAD_NS = 30_000.0
_KINDS_OF_SLEEP = 6
READ, ANY = range(2)  # in Cable.round_ns
MOST_PATIENCE_NS = 100_000


class Cable(NamedTuple):
    """What the loop works on. A *slot* is the memory of one frame that waits."""

    table: Table
    heap: Heap
    late: Int64s  # (lanes, lateness.BUCKETS)
    lane_of: Int64s  # by file descriptor of a wire end
    leads_ns: npt.NDArray[np.float64]  # by kind of sleep: how late such a sleep may end
    patience_ns: Int64s  # [how long what has come may wait until it is read]
    round_ns: Int64s  # [READ: when frames were last read, ANY: or written]
    which: Int64s  # [the lane that wants something]
    serial: Int64s  # [of the last frame]
    small: npt.NDArray[np.uint8]
    large: npt.NDArray[np.uint8]
    free_small: Int64s
    free_large: Int64s
    free_count: Int64s  # [small, large]
    slot_length: Int64s  # this and the next three: by slot
    slot_wire_bytes: Int64s
    slot_packets: Int64s
    slot_lane: Int64s
    due_slot: Int64s  # this and the next: of the batch that is being written
    due_ns: Int64s
    out_place: Int64s
    in_messages: Int64s
    in_vectors: Int64s
    in_control: Int64s
    in_frames: npt.NDArray[np.uint8]
    out_messages: Int64s
    out_vectors: Int64s
    events: npt.NDArray[np.int32]
    time: Int64s  # struct timespec
    timeout: Int64s  # struct timespec
    epoll: int
    words_per_event: int


def lay_out(table: Table, *, epoll: int, lane_of: Int64s) -> Cable:
    """The memory of a cable with these lanes."""
    slots = SMALL_SLOTS + LARGE_SLOTS

    def numbers(*shape: int) -> Int64s:
        return np.zeros(shape, np.int64)

    cable = Cable(
        table=table,
        heap=Heap(numbers(1), numbers(slots), numbers(slots), numbers(slots)),
        late=numbers(max(1, len(table.lanes)), BUCKETS),
        lane_of=lane_of,
        leads_ns=np.full(_KINDS_OF_SLEEP, FIRST_LEAD_NS),
        patience_ns=np.array([_patience_ns(table)]),
        round_ns=numbers(2),
        which=numbers(1),
        serial=numbers(1),
        small=_untouched(SMALL_SLOTS * SMALL_BYTES),
        large=_untouched(LARGE_SLOTS * LARGE_BYTES),
        # taken from the end: the first slots are used again and again
        free_small=np.arange(SMALL_SLOTS - 1, -1, -1),
        free_large=np.arange(slots - 1, SMALL_SLOTS - 1, -1),
        free_count=np.array([SMALL_SLOTS, LARGE_SLOTS]),
        slot_length=numbers(slots),
        slot_wire_bytes=numbers(slots),
        slot_packets=numbers(slots),
        slot_lane=numbers(slots),
        due_slot=numbers(BATCH),
        due_ns=numbers(BATCH),
        out_place=numbers(BATCH),
        in_messages=numbers(BATCH, 8),
        in_vectors=numbers(BATCH, 2),
        in_control=numbers(BATCH, 4),
        in_frames=np.zeros((BATCH, LARGE_BYTES), np.uint8),
        out_messages=numbers(BATCH, 8),
        out_vectors=numbers(BATCH, 2),
        events=np.zeros(EVENTS * 4, np.int32),
        time=numbers(2),
        timeout=numbers(2),
        epoll=epoll,
        # struct epoll_event is packed on x86-64 alone (<sys/epoll.h>)
        words_per_event=3 if platform.machine() == "x86_64" else 4,
    )
    for messages, vectors in (
        (cable.in_messages, cable.in_vectors),
        (cable.out_messages, cable.out_vectors),
    ):
        messages[:, 2] = vectors.ctypes.data + 16 * np.arange(BATCH)
        messages[:, 3] = 1
    cable.in_vectors[:, 0] = cable.in_frames.ctypes.data + LARGE_BYTES * np.arange(BATCH)
    cable.in_vectors[:, 1] = LARGEST_FRAME_BYTES
    cable.in_messages[:, 4] = cable.in_control.ctypes.data + 32 * np.arange(BATCH)
    return cable


def _patience_ns(table: Table) -> int:
    """How long a frame may lie unread: a quarter of the time that the shortest link keeps it at least."""
    lanes = table.lanes
    least_ns = np.where(lanes["reorder"] > 0, 0, lanes["delay_ns"] - 4 * lanes["jitter_ns"])
    return int(np.clip(least_ns // 4, 0, MOST_PATIENCE_NS).min(initial=MOST_PATIENCE_NS))


def _untouched(size: int) -> npt.NDArray[np.uint8]:
    """Memory that costs nothing until it is used."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return np.frombuffer(mmap.mmap(-1, size, flags=flags), np.uint8)
