"""What a client knows of its server: where it is, was and may go, and how far it has followed.

The client is built in layers, each of which calls those below: what is known (here), the race for an
address that answers (``client_race``), the server's announcements (``client_moves``), packets and time
(``client``).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from aioquic.quic.connection import NetworkAddress

from quicferry.quic._aioquic.seam import RttEstimate, Seam
from quicferry.quic.addresses import LIFETIME_IDLE_TIMEOUTS, AddressBook
from quicferry.quic.asking import Asking
from quicferry.quic.config import ExtensionConfig, Probing
from quicferry.quic.probing import Allowance, Candidate, KeptIds, Prober, Turns
from quicferry.quic.role import Role
from quicferry.quic.silence import Quiet, Silence
from quicferry.quic.standards import ClientAddresses
from quicferry.quic.tables import CLIENT, ClientInput, ClientState, Machine
from quicferry.quic.wire import Address, SmPrepare
from quicferry.strategies import ProbeOn, rules_of

MISLED_PTOS = 2  # how long the path that SM_MIGRATED came on is waited for, when another answers
#: ... and the way back, when only SM_ABORT has come from where somebody answers: it begins after three
_STAYS_PTOS = 8
_PLAUSIBLE = 2.0  # times what an RTT is taken for without a sample: it is believed at once
_KEPT_PTOS = 3  # how long a connection ID stays with its address after a race
_REMEMBERED = 256
_VISITED = 16


@dataclass
class Announcement:
    """A move that the server has announced and the client has agreed to."""

    prepare: SmPrepare
    addresses: tuple[Address, ...]
    at: float
    over_at: float  # when the server should be back
    over: bool = False

    @property
    def probe_on(self) -> ProbeOn:
        return rules_of(self.prepare.strategy).probe_on

    @property
    def extended(self) -> bool:
        return rules_of(self.prepare.strategy).extended

    @property
    def downtime_s(self) -> float:
        return self.prepare.downtime_ms / 1000


class Answer(NamedTuple):
    """A candidate has answered: its path is validated."""

    candidate: Candidate
    age_s: float  # of the challenge
    agrees: bool  # with where SM_MIGRATED has led, or is newer
    at: float  # when it came


class ClientKnowledge(Role):
    """The state of the client's end, and what follows from it alone."""

    def __init__(self, seam: Seam, config: ExtensionConfig) -> None:
        super().__init__(seam, config)
        self._machine: Machine[ClientState, ClientInput] = Machine(CLIENT, ClientState.IDLE)
        self._policy = config.policy
        turns = Turns(config.timings.longest_turn_s) if config.probing is Probing.ONE_BY_ONE else None
        self._prober = Prober(config.timings, config.max_probes, turns)
        self._book = AddressBook(config.max_known_addresses)
        self._silence = Silence(seam)
        self._quiet = Quiet(seam, config.timings.quiet_s)
        self._announcement: Announcement | None = None
        self._waiting: SmPrepare | None = None  # names an address whose SM_ADDRESS is still on its way
        self._latest: SmPrepare | None = None
        self._latest_at: float | None = None
        self._latest_epoch = 0  # the highest epoch this client has heard of
        self._done_epoch = 0  # no frame of this epoch or an older one means anything
        self._aborted_epoch = 0  # SM_ABORT has the last word: the destination was gone when it was sent
        self._aborted_from: NetworkAddress | None = None  # where SM_ABORT came from that led nowhere
        self._cause: ProbeOn | None = None  # why it probes
        self._here: NetworkAddress | None = None  # where the server says that it is, before SM_MIGRATED
        self._led: NetworkAddress | None = (
            None  # where SM_MIGRATED leads that stands before it in this packet
        )
        self._moved: NetworkAddress | None = None  # where SM_MIGRATED says that it is; not the active path
        self._moved_said = False  # ... in so many words, and not only by the path that it came on
        self._moved_at = 0.0
        self._moved_epoch = 0
        self._on_word_alone = False  # the active path is right only because SM_MIGRATED came on it
        self._doubled_from: NetworkAddress | None = None  # where packets came from again, meanwhile
        self._visited: dict[Address, float] = {}  # where it has been -> when it left, the latest last
        self._validated: Answer | None = None
        self._checked_at: float | None = None  # when the old path was challenged because of a stranger
        self._check: bytes | None = None  # the challenge for it, until it leaves
        self._elsewhere: deque[int] = deque(maxlen=_REMEMBERED)  # numbers that came first from elsewhere
        self._owed: dict[NetworkAddress, list[bytes]] = {}  # answers to challenges of paths not yet probed
        self._kept = KeptIds(seam)
        self._allowance = Allowance(config.timings)
        self._responses: list[bytes] = []
        self._deadline: float | None = None
        self._next_stranger_at = 0.0
        self._moved_for_good_after: int | None = None  # the first number whose acknowledgement shows that
        self._way_back_at: float | None = None  # when the places are tried where the server has been
        self._answerable: dict[bytes, float] = {}  # challenges of the path that was switched to
        self._answer_interval_s = 0.0  # between them
        self._rtt_before: RttEstimate | None = None  # when the path fell silent
        self._rtt_counts_from: int | None = (
            None  # samples of packets before this number have the downtime in them
        )
        self._standard = ClientAddresses(config)
        self.asking = Asking()
        self._first_validation = False  # of a preferred address; the server need not be there yet
        self._former: dict[NetworkAddress, float] = {}  # address -> until when stragglers are read

    @property
    def state(self) -> ClientState:
        """Where it is in the server's move."""
        return self._machine.state

    def _settle(self, epoch: int, now: float) -> None:
        self._done_epoch = max(epoch, self._done_epoch)
        self._latest_epoch = max(epoch, self._latest_epoch)  # of a later move there may have been notice
        for sent in (ClientInput.SETTLED, ClientInput.FALSE_ALARM):
            if self._machine.allows(sent):
                self._machine.feed(sent)
                break
        self._forget_race(now)
        self._announcement = None

    def _settle_down(self, now: float) -> None:
        """While nothing goes on, datagrams of the active path need not be shown to us."""
        self.passive = (
            self._machine.state is ClientState.IDLE
            and not self._responses
            and not self._answerable
            and self._moved_for_good_after is None
            and self._rtt_counts_from is None
            and now >= self._next_stranger_at
        )

    def _stood_still(self) -> None:
        """The server is where it was, and has been away: acknowledgements since are no samples of the RTT."""
        if self._rtt_before is not None:
            self._rtt_counts_from = self._seam.packet_number
            self._seam.take_back_rtt(self._rtt_before)

    def _look_at_rtt(self) -> None:
        """A packet has come: a sample with the downtime in it is taken back, up to the first without."""
        if self._rtt_counts_from is None or self._rtt_before is None:
            return
        if self._seam.largest_acknowledged >= self._rtt_counts_from:
            self._rtt_before = self._rtt_counts_from = None
        else:
            self._seam.take_back_rtt(self._rtt_before)

    def _forget_race(self, now: float) -> None:
        """Ends probing. A connection ID stays with its address for a while, and with no other."""
        for candidate in self._prober.candidates.values():
            if candidate.cid is not None:
                self._kept.put(candidate.network_address, candidate.cid, self._kept_until(now))
        self._prober.candidates.clear()
        self._prober.running = False
        self._responses.clear()
        self._void_answer()
        self._cause = None
        self._deadline = None
        self._moved = None
        self._first_validation = False
        self._check = self._checked_at = None

    def _void_answer(self) -> None:
        """No candidate has answered, or none that counts."""
        self._validated = None
        self._prober.only = None

    def _kept_until(self, now: float) -> float:
        """How long a connection ID stays with its address after a race.

        A server that may be taken down again gives no other ones before its move is final, and its source
        can be found only with one of these.
        """
        if self._moved_for_good_after is not None:
            return math.inf
        # by a standard the same few addresses are asked at each loss, of a server that may go back
        kept_s = _KEPT_PTOS * self._seam.pto_s
        return now + (self._config.timings.give_up_s if self._standard.has_named else kept_s)

    def _has_been_at(self, address: Address, now: float) -> None:
        self._visited.pop(address, None)
        self._visited[address] = now
        while len(self._visited) > _VISITED:
            del self._visited[next(iter(self._visited))]

    def _forget_expired(self, now: float) -> None:
        """Forgets the addresses that were named too long ago: they may be somebody else's by now.

        The address in use is none of these, and a race that goes on keeps its candidates.
        """
        #: wire-format 6.8: A client MUST forget an address
        if not self.extended:
            return
        before = now - LIFETIME_IDLE_TIMEOUTS * self._seam.idle_timeout_s
        moves = [self._waiting, None if self._announcement is None else self._announcement.prepare]
        under_way = {sequence for prepare in moves if prepare is not None for sequence in prepare.sequences}
        here = self._seam.address
        forgotten = {self._book.of_family(frame, here) for frame in self._book.expire(before, under_way)}
        for address, left_at in list(self._visited.items()):
            if left_at < before:
                del self._visited[address]
                forgotten.add(address)
        if forgotten:
            announced = () if self._announcement is None else self._announcement.addresses
            known = {*self._book.all(here), *self._visited, *announced, *self._standard.places(here)}
            self._give_up_ids({address for address in forgotten - known if address is not None})

    def _give_up_ids(self, addresses: set[Address]) -> None:
        """Retires the connection IDs of addresses that are forgotten; those of a race that goes on stay."""
        for address in addresses:
            network_address = self._seam.socket_form(address)
            self._kept.retire(network_address)
            if not self._prober.running:
                candidate = self._prober.drop(network_address)
                if candidate is not None and candidate.cid is not None:
                    self._seam.retire_cid(candidate.cid)

    def _places(self) -> tuple[Address, ...]:
        """Where a server may be that is silent: where it said it may be, and wherever it has been.

        The place that was left last comes first. None where the server has named nothing beforehand.
        """
        here = self._seam.address
        pool = list(self._book.pool(here)) if self.negotiated_pool else []
        pool += self._standard.places(here)
        if not pool and not self._standard.has_named:
            return ()
        been = list(reversed(self._visited))
        places = dict.fromkeys([*been[:1], *pool, *been[1:]])
        usable = [a for a in places if a != here and self._policy.denies(a, here) is None]
        return tuple(usable[: self.max_addresses])

    def _is_standard(self, address: Address) -> bool:
        """Whether the server has named it by a standard, or has been there and goes by one."""
        if address in self._standard.places(self._seam.address):
            return True
        return self._standard.has_named and address in self._visited

    def _ways_back(self) -> tuple[Address, ...]:
        """Where the server has been, the last place first, and where it has said it may go."""
        here = self._seam.address
        places = dict.fromkeys([*reversed(self._visited), *self._book.all(here)])
        usable = [a for a in places if a != here and self._policy.denies(a, here) is None]
        return tuple(usable[: self.max_addresses])

    def _believed_at(self, answer: Answer) -> float:
        """When an address that was not named is believed without a word, while the old path is silent.

        One that the server has never been at is not, as a rule. But where the present path is right only
        because the word came on it, that may have been a relay's, and the word is not said again. And where
        the server says from there that it stays, a relay may have had the word of how it came there.
        """
        #: wire-format 6.4: the client MUST take another
        pto_s = self._seam.pto_s
        unanswered_at = -math.inf if self._checked_at is None else self._checked_at + pto_s
        if answer.candidate.address in self._visited:
            return unanswered_at
        if self._announcement is not None or self._checked_at is None:
            return math.inf
        if self._on_word_alone:
            return max(unanswered_at, answer.at + MISLED_PTOS * pto_s)
        if answer.candidate.network_address == self._aborted_from:
            #: wire-format 6.4: it MUST take, once the way back
            return max(unanswered_at, answer.at + _STAYS_PTOS * pto_s)
        return math.inf

    def _has_cid(self, address: Address) -> bool:
        """Whether an address that nothing has come from could be probed: one ID is always held back."""
        network_address = self._seam.socket_form(address)
        candidate = self._prober.candidates.get(network_address)
        is_raced = candidate is not None and candidate.cid is not None
        return self._seam.free_cids > 1 or is_raced or self._kept.has(network_address)

    def _expected_downtime_s(self) -> float:
        if self._announcement is not None:
            return self._announcement.downtime_s
        return self._config.timings.unannounced_downtime_s

    def _patience_s(self, downtime_s: float) -> float:
        return min(downtime_s + self._config.timings.give_up_s, self._seam.idle_timeout_s / 2)

    def _rtt_of(self, age_s: float, interval_s: float) -> tuple[float | None, bool]:
        """What the age of a challenge says of the RTT, and whether that is a sample.

        One that is longer than what is taken without a sample may be the downtime, in which the challenge
        waited; so it only stands in for a sample until there is one.
        """
        if age_s <= _PLAUSIBLE * self._seam.rtt_without_sample_s:
            return age_s, True
        return (age_s, False) if age_s >= 2 * interval_s else (None, False)
