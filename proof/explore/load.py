"""Whether a run's network and this machine carry what its clients ask for.

Where they do not, unanswered requests say nothing of the extension. An estimate on the safe side: what is
near the limit counts as too much.
"""

from __future__ import annotations

import math

from apps.client.workloads import BULK_AT_ONCE, BULK_BYTES
from apps.config import LEAST_INTERVAL_MS
from baselines.tcp_dns.config import MOST_CONNECTIONS
from quicferry.analysis.service import FILLING
from quicferry.spec import RunSpec

MACHINE_MBPS = 40.0  # aioquic, two endpoints, analysis included
MACHINE_REQUESTS_S = 250.0  # of all clients together
ON_THE_WIRE_BYTES = 180  # of an exchange in one direction besides its body: headers, JSON line, an ACK
SEGMENT_BYTES = 1200
FULL = 0.6  # of what could be carried; more is too much
BULK_S = 6.0  # a transfer that takes longer is not waited for by every client
AT_ONCE_S = 30.0  # for what a bulk workload has open at a time; a client waits 60 s while bytes still come
DISK_MIB_S = 40.0  # a container's files: read, packed, sent, written
DISK_S = 60.0  # of all moves together
REORDERED = 0.01  # jitter puts packets out of order, which looks like so much loss
TCP_TIMEOUT_S = 0.25  # a request or an answer of one segment that is lost is sent again after so long
_OVER_TCP = {"tcp-dns", "mptcp", "ip-move-tcp"}


def capacity_mbps(spec: RunSpec) -> float:
    """What one connection gets in one direction, roughly.

    Under loss the bound is Mathis et al., *The macroscopic behavior of the TCP congestion avoidance
    algorithm* (CCR 27(3), 1997): 1.22 segments per round trip over the root of the loss.
    """
    limit = min(MACHINE_MBPS, spec.rate_mbps or MACHINE_MBPS)
    # a damaged datagram is thrown away, one that is overtaken by three is taken for lost
    damaged = spec.loss_percent + spec.corrupt_percent + spec.reorder_percent
    loss = damaged / 100 + (REORDERED if spec.jitter_ms else 0.0)
    if loss:
        limit = min(limit, 1.22 * SEGMENT_BYTES * 8 / (_rtt_s(spec) * math.sqrt(loss)) / 1e6)
    return limit


def _rtt_s(spec: RunSpec) -> float:
    """The longest round trip, and at least a millisecond: processes take that."""
    return max(spec.rtt_ms, spec.source_rtt_ms or 0.0, 1.0) / 1000


def _tcp_requests_s(spec: RunSpec) -> float:
    """How many requests a second one after another on the connections that a client over TCP has at most."""
    lost = (spec.loss_percent + spec.corrupt_percent) / 100
    return FULL * MOST_CONNECTIONS / (_rtt_s(spec) + 2 * lost * TCP_TIMEOUT_S)


def too_much(spec: RunSpec) -> str | None:
    """Why the run asks for more than is carried, in words; None when it does not."""
    rate = capacity_mbps(spec)
    shared = min(spec.rate_mbps or MACHINE_MBPS, MACHINE_MBPS)
    disk_mib_s = min(DISK_MIB_S, spec.inter_edge_mbps / 8.4)
    if spec.disk_mib * spec.moves / disk_mib_s > DISK_S:
        return f"{spec.moves} moves of {spec.disk_mib} MiB of files"
    largest = max(spec.request_bytes, spec.response_bytes) + ON_THE_WIRE_BYTES
    interval_ms = spec.interval_ms
    if "video" in spec.workload.split("+") and spec.bit_rate_mbps > FULL * min(rate, shared / spec.clients):
        return f"a video of {spec.bit_rate_mbps:.2g} Mbit/s for each of {spec.clients} on {rate:.2g} Mbit/s"
    if (
        spec.clients > 1 or spec.plain_clients or spec.mixed_strategies
    ):  # they share the rate, see multi_client
        interval_ms = max(interval_ms, LEAST_INTERVAL_MS)
    if interval_ms:
        if 1000 / interval_ms > MACHINE_REQUESTS_S:
            return f"{1000 / interval_ms:.0f} requests a second"
        offered = largest * 8e-3 / interval_ms
        if offered > FULL * shared or offered / spec.clients > FULL * rate:
            return f"{offered:.2g} Mbit/s of requests on {rate:.2g} Mbit/s"
        if spec.baseline in _OVER_TCP and 1000 / interval_ms > _tcp_requests_s(spec):
            return f"{1000 / interval_ms:.0f} requests a second, each on a connection of its own"
    elif largest * 8e-6 / rate > 1.0:
        return f"a request takes {largest * 8e-6 / rate:.1f} s"
    if not FILLING.isdisjoint(spec.workload.split("+")):
        at_once_s = BULK_AT_ONCE * BULK_BYTES * 8e-6 / (FULL * min(rate, shared / spec.clients))
        if at_once_s > AT_ONCE_S:
            return f"{BULK_AT_ONCE} bulk exchanges at once take {at_once_s:.0f} s"
    bulk_s = (spec.download_mib + spec.upload_mib) * 8.4 / (FULL * rate)
    if bulk_s > BULK_S:
        return f"bulk data of {bulk_s:.0f} s"
    if spec.baseline is not None and 0 < spec.request_timeout_ms < 4 * spec.rtt_ms:
        return f"requests time out after {spec.request_timeout_ms:g} ms of {spec.rtt_ms:g} ms round trips"
    return None
