"""How much connection overhead a strategy may have: the bounds as a table, each with its source.

In round trips from the moment the server serves again to the first useful byte at the client. The floor
is half a round trip where the server speaks first and a whole one where the client must ask; 0.1 and 0.2
are for the processes. A strategy that waits for loss has a probe timeout (RFC 9002 §6.2) on top, as far
as the downtime did not hide it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from quicferry.record import MoveRecord, RunResult
from quicferry.spec import RunSpec, axes
from quicferry.strategies import ProbeOn, rules_of, speaks_first


class Bound(NamedTuple):
    """One line of the table."""

    round_trips: float
    detection: bool  # a PTO that the downtime did not hide comes on top
    source: str


SERVER_FIRST = Bound(0.7, False, "README: symmetric strategies and --server-first, at most 0.69 RTT")
KNOWN = Bound(0.7, False, "README: Proactive Explicit, 0.70 RTT: the notice has named the address")
STANDARD = Bound(
    1.7, True, "docs/wire-format.md: the server may not send before its client has come: 1.5 RTT"
)
MUST_ASK = Bound(1.1, True, "README: Reactive Explicit and Pool, a PTO and then a round trip")

#: Besides the bound: machines are noisy. 25 ms and a sixth of a round trip; four times the jitter.
SLACK_MS, SLACK_RTT, SLACK_JITTER = 25.0, 0.15, 4.0
#: A server of these engines touches memory that is still at the source when it begins to serve.
BEHIND_MS = 60.0
MBIT_PER_MIB = 8.389
FASTEST_MBPS = 100.0  # of a download: aioquic does not send faster
INITIAL_WINDOW_BYTES = 12_000  # ten datagrams (RFC 9002 §7.2)
UNKNOWN_PTO = 2.0  # round trips; RFC 9002 §6.2.1: srtt + 4 rttvar


def bound_of(spec: RunSpec) -> Bound:
    """The line of the table for the strategy of a run."""
    if speaks_first(spec.strategy, spec.server_first):
        return SERVER_FIRST
    if not rules_of(spec.strategy).extended:
        return STANDARD
    return KNOWN if rules_of(spec.strategy).probe_on is ProbeOn.NOTICE else MUST_ASK


def judged(spec: RunSpec) -> bool:
    """Whether the overhead of such a run is the strategy's alone.

    Not under loss, nor where packets are damaged and so lost: each adds a PTO of its own; not with faults,
    baselines, or clients of several strategies; and not where what the server lacks of a request takes
    several flights: on the new path the client begins with the initial window (RFC 9000 §9.4).
    """
    return not (
        spec.baseline is not None or spec.faults or spec.loss_percent or spec.corrupt_percent
        or spec.mixed_strategies or spec.plain_clients or spec.request_bytes > INITIAL_WINDOW_BYTES
    )  # fmt: skip


def under_way(spec: RunSpec, downtime_ms: float) -> bool:
    """Whether there was something to serve when the server came back; a short download may be over."""
    fastest = min(FASTEST_MBPS, spec.rate_mbps or FASTEST_MBPS)
    if spec.download_mib * MBIT_PER_MIB / fastest > spec.before_s or not spec.interval_ms:
        return True
    # other workloads than the default may pause for longer than the interval, which is a mean
    evenly = spec.workload == axes()["workload"].default
    return evenly and spec.interval_ms <= max(spec.rtt_ms, 0.8 * downtime_ms)


def allowed_ms(spec: RunSpec, downtime_ms: float, pto_ms: float | None) -> float:
    """The most overhead that is right, in milliseconds, slack included."""
    bound = bound_of(spec)
    rtt_ms = max(spec.rtt_ms, spec.source_rtt_ms or 0.0)
    allowed = bound.round_trips * rtt_ms
    if bound.detection:
        allowed += max(0.0, (UNKNOWN_PTO * rtt_ms + 50 if pto_ms is None else pto_ms) - downtime_ms)
    if spec.rate_mbps:  # the response has to go through the access link, and what stands before it
        allowed += 2 * (spec.response_bytes + 1500) * 8e-3 / spec.rate_mbps
    if spec.engine in ("criu-post-copy", "criu-hybrid"):
        allowed += BEHIND_MS
    return allowed + SLACK_MS + SLACK_RTT * rtt_ms + SLACK_JITTER * spec.jitter_ms


def too_long(spec: RunSpec, result: RunResult) -> str | None:
    """Why the overhead of a run is more than its strategy may have; None when it is not."""
    if not judged(spec):
        return None
    measured: Sequence[MoveRecord | RunResult] = result.moves or [result]
    for move in measured:
        overhead, downtime = move.connection_overhead_ms, move.container_downtime_ms
        if overhead is None or downtime is None or not under_way(spec, downtime):
            continue
        allowed = allowed_ms(spec, downtime, result.pto_ms)
        if overhead > allowed:
            rtt = max(spec.rtt_ms, 0.1)
            return (
                f"connection overhead {overhead:.1f} ms = {overhead / rtt:.2f} RTT after a downtime of "
                f"{downtime:.1f} ms, at most {allowed:.1f} ms is right ({bound_of(spec).source})"
            )
    return None
