"""Frames that wait for their time: a binary heap, by time and, of equal times, by arrival. Compiled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from quicferry.emulation.links.cable.compiling import compiled


class Heap(NamedTuple):
    """The heap's arrays, as long as there may be frames; ``size`` has one element."""

    size: npt.NDArray[np.int64]
    release_ns: npt.NDArray[np.int64]
    serial: npt.NDArray[np.int64]
    slot: npt.NDArray[np.int64]


@compiled
def _put(heap: Heap, at: int, release_ns: int, serial: int, slot: int) -> None:
    heap.release_ns[at] = release_ns
    heap.serial[at] = serial
    heap.slot[at] = slot


@compiled
def push(heap: Heap, release_ns: int, serial: int, slot: int) -> None:
    """Put a frame in."""
    at = heap.size[0]
    heap.size[0] = at + 1
    while at > 0:
        parent = (at - 1) // 2
        over = heap.release_ns[parent]
        if over < release_ns or (over == release_ns and heap.serial[parent] < serial):
            break
        _put(heap, at, over, heap.serial[parent], heap.slot[parent])
        at = parent
    _put(heap, at, release_ns, serial, slot)


@compiled
def pop(heap: Heap) -> int:
    """Take the first frame out: its slot. The heap is not empty."""
    first = heap.slot[0]
    size = heap.size[0] - 1
    heap.size[0] = size
    release_ns, serial, slot = heap.release_ns[size], heap.serial[size], heap.slot[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        other = child + 1
        if other < size and (
            heap.release_ns[other] < heap.release_ns[child]
            or (heap.release_ns[other] == heap.release_ns[child] and heap.serial[other] < heap.serial[child])
        ):
            child = other
        over = heap.release_ns[child]
        if over > release_ns or (over == release_ns and heap.serial[child] > serial):
            break
        _put(heap, at, over, heap.serial[child], heap.slot[child])
        at = child
    _put(heap, at, release_ns, serial, slot)
    return int(first)
