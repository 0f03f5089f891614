"""What the cable process is told (JSON file) and what it tells about itself (JSON file)."""

from __future__ import annotations

import msgspec

from quicferry.model import Shape


class CableLink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One link: the names of its two wire ends and what happens between them."""

    name: str
    left_interface: str
    right_interface: str
    left_to_right: Shape
    right_to_left: Shape
    mtu_bytes: int = 1500


class CableConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a cable process needs to know.

    ``parent_pid``: the cable ends when that process, which must be its parent, has ended.
    """

    links: tuple[CableLink, ...]
    seed: int
    stats_path: str
    parent_pid: int | None = None


class DirectionCounters(msgspec.Struct, frozen=True, kw_only=True):
    """What one direction of a link has done so far.

    A *frame* is what crosses in one piece; a frame of segmentation offload is several *packets*.
    ``bytes`` are the packets' Ethernet bytes without frame check sequence.
    Lateness is the time from the moment at which a frame should have left to that at which it did.
    """

    frames: int  # delivered
    packets: int  # delivered
    bytes: int  # delivered
    waiting: int  # frames read and not yet delivered
    lost_packets: int  # by the loss that was asked for
    queue_full_packets: int  # tail drop
    refused_frames: int  # the kernel did not take them at the far end, for example: interface down
    overrun_frames: int  # the cable came too late to read them: not part of the experiment
    late_p50_us: float
    late_p99_us: float
    late_max_us: float
    reordered_packets: int = 0
    duplicated_packets: int = 0
    corrupted_packets: int = 0
    outage_packets: int = 0  # arrived while the link was out


class LinkCounters(msgspec.Struct, frozen=True, kw_only=True):
    """The counters of both directions of a link."""

    left_to_right: DirectionCounters
    right_to_left: DirectionCounters


class CableStats(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a cable process, written when asked for (SIGUSR1) and at its end."""

    written_ns: int  # CLOCK_MONOTONIC
    final: bool
    scheduler: str  # "fifo" or "other": without SCHED_FIFO expect lateness of many milliseconds
    cpu_s: float  # CPU time used since the start
    links: dict[str, LinkCounters]
