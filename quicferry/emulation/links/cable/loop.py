"""The cable's loop: read frames, let ``fate`` decide, wait, write. Compiled (``compiling``).

Two things decide how exact it is. It must not be kept from the CPU when a frame is due, which is
the business of ``__main__`` (SCHED_FIFO); and it must not oversleep. How late a sleep ends depends on the
machine and on how long it was: a processor that has gone idle takes a tenth of a millisecond and more to come
back where a hypervisor is asked for it. So the loop learns, for sleeps of each order of length, how late nine
of ten end (``leads_ns``), sleeps that much less, and polls for the rest. With nothing due it sleeps without
end: an idle cable costs no CPU.

The time of arrival is the kernel's receive stamp, not the time of reading. When the loop is behind,
frames still leave at the right time as long as their delay is longer than the backlog.
"""

from __future__ import annotations

from quicferry.emulation.links.cable.compiling import compiled, system_call
from quicferry.emulation.links.cable.due import pop, push
from quicferry.emulation.links.cable.fate import WHOLE, corrupt_bit, is_duplicated, schedule
from quicferry.emulation.links.cable.lanes import wants
from quicferry.emulation.links.cable.lateness import bucket
from quicferry.emulation.links.cable.memory import (
    ANY,
    BATCH,
    EVENTS,
    LARGE_BYTES,
    READ,
    SMALL_BYTES,
    SMALL_SLOTS,
    WATCHED,
    Cable,
)
from quicferry.emulation.links.cable.packets import (
    ETHERNET_HEADER_BYTES,
    VNET_HEADER_BYTES,
    flip_bit,
    wire_size,
)

SEEN, WANTS, INTERRUPTED = range(3)  # why the loop returns: a watched descriptor, a lane's wants, a signal

MSG_DONTWAIT = 0x40
CLOCK_REALTIME, CLOCK_MONOTONIC = 0, 1
TIMER_ABSTIME = 1
FOREVER = -1
ROUND_NS = 25_000
LEAST_LEAD_NS, MOST_LEAD_NS = 2_000.0, 200_000.0
_PUNCTUAL = 0.9  # the share of sleeps that is to end before the frame is due

_clock_gettime = system_call("clock_gettime", "int", "pointer")
_clock_nanosleep = system_call("clock_nanosleep", "int", "int", "pointer", "pointer")
_epoll_pwait2 = system_call("epoll_pwait2", "int", "pointer", "int", "pointer", "pointer")
_recvmmsg = system_call("recvmmsg", "int", "pointer", "int", "int", "pointer")
_sendmmsg = system_call("sendmmsg", "int", "pointer", "int", "int")
_memcpy = system_call("memmove", "pointer", "pointer", "size")


@compiled
def carry(cable: Cable) -> int:
    """Carry frames until Python is needed: ``SEEN``, ``WANTS`` (``cable.which`` does) or ``INTERRUPTED``."""
    while True:
        found = _wait(cable)
        if found < 0:
            return INTERRUPTED
        for event in range(found):
            number = cable.lane_of[cable.events[event * cable.words_per_event + cable.words_per_event - 2]]
            if number == WATCHED:
                return SEEN
            if wants(cable.table, number, BATCH):
                cable.which[0] = number
                return WANTS
            _read(cable, number)
        written = _write(cable)
        if found > 0:
            cable.round_ns[READ] = _now_ns(cable, CLOCK_MONOTONIC)
        if (found > 0 or written > 0) and written < BATCH:
            cable.round_ns[ANY] = _now_ns(cable, CLOCK_MONOTONIC)


@compiled
def _wait(cable: Cable) -> int:
    """Wait until there is something to do; how many descriptors are readable. Negative after a signal.

    Frames that come or leave in quick succession are handled in rounds, ``ROUND_NS`` apart at least. What
    comes is not read at once where it has time (``patience_ns``): more may come with it.
    """
    if cable.heap.size[0] == 0:
        return _poll(cable, FOREVER)
    now_ns = _now_ns(cable, CLOCK_MONOTONIC)
    gap_ns = cable.heap.release_ns[0] - now_ns
    kind = _kind_of_sleep(gap_ns)
    lead_ns = min(int(cable.leads_ns[kind]), max(0, gap_ns // 4))
    wake_ns = cable.heap.release_ns[0] - lead_ns
    calm_ns = max(cable.round_ns[ANY] + ROUND_NS, min(cable.round_ns[READ] + cable.patience_ns[0], wake_ns))
    if now_ns < calm_ns:
        cable.timeout[0] = calm_ns // 1_000_000_000
        cable.timeout[1] = calm_ns % 1_000_000_000
        _clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, cable.timeout.ctypes.data, 0)
        now_ns = _now_ns(cable, CLOCK_MONOTONIC)
        if calm_ns == wake_ns:
            _learn(cable, kind, now_ns - wake_ns)
    found = _poll(cable, max(0, wake_ns - now_ns))
    if found == 0 and now_ns < wake_ns:
        _learn(cable, kind, _now_ns(cable, CLOCK_MONOTONIC) - wake_ns)
    return found


@compiled
def _now_ns(cable: Cable, clock: int) -> int:
    _clock_gettime(clock, cable.time.ctypes.data)
    return int(cable.time[0] * 1_000_000_000 + cable.time[1])


@compiled
def _poll(cable: Cable, sleep_ns: int) -> int:
    """How many descriptors are readable, after at most this time; negative after a signal."""
    timeout = 0
    if sleep_ns != FOREVER:
        cable.timeout[0] = sleep_ns // 1_000_000_000
        cable.timeout[1] = sleep_ns % 1_000_000_000
        timeout = cable.timeout.ctypes.data
    return int(_epoll_pwait2(cable.epoll, cable.events.ctypes.data, EVENTS, timeout, 0))


@compiled
def _kind_of_sleep(gap_ns: int) -> int:
    """Sleeps of less than 128 us, of less than 512 us, and so on, to those of 32 ms and more."""
    kind = 0
    longest_ns = 128_000
    while gap_ns >= longest_ns and kind < 5:
        longest_ns *= 4
        kind += 1
    return kind


@compiled
def _learn(cable: Cable, kind: int, late_ns: int) -> None:
    """Move what is known of such sleeps towards the lateness that nine of ten do not exceed."""
    lead_ns = cable.leads_ns[kind]
    step_ns = max(500.0, lead_ns / 16)
    lead_ns += step_ns * (_PUNCTUAL if late_ns > lead_ns else _PUNCTUAL - 1)
    cable.leads_ns[kind] = min(MOST_LEAD_NS, max(LEAST_LEAD_NS, lead_ns))


@compiled
def _read(cable: Cable, number: int) -> None:
    """Read up to ``BATCH`` frames of a lane and schedule each."""
    lane = cable.table.lanes[number]
    for i in range(BATCH):  # the kernel overwrites them
        cable.in_messages[i, 5] = 32  # bytes of control messages
    arrived = _recvmmsg(lane["read_from"], cable.in_messages.ctypes.data, BATCH, MSG_DONTWAIT, 0)
    if arrived <= 0:
        # Nothing there, or the interface went down or away: links may come and go.
        return
    # Stamps are CLOCK_REALTIME. The difference is taken anew for each batch: it may be stepped.
    ahead_ns = _now_ns(cable, CLOCK_REALTIME) - _now_ns(cable, CLOCK_MONOTONIC)
    for i in range(arrived):
        length = cable.in_messages[i, 7] & 0xFFFFFFFF
        frame = cable.in_frames[i, :length]
        arrival_ns = cable.in_control[i, 2] * 1_000_000_000 + cable.in_control[i, 3] - ahead_ns
        size = wire_size(frame)
        release_ns = schedule(cable.table, lane, arrival_ns, size.wire_bytes, size.packets)
        if release_ns < 0:
            continue
        bit = corrupt_bit(cable.table, lane, (length - VNET_HEADER_BYTES - ETHERNET_HEADER_BYTES) * 8)
        if bit != WHOLE:
            flip_bit(frame, bit)
        copies = 2 if is_duplicated(cable.table, lane) else 1
        for _ in range(copies):
            slot = _slot_for(cable, length)
            if slot < 0:
                lane["no_room_frames"] += 1
                continue
            _memcpy(_address(cable, slot), frame.ctypes.data, length)
            cable.slot_length[slot] = length
            cable.slot_wire_bytes[slot] = size.wire_bytes
            cable.slot_packets[slot] = size.packets
            cable.slot_lane[slot] = number
            cable.serial[0] += 1
            lane["waiting"] += 1
            push(cable.heap, release_ns, cable.serial[0], slot)


@compiled
def _slot_for(cable: Cable, length: int) -> int:
    """Memory for a frame, taken from the free; -1 when there is none."""
    if length <= SMALL_BYTES and cable.free_count[0] > 0:
        cable.free_count[0] -= 1
        return int(cable.free_small[cable.free_count[0]])
    if cable.free_count[1] > 0:
        cable.free_count[1] -= 1
        return int(cable.free_large[cable.free_count[1]])
    return -1


@compiled
def _release_slot(cable: Cable, slot: int) -> None:
    if slot < SMALL_SLOTS:
        cable.free_small[cable.free_count[0]] = slot
        cable.free_count[0] += 1
    else:
        cable.free_large[cable.free_count[1]] = slot
        cable.free_count[1] += 1


@compiled
def _address(cable: Cable, slot: int) -> int:
    if slot < SMALL_SLOTS:
        return int(cable.small.ctypes.data + slot * SMALL_BYTES)
    return int(cable.large.ctypes.data + (slot - SMALL_SLOTS) * LARGE_BYTES)


@compiled
def _write(cable: Cable) -> int:
    """Write what is due, at most ``BATCH``, what is of one lane with one system call. How many they were."""
    heap = cable.heap
    if heap.size[0] == 0:
        return 0
    now_ns = _now_ns(cable, CLOCK_MONOTONIC)
    count = 0
    while count < BATCH and heap.size[0] > 0 and heap.release_ns[0] <= now_ns:
        cable.due_ns[count] = heap.release_ns[0]
        cable.due_slot[count] = pop(heap)
        count += 1
    for first in range(count):
        if cable.due_slot[first] >= 0:
            _write_lane(cable, first, count)
    return count


@compiled
def _write_lane(cable: Cable, first: int, count: int) -> None:
    """Write those frames of the batch that are of the same lane as its ``first`` one."""
    number = cable.slot_lane[cable.due_slot[first]]
    lane = cable.table.lanes[number]
    together = 0
    for i in range(first, count):
        slot = cable.due_slot[i]
        if slot >= 0 and cable.slot_lane[slot] == number:
            cable.out_vectors[together, 0] = _address(cable, slot)
            cable.out_vectors[together, 1] = cable.slot_length[slot]
            cable.out_place[together] = i
            together += 1
    written = 0
    while written < together:
        done = _sendmmsg(
            lane["write_to"], cable.out_messages.ctypes.data + 64 * written, together - written, MSG_DONTWAIT
        )
        now_ns = _now_ns(cable, CLOCK_MONOTONIC)
        taken = done > 0
        if not taken:
            done = 1  # interface down or gone, or its peer's backlog is full: this frame is lost
        for i in range(written, written + done):
            place = cable.out_place[i]
            slot = cable.due_slot[place]
            lane["waiting"] -= 1
            if taken:
                late_ns = now_ns - cable.due_ns[place]
                cable.late[number, bucket(late_ns)] += 1
                lane["late_max_ns"] = max(lane["late_max_ns"], late_ns)
                lane["frames"] += 1
                lane["packets"] += cable.slot_packets[slot]
                lane["bytes"] += cable.slot_wire_bytes[slot]
            else:
                lane["refused_frames"] += 1
            _release_slot(cable, slot)
            cable.due_slot[place] = -1
        written += done
