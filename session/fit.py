"""Refuses a move that cannot fit into its deadlines, or a run into memory, before anything is built.

An estimate on the safe side: what is refused could not have been done, what is near the limit is tried. What
a run meets besides (loss, a busy machine) the deadlines of ``migration.order`` bound.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import psutil

from quicferry.errors import InvalidInput, Unsupported
from quicferry.experiment.itinerary import stops
from quicferry.migration.engines.registry import EngineEntry
from quicferry.migration.order import LEASE_S, Deadlines
from quicferry.model import Topology
from quicferry.spec import RunSpec
from quicferry.units import BYTES_PER_MIB, figures
from topologies.building.roundtrips import links_between

#: A Python server's image as it crosses, packed and not (docs/adr/0004); less than was ever measured.
IMAGE_BYTES, PLAIN_IMAGE_BYTES = 4_000_000, 15_000_000
#: Memory and files of a server are in this machine's memory so many times: at both edges, and as an image.
COPIES = 3
#: Pages that a restored Python server waits for, one after another, before it serves, where CRIU's lazy-pages
#: daemon fetches them: with round trips of 8, 16, 24 and 40 ms between the edges it took 290 to 345 of them.
LAZY_PAGES = 270
WINDOW_BYTES = 4 << 20  # the most that Linux lets a TCP connection have under way (tcp_wmem)
#: MiB that all else of a run needs.
BESIDES_MIB = 512


class Leg(NamedTuple):
    """One move's way from edge to edge, as its links have it."""

    source: str
    destination: str
    rtt_ms: float
    rate_mbps: float | None  # of the slowest link; None: as fast as the machine

    @property
    def tcp_mbps(self) -> float:
        """What one TCP connection carries at most: the rate, or a window for each round trip."""
        by_window = WINDOW_BYTES * 8e-3 / self.rtt_ms if self.rtt_ms else math.inf
        return min(by_window, self.rate_mbps or math.inf)


def check(spec: RunSpec, engine: EngineEntry, topology: Topology) -> None:
    """Raise ``InvalidInput`` when the server's memory cannot cross in the time that a move may take."""
    if not (engine.packs_images or engine.is_long) or spec.mobility == "alone":
        return  # kilobytes
    ways = legs(topology, spec)
    farthest = max(ways, key=lambda leg: leg.rtt_ms)
    by_criu = engine.memory_by(spec.memory_by) == "criu" or engine.as_published
    if by_criu and engine.keeps_source and not engine.copies_ahead:
        _check_faults(spec, farthest)
    slowest = min(ways, key=lambda leg: leg.tcp_mbps)
    _check_size(spec, engine, slowest)
    _check_files(spec, slowest)


def _check_faults(spec: RunSpec, leg: Leg) -> None:
    needed_s = LAZY_PAGES * leg.rtt_ms / 1e3
    if needed_s <= LEASE_S:
        return
    other = "leave out --memory-by" if spec.memory_by == "criu" else "choose --engine runc-post-copy"
    raise InvalidInput(
        f"the move cannot fit: CRIU's post-copy waits a round trip for each page, {leg.rtt_ms:g} ms from "
        f"{leg.source} to {leg.destination}; {LAZY_PAGES} pages take {needed_s:.1f} s, and a server may "
        f"begin for {LEASE_S:g} s after the source has granted that",
        hint=f"{other}: there the agents send what the server reads first with the image",
    )


def _check_files(spec: RunSpec, leg: Leg) -> None:
    limit_s = Deadlines().precopy_s
    seconds = spec.disk_mib * BYTES_PER_MIB * 8e-6 / leg.tcp_mbps
    if seconds > limit_s:
        raise InvalidInput(
            f"the move cannot fit: {spec.disk_mib} MiB of files cross from {leg.source} to {leg.destination} "
            f"at {figures(leg.tcp_mbps)} Mbit/s in about {seconds:.0f} s, and before the downtime there are "
            f"{limit_s:g} s at most",
            hint="give less --disk-mib, more --inter-edge-mbps, or a --route between neighbours",
        )


def _check_size(spec: RunSpec, engine: EngineEntry, leg: Leg) -> None:
    image = PLAIN_IMAGE_BYTES if spec.compression == "none" else IMAGE_BYTES
    size_bytes = image + spec.memory_mib * BYTES_PER_MIB
    limits = Deadlines()
    rate_mbps = leg.tcp_mbps
    seconds = size_bytes * 8e-6 / rate_mbps
    if engine.copies_ahead and spec.dirty_mib_s * BYTES_PER_MIB * 8e-6 < rate_mbps:
        limit_s, when = limits.precopy_s, "before the downtime"
    elif engine.keeps_source:
        limit_s, when = limits.pages_s, "after the downtime"
    else:
        # also of pre-copy when memory is rewritten faster than it crosses: all of it is left for the end
        limit_s, when = limits.freeze_s, "in the downtime"
    if seconds <= limit_s:
        return
    raise InvalidInput(
        f"the move cannot fit: {size_bytes / 1e6:.0f} MB cross the link between the edges at "
        f"{figures(rate_mbps)} Mbit/s in about {seconds:.0f} s, and {when} there are {limit_s:g} s at most",
        hint=_hint(engine, leg, size_bytes, limit_s, seconds <= limits.precopy_s),
    )


def check_memory(spec: RunSpec, available_bytes: int | None = None) -> None:
    """Raise ``Unsupported`` when this machine has too little memory for what the run keeps in it.

    ``available_bytes``: what the kernel says that it has without swapping, if it is not to be asked.
    """
    if spec.memory_mib + spec.disk_mib == 0:
        return  # and the kernel need not be asked, for every run of a sweep
    needed_mib = COPIES * (spec.memory_mib + spec.disk_mib) + BESIDES_MIB
    available_mib = (available_bytes or psutil.virtual_memory().available) // BYTES_PER_MIB
    if needed_mib <= available_mib:
        return
    raise Unsupported(
        f"a run with {spec.memory_mib} MiB of memory and {spec.disk_mib} MiB of files keeps about "
        f"{needed_mib} MiB in this machine's memory, and {available_mib} MiB are available",
        hint="give less --memory-mib or --disk-mib, or end what else needs memory",
    )


def legs(topology: Topology, spec: RunSpec) -> list[Leg]:
    """The way of each move of a run, each once."""
    ends = dict.fromkeys(itertools.pairwise(stops(topology, spec)))
    return [_leg(topology, *each) for each in ends]


def _leg(topology: Topology, source: str, destination: str) -> Leg:
    own = [link for link in topology.links if {link.a, link.b} == {source, destination}]
    shapes = [(link.a_to_b, link.b_to_a) for link in own[:1]]
    shapes = shapes or links_between(topology, source, destination) or []
    rates = [shape.rate_mbps for both in shapes for shape in both if shape.rate_mbps is not None]
    rtt_ms = sum(shape.delay_ms for both in shapes for shape in both)
    return Leg(source, destination, rtt_ms, min(rates, default=None))


def _hint(engine: EngineEntry, leg: Leg, size_bytes: int, limit_s: float, ahead_fits: bool) -> str:
    least_mbps = size_bytes * 8e-6 / limit_s
    other = "criu-pre-copy, which copies memory before, or handoff, which moves none"
    if engine.is_long or not ahead_fits:
        other = "handoff, which moves no memory"
    wider = f"give at least --inter-edge-mbps {figures(least_mbps)}"
    if leg.tcp_mbps != leg.rate_mbps:  # the way is too long, and not too narrow
        wider = "choose a --route between neighbours"
    return f"choose --engine {other}; or {wider}"
