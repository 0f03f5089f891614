"""Racing the addresses a server may be at: candidates, challenges and the clock that repeats them.

The clock is the extension's own. PTO would double with each try and be armed anew by every packet of the
application; a probe must not be late because the last ones went to a host that did not run yet.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from aioquic.quic.connection import NetworkAddress, QuicConnectionId

from quicferry.quic.config import Timings
from quicferry.quic.wire import Address


@dataclass
class Candidate:
    """One address the server may be at."""

    address: Address
    network_address: NetworkAddress
    named: bool  # the server has named it in SM_ADDRESS
    next_at: float
    interval_s: float
    tight_until: float  # up to here the interval stays
    cid: QuicConnectionId | None = None  # taken when the first probe leaves (RFC 9000 §9.5)
    tries: int = 0
    heard: bool = False  # an authentic packet came from there
    challenges: dict[bytes, float] = field(default_factory=dict)  # data -> when it was sent
    responses: list[bytes] = field(default_factory=list)  # to the server's challenges, newest last


@dataclass
class Prober:
    """The candidates of one race."""

    timings: Timings
    max_probes: int
    running: bool = False
    candidates: dict[NetworkAddress, Candidate] = field(default_factory=dict)

    def interval_s(self, downtime_s: float, wanted_s: float = 0.0) -> float:
        """The interval while a downtime runs; ``wanted_s`` is the server's wish: it knows how many probe."""
        timings = self.timings
        longest = max(timings.probe_interval_s, timings.probe_interval_max_s)
        own_s = min(longest, max(timings.probe_interval_s, downtime_s / timings.probes_per_downtime))
        return max(own_s, min(wanted_s, timings.probe_interval_wish_max_s))

    def add(
        self,
        address: Address,
        network_address: NetworkAddress,
        *,
        named: bool,
        start_at: float,
        downtime_s: float,
        slack_s: float = 0.0,
        wanted_s: float = 0.0,
    ) -> Candidate:
        """Enters a candidate, or sets the clock of one that is there.

        The interval stays for ``downtime_s``, half as much again as it is an estimate, and ``slack_s``.
        """
        tight_until = start_at + 1.5 * downtime_s + slack_s
        candidate = self.candidates.get(network_address)
        interval_s = self.interval_s(downtime_s, wanted_s)
        if candidate is None:
            candidate = Candidate(address, network_address, named, start_at, interval_s, tight_until)
            self.candidates[network_address] = candidate
        else:
            candidate.next_at = start_at
            candidate.interval_s = interval_s
            candidate.tight_until = tight_until
            candidate.named = candidate.named or named
        return candidate

    def due(self, now: float) -> Iterator[Candidate]:
        """The candidates that want a probe now."""
        if self.running:
            for candidate in list(self.candidates.values()):
                if candidate.next_at <= now and candidate.tries < self.max_probes:
                    yield candidate

    def challenge(self, candidate: Candidate, now: float) -> bytes:
        """New data for a challenge that leaves now (RFC 9000 §8.2.1), and the clock moves on."""
        data = os.urandom(8)
        candidate.challenges[data] = now
        candidate.tries += 1
        self.postpone(candidate, now)
        return data

    def postpone(self, candidate: Candidate, now: float) -> None:
        """The candidate's next try."""
        candidate.next_at = now + candidate.interval_s
        if now >= candidate.tight_until:
            candidate.interval_s = min(
                candidate.interval_s * self.timings.probe_backoff,
                max(self.timings.probe_interval_max_s, candidate.interval_s),
            )

    def answered(self, data: bytes) -> tuple[Candidate, float] | None:
        """Whose challenge that was and when it left. Any challenge counts, also an early one."""
        for candidate in self.candidates.values():
            if data in candidate.challenges:
                return candidate, candidate.challenges[data]
        return None

    def next_at(self) -> float | None:
        """When the next candidate is due."""
        if not self.running:
            return None
        times = [c.next_at for c in self.candidates.values() if c.tries < self.max_probes]
        return min(times) if times else None
