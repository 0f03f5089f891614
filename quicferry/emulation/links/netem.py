"""The kernel's own network emulator, ``tc netem``, as a backend of the link layer.

The netem qdisc sits on the *wire ends*, never on a host's own interface: there a host's packet would
wait before the capture sees it, and the sending socket would feel the queue (TCP small queues). What
comes in at one wire end is redirected to the other (u32 that matches all, action mirred), and netem
on the other, which sends towards the host, shapes it.

Source: Linux net/sched/sch_netem.c, tc-netem(8). Times are in ticks of 64 ns; loss is a fraction of
2^32 - 1; the rate is in bytes per second. pyroute2 knows no delay distribution, without which jitter
would be uniform, and cuts times to whole microseconds; so the request is made here. The rest, and the
reading back, is pyroute2's.
"""

from __future__ import annotations

import math
import os
import socket
import statistics
import struct
from typing import Any

import msgspec
from pyroute2 import IPRoute

from quicferry.errors import EmulationError, Unsupported
from quicferry.model import Shape

NETLINK_ROUTE = 0
RTM_NEWQDISC = 36
NLMSG_ERROR = 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_NETEM_DELAY_DIST, TCA_NETEM_REORDER, TCA_NETEM_CORRUPT, TCA_NETEM_LOSS = 2, 3, 4, 5
TCA_NETEM_RATE, TCA_NETEM_RATE64 = 6, 8
NETEM_LOSS_GE = 2  # the model of Gilbert and Elliott
NLA_F_NESTED = 0x8000
TC_H_ROOT = 0xFFFFFFFF
TC_H_INGRESS_MAJOR = 0xFFFF0000
ETH_P_ALL = 0x0003

TICKS_PER_US = 1000 / 64  # PSCHED_SHIFT in include/net/pkt_sched.h: a tick is 64 ns
DISTRIBUTION_SCALE = 8192  # NETEM_DIST_SCALE: a table entry of 8192 is one standard deviation
DISTRIBUTION_ENTRIES = 4096
# With a rate netem keeps packets in order, without one jitter lets them overtake each other. So jitter
# alone gets a rate that takes 0.12 us for 1,500 bytes.
ORDER_KEEPING_RATE_BYTES_PER_S = 12_500_000_000
_U32_MAX = 0xFFFFFFFF


class NetemParameters(msgspec.Struct, frozen=True, kw_only=True):
    """A ``Shape`` in netem's own units."""

    delay_ticks: int
    jitter_ticks: int
    loss: int  # 0..2^32-1
    limit_packets: int
    rate_bytes_per_s: int | None
    bursts: tuple[int, int] | None = None  # good to bad and bad to good, 0..2^32-1; then ``loss`` is 0
    reorder: int = 0
    duplicate: int = 0
    corrupt: int = 0


def why_not(shape: Shape) -> str | None:
    """What of a shape netem does not know; None: it knows all of it."""
    if shape.rate_trace is not None:
        return "follow a trace of rates"
    return "cut one direction of a link at a given time" if shape.outages else None


def _fraction(percent: float) -> int:
    return round(percent / 100 * _U32_MAX)


def parameters(shape: Shape, mtu_bytes: int) -> NetemParameters:
    """A shape in netem's parameters."""
    rate = None
    if shape.rate_mbps is not None:
        rate = max(1, round(shape.rate_mbps * 1e6 / 8))
    elif shape.jitter_ms:
        rate = ORDER_KEEPING_RATE_BYTES_PER_S
    return NetemParameters(
        delay_ticks=round(shape.delay_ms * 1e3 * TICKS_PER_US),
        jitter_ticks=round(shape.jitter_ms * 1e3 * TICKS_PER_US),
        loss=_fraction(shape.loss_percent) if shape.loss_burst_packets is None else 0,
        limit_packets=shape.queue_limit(mtu_bytes),
        rate_bytes_per_s=rate,
        bursts=_bursts(shape),
        reorder=_fraction(shape.reorder_percent),
        duplicate=_fraction(shape.duplicate_percent),
        corrupt=_fraction(shape.corrupt_percent),
    )


def _bursts(shape: Shape) -> tuple[int, int] | None:
    """The probabilities to enter and to leave the state in which all is lost."""
    burst, loss = shape.loss_burst_packets, shape.loss_percent / 100
    if burst is None or not loss:
        return None
    enter = loss / (burst * (1 - loss)) if loss < 1 else 1.0
    return _fraction(100 * min(1.0, enter)), _fraction(100 / burst)


def normal_distribution() -> bytes:
    """netem's table of a normal distribution: quantiles in steps of equal probability, as int16."""
    normal = statistics.NormalDist()
    quantiles = (normal.inv_cdf((i + 0.5) / DISTRIBUTION_ENTRIES) for i in range(DISTRIBUTION_ENTRIES))
    return struct.pack(f"={DISTRIBUTION_ENTRIES}h", *(round(q * DISTRIBUTION_SCALE) for q in quantiles))


def _attribute(kind: int, payload: bytes) -> bytes:
    """A netlink attribute: length, type, payload, padding to 4 bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def request(index: int, wanted: NetemParameters) -> bytes:
    """The netlink request that makes netem the root qdisc of the interface with that index."""
    options = struct.pack(
        "=6I",  # struct tc_netem_qopt: latency, limit, loss, gap, duplicate, jitter
        wanted.delay_ticks,
        wanted.limit_packets,
        wanted.loss,
        1 if wanted.reorder else 0,  # with a gap of 1 every packet may be the one that is reordered
        wanted.duplicate,
        wanted.jitter_ticks,
    )
    for kind, probability in ((TCA_NETEM_REORDER, wanted.reorder), (TCA_NETEM_CORRUPT, wanted.corrupt)):
        if probability:
            options += _attribute(kind, struct.pack("=II", probability, 0))  # without correlation
    if wanted.bursts is not None:
        # struct tc_netem_gemodel: p, r, what the bad state lets through, what the good one loses
        model = _attribute(NETEM_LOSS_GE, struct.pack("=4I", *wanted.bursts, 0, 0))
        options += _attribute(TCA_NETEM_LOSS | NLA_F_NESTED, model)
    if wanted.jitter_ticks:
        options += _attribute(TCA_NETEM_DELAY_DIST, normal_distribution())
    if wanted.rate_bytes_per_s is not None:
        rate = min(wanted.rate_bytes_per_s, _U32_MAX)
        # struct tc_netem_rate: rate, packet overhead, cell size, cell overhead
        options += _attribute(TCA_NETEM_RATE, struct.pack("=IiIi", rate, 0, 0, 0))
        if wanted.rate_bytes_per_s > _U32_MAX:
            options += _attribute(TCA_NETEM_RATE64, struct.pack("=Q", wanted.rate_bytes_per_s))
    # struct tcmsg: family, padding, interface, handle 1:0, parent, info
    body = struct.pack("=B3xiIII", 0, index, 0x10000, TC_H_ROOT, 0)
    body += _attribute(TCA_KIND, b"netem\0") + _attribute(TCA_OPTIONS, options)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    return struct.pack("=IHHII", 16 + len(body), RTM_NEWQDISC, flags, 1, 0) + body


def exchange(message: bytes) -> None:
    """Send one netlink request and wait for its acknowledgement. Raises ``OSError`` with its errno."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE) as link:
        link.settimeout(5.0)
        link.send(message)
        answer = link.recv(65_536)
    kind, error = struct.unpack_from("=4xH10xi", answer)
    if kind != NLMSG_ERROR:
        raise OSError(f"netlink answered with type {kind}")
    if error:
        raise OSError(-error, os.strerror(-error))


def is_there(index: int = 1) -> bool:
    """Whether this kernel has netem, tried on an interface (default: the loopback of this namespace).

    Ask in a namespace of its own: the qdisc stays. Raises ``PermissionError`` without CAP_NET_ADMIN.
    """
    try:
        exchange(request(index, parameters(Shape(), 1500)))
    except PermissionError:
        raise
    except OSError:
        return False
    return True


def redirect(netlink: IPRoute, from_index: int, to_index: int) -> None:
    """Send all that comes in at one interface out of another."""
    netlink.tc("add", "ingress", from_index)
    netlink.tc(
        "add-filter",
        "u32",
        from_index,
        parent=TC_H_INGRESS_MAJOR,
        protocol=ETH_P_ALL,
        prio=1,
        target=0,
        keys=["0x0/0x0+0"],
        action={"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": to_index},
    )


def shape_interface(index: int, shape: Shape, mtu_bytes: int) -> None:
    """Shape what leaves an interface. Raises ``Unsupported`` when the kernel has no netem."""
    try:
        exchange(request(index, parameters(shape, mtu_bytes)))
    except FileNotFoundError as error:
        raise Unsupported(
            "this kernel has no netem", hint="load the module sch_netem, or choose the cable"
        ) from error
    except OSError as error:
        raise EmulationError(f"netem refused {shape}: {error}") from error


def from_kernel(options: Any) -> dict[str, str | int | float | None]:
    """The options of a netem qdisc, as the kernel tells them, in units that people read."""
    rate = options.get_attr("TCA_NETEM_RATE")
    return {
        "qdisc": "netem",
        "delay_ms": options["delay"] / TICKS_PER_US / 1e3,
        "jitter_ms": options["jitter"] / TICKS_PER_US / 1e3,
        "loss_percent": round(options["loss"] / _U32_MAX * 100, 6),
        "limit_packets": options["limit"],
        "rate_mbps": rate["rate"] * 8 / 1e6 if rate is not None and rate["rate"] else None,
    }


def read_back(netlink: IPRoute, index: int) -> dict[str, str | int | float | None]:
    """The root qdisc of an interface with its counters. Raises ``EmulationError`` when it is not netem."""
    for qdisc in netlink.get_qdiscs(index=index):
        if qdisc["parent"] != TC_H_ROOT:
            continue
        kind = qdisc.get_attr("TCA_KIND")
        if kind != "netem":
            raise EmulationError(f"interface {index} has the qdisc {kind} instead of netem")
        reading = from_kernel(qdisc.get_attr("TCA_OPTIONS"))
        counters = qdisc.get_attr("TCA_STATS2")
        if counters is not None:
            basic, queue = counters.get_attr("TCA_STATS_BASIC"), counters.get_attr("TCA_STATS_QUEUE")
            reading |= {"bytes": basic["bytes"], "packets": basic["packets"], "dropped": queue["drops"]}
        return reading
    raise EmulationError(f"interface {index} has no qdisc")


def differences(shape: Shape, mtu_bytes: int, reading: dict[str, str | int | float | None]) -> list[str]:
    """The settings in which the kernel's reading differs from the shape by more than its resolution."""
    wanted = parameters(shape, mtu_bytes)
    rate_mbps = None if wanted.rate_bytes_per_s is None else wanted.rate_bytes_per_s * 8 / 1e6
    asked: dict[str, float | None] = {
        "delay_ms": shape.delay_ms,
        "jitter_ms": shape.jitter_ms,
        "loss_percent": round(wanted.loss / _U32_MAX * 100, 6),
        "limit_packets": wanted.limit_packets,
        # The 32-bit field that is read back cannot say more.
        "rate_mbps": None if rate_mbps is None else min(rate_mbps, _U32_MAX * 8 / 1e6),
    }
    found = []
    for name, value in asked.items():
        there = reading.get(name)
        if value is None and there is None:
            continue
        same = (
            value is not None
            and isinstance(there, int | float)
            and math.isclose(value, there, rel_tol=1e-3, abs_tol=1e-3)
        )
        if not same:
            found.append(f"{name}: asked {value}, there is {there}")
    return found
