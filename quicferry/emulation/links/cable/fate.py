"""The decision for each frame of one direction: lost, dropped, or when it may leave.

Pure: it is told when a frame arrived and answers with a time; it never asks a clock, so that
every rule can be tested in virtual time, and a given seed and sequence of frames always gives the
same answers.

The rules are those of ``tc netem`` (Linux, net/sched/sch_netem.c), so that both backends of the
link layer mean the same thing by a ``Shape``:

1. During an *outage* everything is lost (netem has none).
2. *Loss* is drawn for each frame: independently, or by the two states of Gilbert's model, of which the
   bad one loses everything and lasts ``loss_burst_packets`` in the mean.
3. The *queue* holds all frames that have arrived and not left: those that wait for the rate and
   those under way. When it is full, the newcomer is dropped (tail drop).
4. The *rate* is kept by a virtual finish time, or by the moments of a trace.
5. Then comes the *delay*, with a jitter from a normal distribution, cut at 0.
6. Frames never overtake each other: one whose jitter would let it pass leaves with its predecessor. Only
   one that is *reordered* leaves without the delay.
7. A frame may be *corrupted*, and may be *duplicated*: its copy leaves with it.

All of it is compiled (``compiling``). ``table`` is a ``lanes.Table``, ``lane`` one record of its lanes.
"""

from __future__ import annotations

from typing import Any

from quicferry.emulation.links.cable.compiling import compiled
from quicferry.emulation.links.cable.lanes import JITTER, LOSS, MANGLE, NOT_BEGUN, Table
from quicferry.emulation.links.trace import OPPORTUNITY_BYTES

LOST = -1  # by the loss that was asked for, or in an outage
QUEUE_FULL = -2  # tail drop
WHOLE = -1  # no bit of the frame is flipped
_NS_PER_MS = 1_000_000

Lane = Any  # a record of lanes.LANE


@compiled
def schedule(table: Table, lane: Lane, arrival_ns: int, wire_bytes: int, packets: int) -> int:
    """Decide over a frame that arrived at ``arrival_ns`` (CLOCK_MONOTONIC; not decreasing).

    ``wire_bytes`` and ``packets`` say what it is on a wire: a frame of segmentation offload is
    several packets, each with its headers. Returns the time at which it may leave, or ``LOST``
    or ``QUEUE_FULL``. The lane has room to hold one more, and numbers to draw.
    """
    if lane["outage_count"] and _is_out(table, lane, arrival_ns):
        lane["outage_packets"] += packets
        return LOST
    if lane["loss"] > 0 and _is_lost(table, lane):
        lane["lost_packets"] += packets
        return LOST
    _let_go(table, lane, arrival_ns)
    if lane["held_packets"] + packets > lane["queue_limit"] and lane["held_packets"]:
        lane["queue_full_packets"] += packets
        return QUEUE_FULL
    ready_ns = _finish_ns(table, lane, arrival_ns, wire_bytes)
    if lane["reorder"] > 0 and _draw(table, lane, MANGLE) < lane["reorder"]:
        # it does not wait for those under way, nor they for it; in the queue it counts as gone
        lane["reordered_packets"] += packets
        return ready_ns
    delay_ns: int = lane["delay_ns"]
    if lane["jitter_ns"] > 0:
        delay_ns = max(0, delay_ns + round(_draw(table, lane, JITTER) * lane["jitter_ns"]))
    release_ns: int = max(ready_ns + delay_ns, lane["last_release_ns"])
    lane["last_release_ns"] = release_ns
    _hold(table, lane, release_ns, packets)
    return release_ns


@compiled
def is_duplicated(table: Table, lane: Lane) -> bool:
    """Draw whether the frame that was just scheduled is sent twice."""
    if lane["duplicate"] > 0 and _draw(table, lane, MANGLE) < lane["duplicate"]:
        lane["duplicated_packets"] += 1
        return True
    return False


@compiled
def corrupt_bit(table: Table, lane: Lane, bits: int) -> int:
    """Draw whether one of these bits of the frame is flipped, and which; ``WHOLE``: none is."""
    if bits > 0 and lane["corrupt"] > 0 and _draw(table, lane, MANGLE) < lane["corrupt"]:
        lane["corrupted_packets"] += 1
        return int(_draw(table, lane, MANGLE) * bits)
    return WHOLE


@compiled
def _draw(table: Table, lane: Lane, kind: int) -> float:
    """The next number of a kind: between 0 and 1, or of JITTER, of the standard normal distribution."""
    at = table.drawn[lane["number"], kind]
    table.drawn[lane["number"], kind] = at + 1
    return float(table.draws[lane["draws_at"], kind, at])


@compiled
def _is_out(table: Table, lane: Lane, arrival_ns: int) -> bool:
    if lane["zero_ns"] == NOT_BEGUN:
        return False
    after_ns = arrival_ns - lane["zero_ns"]
    for number in range(lane["outage_at"], lane["outage_at"] + lane["outage_count"]):
        if table.outages[number, 0] <= after_ns < table.outages[number, 1]:
            return True
    return False


@compiled
def _is_lost(table: Table, lane: Lane) -> bool:
    drawn = _draw(table, lane, LOSS)
    if lane["burst"] == 0:
        return bool(drawn < lane["loss"])
    # the share of time in the bad state is the loss, the mean stay in it is the burst
    if lane["is_bad"]:
        lane["is_bad"] = drawn >= 1 / lane["burst"]
    elif lane["loss"] < 1:
        lane["is_bad"] = drawn < lane["loss"] / (lane["burst"] * (1 - lane["loss"]))
    else:
        lane["is_bad"] = True
    return bool(lane["is_bad"])


@compiled
def _let_go(table: Table, lane: Lane, arrival_ns: int) -> None:
    """Take out of the queue what has left by then."""
    first, count, room = lane["held_first"], lane["held_count"], lane["held_room"]
    while count and table.held[lane["held_at"] + first, 0] <= arrival_ns:
        lane["held_packets"] -= table.held[lane["held_at"] + first, 1]
        count -= 1
        first += 1
        if first == room:
            first = 0
    # an empty queue begins anew, so that a short one touches little memory
    lane["held_first"] = first if count else 0
    lane["held_count"] = count


@compiled
def _hold(table: Table, lane: Lane, release_ns: int, packets: int) -> None:
    place = lane["held_first"] + lane["held_count"]
    if place >= lane["held_room"]:
        place -= lane["held_room"]
    table.held[lane["held_at"] + place, 0] = release_ns
    table.held[lane["held_at"] + place, 1] = packets
    lane["held_count"] += 1
    lane["held_packets"] += packets


@compiled
def _finish_ns(table: Table, lane: Lane, arrival_ns: int, wire_bytes: int) -> int:
    """When its last byte has passed the bottleneck."""
    if lane["trace_count"]:
        return int(_traced_finish_ns(table, lane, arrival_ns, wire_bytes))
    if lane["ns_per_byte"] == 0:
        return arrival_ns
    # A virtual finish time: a frame starts when it has arrived and its predecessor has finished. In a float
    # 53 bits resolve a quarter of a nanosecond for 70 days of uptime.
    lane["finished_ns"] = max(lane["finished_ns"], float(arrival_ns)) + wire_bytes * lane["ns_per_byte"]
    finished_ns: float = lane["finished_ns"]
    return round(finished_ns)


@compiled
def _traced_finish_ns(table: Table, lane: Lane, arrival_ns: int, wire_bytes: int) -> int:
    """Each moment of the trace lets 1500 bytes pass, of one frame or of several; unused ones are lost."""
    if lane["trace_zero_ns"] == NOT_BEGUN:
        lane["trace_zero_ns"] = arrival_ns
    count, length_ms = lane["trace_count"], lane["trace_length_ms"]
    if _moment_ns(table, lane, lane["trace_index"]) < arrival_ns:
        # what has passed unused is lost: go to the first opportunity that is not over
        behind_ms = -(-(arrival_ns - lane["trace_zero_ns"]) // _NS_PER_MS)
        rounds = (behind_ms - 1) // length_ms  # the end belongs to its round
        within = (behind_ms - 1) % length_ms + 1
        low, high = 0, count
        while low < high:
            middle = (low + high) // 2
            if table.moments_ms[lane["trace_at"] + middle] < within:
                low = middle + 1
            else:
                high = middle
        if rounds * count + low > lane["trace_index"]:
            lane["trace_index"] = rounds * count + low
            lane["trace_left"] = OPPORTUNITY_BYTES
    while wire_bytes > lane["trace_left"]:
        wire_bytes -= lane["trace_left"]
        lane["trace_index"] += 1
        lane["trace_left"] = OPPORTUNITY_BYTES
    lane["trace_left"] -= wire_bytes
    return max(arrival_ns, _moment_ns(table, lane, lane["trace_index"]))


@compiled
def _moment_ns(table: Table, lane: Lane, index: int) -> int:
    """The time of an opportunity that is counted over all repetitions of the trace."""
    rounds, place = index // lane["trace_count"], index % lane["trace_count"]
    after_ms = rounds * lane["trace_length_ms"] + table.moments_ms[lane["trace_at"] + place]
    return int(lane["trace_zero_ns"] + after_ms * _NS_PER_MS)
