"""Racing the addresses a server may be at: candidates, challenges and the clock that repeats them.

The clock is the extension's own. PTO would double with each try and be armed anew by every packet of the
application; a probe must not be late because the last ones went to a host that did not run yet.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from aioquic.quic.connection import NetworkAddress, QuicConnectionId

from quicferry.quic._aioquic.seam import Seam
from quicferry.quic.config import Timings
from quicferry.quic.wire import Address

RESPONSES_PER_DATAGRAM = 100  # 9 bytes each in a datagram of 1200
_CHALLENGED_MOST = 8  # as many paths as upstream keeps


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
    gentle: bool = False  # nothing was agreed: it is probed no more often than Initial packets are sent
    heard: bool = False  # an authentic packet came from there
    challenges: dict[bytes, float] = field(default_factory=dict)  # data -> when it was sent
    responses: list[bytes] = field(default_factory=list)  # to the server's challenges, newest last


class KeptIds:
    """Connection IDs of candidates of races that are over.

    An ID belongs to one address (RFC 9000 §9.5). A race that is called off and begun again takes none
    from the few there are: RETIRE_CONNECTION_ID may go to a path that is dead, and bring no other back.
    """

    def __init__(self, seam: Seam) -> None:
        self._seam = seam
        self._ids: dict[NetworkAddress, tuple[QuicConnectionId, float]] = {}

    def put(self, address: NetworkAddress, cid: QuicConnectionId, until: float) -> None:
        """Keep the ID of an address up to a time; ``math.inf``: until all are retired."""
        self._ids[address] = (cid, until)

    def has(self, address: NetworkAddress) -> bool:
        """Whether there is one for the address."""
        return address in self._ids

    def take(self, address: NetworkAddress) -> QuicConnectionId | None:
        """The ID of an address, if it has one."""
        #: RFC 9000 9.5: MUST NOT reuse a connection ID when sending to more than one destination address
        kept = self._ids.pop(address, None)
        return None if kept is None else kept[0]

    @property
    def due_at(self) -> float | None:
        """When ``retire_old`` has something to do."""
        return min((until for _, until in self._ids.values() if until < math.inf), default=None)

    def retire_old(self, now: float) -> None:
        """Retire those whose time is over, if the peer hears that: else they stay for another PTO.

        One that acknowledges nothing gives no others. Its path is dead, or it is a destination that may still
        be taken down, and then only one of these leads back to its source.
        """
        #: RFC 9000 5.1.2: SHOULD retire connection IDs when they are no longer actively using
        over = [address for address, (_, until) in self._ids.items() if until <= now]
        if not over:
            return
        sent_at, pto_s = self._seam.oldest_unacknowledged_at(), self._seam.pto_s
        if sent_at is None or now - sent_at < pto_s:
            self._retire(over)
            return
        for address in over:
            self._ids[address] = (self._ids[address][0], now + pto_s)

    def retire(self, address: NetworkAddress) -> None:
        """Retire the ID of an address that is nothing to this client any more."""
        self._retire([address] if address in self._ids else [])

    def retire_all(self) -> None:
        """Retire them: a path is open on which the peer hears it."""
        self._retire(self._ids)

    def retire_prior_to(self, sequence_number: int) -> None:
        """The peer wants them retired (RFC 9000 §5.1.2)."""
        self._retire(a for a, (cid, _) in self._ids.items() if (cid.sequence_number or 0) < sequence_number)

    def _retire(self, addresses: Iterable[NetworkAddress]) -> None:
        #: RFC 9000 5.1.2: MUST NOT forget a connection ID without retiring it
        for address in list(addresses):
            self._seam.retire_cid(self._ids.pop(address)[0])


class Allowance:
    """What a client sends to addresses that it has only been told of (RFC 9000 §21.5).

    A bucket of datagrams that fills slowly, for all candidates and all announcements of a connection.
    """

    def __init__(self, timings: Timings) -> None:
        self._most = float(timings.probe_allowance)
        self._per_second = timings.probe_allowance_per_second
        self._left = self._most
        self._at = 0.0

    def take(self, now: float) -> bool:
        """One datagram; False when none is left."""
        if now > self._at:
            self._left = min(self._most, self._left + (now - self._at) * self._per_second)
            self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True

    def postpone(self, candidate: Candidate, now: float) -> None:
        """The candidate waits for the next one."""
        candidate.next_at = now + max((1.0 - self._left) / self._per_second, 0.001)


class Rechallenges:
    """When a server challenges an address of its client again that has not answered.

    A client whose address has changed sends nothing but probes before it has heard where its server is, and
    is told that only where it has answered. The first challenge leaves with the answer to its first probe;
    one of the two may be lost. Intervals begin with a PTO and double: no more often than Initial packets.
    """

    def __init__(self, seam: Seam, longest_s: float) -> None:
        self._seam = seam
        self._longest_s = longest_s
        self._next: dict[NetworkAddress, tuple[float, float]] = {}  # when, and the interval after that

    def forget(self) -> None:
        """Challenge at once: the answers to what was sent before came when nobody was there."""
        self._next.clear()

    def probed(self, address: NetworkAddress, now: float) -> None:
        """A packet has come from there, and its answer can take a challenge along."""
        #: wire-format 7.2: a server MUST repeat its own PATH_CHALLENGE
        #: RFC 9000 8.2.1: SHOULD NOT probe a new path with packets
        if not self._seam.is_unvalidated(address):
            self._next.pop(address, None)
            return
        due_at, interval_s = self._next.get(address, (now, self._seam.pto_s))
        if now >= due_at:
            self._next[address] = (now + interval_s, min(2 * interval_s, self._longest_s))
            self._seam.challenge_again(address)
            while len(self._next) > _CHALLENGED_MOST:
                del self._next[next(iter(self._next))]


@dataclass
class Turns:
    """One address after another, as published: each is waited for twice as long as the one before it.

    The first has one PTO; after the last the first is asked again. ``next_at`` is when the next turn begins.
    """

    longest_s: float
    wait_s: float = 0.0
    next_at: float = 0.0
    order: list[NetworkAddress] = field(default_factory=list)

    def begin(self, start_at: float, pto_s: float) -> None:
        """Another search begins."""
        self.next_at, self.wait_s = start_at, pto_s
        self.order.clear()

    def pass_on(self, address: NetworkAddress, now: float) -> None:
        """That address was asked now, or cannot be: it comes last."""
        self.order.remove(address)
        self.order.append(address)
        self.next_at = now + self.wait_s
        self.wait_s = min(2 * self.wait_s, self.longest_s)


@dataclass
class Prober:
    """The candidates of one race, or with ``turns`` those that are asked one after another."""

    timings: Timings
    max_probes: int
    turns: Turns | None = None
    running: bool = False
    only: NetworkAddress | None = None  # the one that is still probed, when it has answered
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
        gentle_s: float = 0.0,
    ) -> Candidate:
        """Enters a candidate, or sets the clock of one that is there.

        The interval stays for ``downtime_s``, half as much again as it is an estimate, and ``slack_s``. With
        ``gentle_s`` it begins with that and doubles with each try: RFC 9000 §8.2.1, where the handshake has
        agreed to nothing more.
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
        if self.turns is not None and network_address not in self.turns.order:
            self.turns.order.append(network_address)
        candidate.gentle = gentle_s > 0
        if candidate.gentle:
            candidate.interval_s = gentle_s
        return candidate

    def drop(self, address: NetworkAddress) -> Candidate | None:
        """Takes a candidate out of the race; its connection ID is the caller's to retire."""
        if self.turns is not None and address in self.turns.order:
            self.turns.order.remove(address)
        return self.candidates.pop(address, None)

    def due(self, now: float) -> Iterator[Candidate]:
        """The candidates that want a probe now."""
        if self.running:
            # who was probed least comes first: an allowance that is used up must starve nobody
            for candidate in sorted(self._probed(), key=lambda each: each.tries):
                if self._at(candidate) <= now and candidate.tries < self.max_probes:
                    yield candidate

    def _probed(self) -> list[Candidate]:
        every = self.candidates.values()
        return [each for each in every if self.only is None or each.network_address == self.only]

    def _at(self, candidate: Candidate) -> float:
        """When a candidate is due. Who was heard is never waited for: there is nothing to search any more."""
        if self.turns is None or candidate.heard:
            return candidate.next_at
        return self.turns.next_at if candidate.network_address == self.turns.order[0] else math.inf

    def challenge(self, candidate: Candidate, now: float) -> bytes:
        """New data for a challenge that leaves now (RFC 9000 §8.2.1), and the clock moves on."""
        #: RFC 9000 8.2.1: MUST use unpredictable data in every PATH_CHALLENGE
        data = os.urandom(8)
        candidate.challenges[data] = now
        candidate.tries += 1
        self.postpone(candidate, now)
        return data

    def postpone(self, candidate: Candidate, now: float) -> None:
        """The candidate's next try."""
        #: RFC 9000 8.2.1: SHOULD NOT probe a new path with packets
        #: RFC 9000 9.4: This timer SHOULD be set as described
        if self.turns is not None and not candidate.heard:
            self.turns.pass_on(candidate.network_address, now)
            return
        candidate.next_at = now + candidate.interval_s
        if candidate.gentle:
            candidate.interval_s = min(2 * candidate.interval_s, self.timings.gentle_interval_max_s)
        elif now >= candidate.tight_until:
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
        times = [self._at(c) for c in self._probed() if c.tries < self.max_probes]
        return min(times) if times else None
