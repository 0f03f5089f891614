"""Racing the addresses where a server may be, and going to the one that it is at.

Everything after the first probe is the same for all strategies.
"""

from __future__ import annotations

import math
import os
import random

from aioquic.quic.connection import NetworkAddress

from quicferry.quic import events
from quicferry.quic._aioquic.careful_resume import PathFacts
from quicferry.quic._aioquic.connection import Datagrams
from quicferry.quic._aioquic.seam import plain_address
from quicferry.quic.client_state import MISLED_PTOS, Announcement, Answer, ClientKnowledge
from quicferry.quic.config import Congestion
from quicferry.quic.probing import RESPONSES_PER_DATAGRAM, Candidate
from quicferry.quic.tables import ClientInput, ClientState
from quicferry.quic.wire import Address
from quicferry.strategies import ProbeOn

_RACING = (ClientState.PROBING, ClientState.VALIDATED)
_FORMER_PATH_PTOS = 3  # how long stragglers of the old path are read after the switch
#: what a server has named, and been at, is less; this is for one that is always elsewhere
_CANDIDATES_MOST = 40


class ClientRace(ClientKnowledge):
    """Probes, their answers, and the switch."""

    @property
    def has_datagrams(self) -> bool:
        """Frames or candidates."""
        return bool(self._control or self._prober.candidates or self._check)

    def before_send(self, now: float) -> Datagrams:
        """The answer to the announcement first, then the probes."""
        datagrams = self._control_datagrams(now)
        if self._check is not None:
            datagrams.append(self._seam.probe(self._seam.network_address, None, self._check, ()))
            self._check = None
            #: wire-format 6.2: A client MUST count a PATH_CHALLENGE on the old path
            self._silence.challenged(now)  # a client that only receives sends nothing else that is missed
        for candidate in self._prober.candidates.values():
            if candidate.responses and candidate.cid is not None:
                datagrams.append(
                    self._seam.probe(candidate.network_address, candidate.cid, None, candidate.responses)
                )
                candidate.responses.clear()
        for candidate in self._prober.due(now):
            if candidate.cid is None:
                if candidate.heard or self._seam.free_cids > 1:  # the last one is for who is heard
                    candidate.cid = self._seam.take_cid()
                if candidate.cid is None:
                    self._prober.postpone(candidate, now)  # the server may send more
                    continue
            if not (candidate.heard or candidate.address in self._visited or self._allowance.take(now)):
                self._allowance.postpone(candidate, now)
                if self._prober.turns is not None:
                    self._prober.postpone(candidate, now)  # its turn is over all the same
                continue
            if candidate.tries == 0:
                self._seam.emit(events.ProbeStarted(candidate.address))
            challenge = self._prober.challenge(candidate, now)
            datagrams.append(
                self._seam.probe(candidate.network_address, candidate.cid, challenge, candidate.responses)
            )
            candidate.responses.clear()
        return datagrams

    def _probe(
        self, addresses: tuple[Address, ...], cause: ProbeOn, now: float, *, named: bool = True
    ) -> None:
        """Races ``addresses``: all of them get their first probe in the same flight. Or asks one by one."""
        self._machine.feed(ClientInput.PROBE)
        self._cause = cause
        self._prober.running = True
        downtime_s = self._expected_downtime_s()
        delay_s = 0.0
        if cause is not ProbeOn.SERVER_PACKET:
            delay_s = random.uniform(0.0, self._config.timings.start_delay_max_s)
        if self._prober.turns is not None:
            self._prober.turns.begin(now + delay_s, self._seam.pto_s)
            # nobody knows better which is the right one
            addresses = tuple(random.sample(addresses, len(addresses)))
        for address in addresses:
            self._add_candidate(address, now + delay_s, named=named, downtime_s=downtime_s)
        if self._deadline is None:
            self._deadline = now + self._patience_s(downtime_s)

    def _add_candidate(self, address: Address, start_at: float, *, named: bool, downtime_s: float) -> None:
        wanted_s = 0.0
        if self._announcement is not None:
            wanted_s = self._announcement.prepare.probe_interval_ms / 1000
        network_address = self._seam.socket_form(address)
        candidate = self._prober.add(
            address,
            network_address,
            named=named,
            start_at=start_at,
            downtime_s=downtime_s,
            slack_s=self._seam.pto_s,  # the server freezes when our answer has reached it
            wanted_s=wanted_s,
            gentle_s=self._seam.pto_s if self._is_standard(address) else 0.0,
        )
        candidate.responses += self._owed.pop(network_address, [])
        del candidate.responses[:-RESPONSES_PER_DATAGRAM]
        if candidate.cid is None:
            candidate.cid = self._kept.take(network_address)
        if len(self._prober.candidates) > _CANDIDATES_MOST:
            self._drop_one_but(network_address)

    def _drop_one_but(self, newest: NetworkAddress) -> None:
        """One candidate too many: the oldest from which nothing has come is given up."""
        #: wire-format 10.3: A client MUST bound the candidates
        kept = {newest, self._moved}
        others = [a for a in self._prober.candidates if a not in kept]
        unheard = [a for a in others if not self._prober.candidates[a].heard]
        dropped = self._prober.drop((unheard or others)[0])
        if dropped is not None and dropped.cid is not None:
            self._seam.retire_cid(dropped.cid)

    def _on_packet_from_elsewhere(self, address: NetworkAddress, now: float) -> None:
        #: RFC 9000 9: MUST perform path validation (Section 8.2) if it detects any change
        #: RFC 9000 9.3.3: endpoints MUST validate the previously active path
        if not self.admits(address):
            return
        self._forget_expired(now)
        candidate = self._prober.candidates.get(address)
        if candidate is not None and candidate.heard:
            return
        plain = plain_address(address)
        named = self._book.names(plain, self._seam.address) or self._is_standard(plain)
        if not named and address != self._moved:
            # Anyone can relay a packet to us; that must not cost a probe and a connection ID each time.
            if now < self._next_stranger_at:
                return
            self._next_stranger_at = now + self._config.timings.epoch_interval_s
            # RFC 9000 §9.3.3: the previous path is validated before it is given up
            self._check, self._checked_at = os.urandom(8), now
        if self.state not in _RACING:
            self._probe((plain,), ProbeOn.SERVER_PACKET, now, named=named)
        elif candidate is None:
            self._add_candidate(plain, now, named=named, downtime_s=0.0)
        else:
            candidate.next_at = now
        self._prober.candidates[address].heard = True
        self._prober.candidates[address].tight_until = now + self._expected_downtime_s()
        self._seam.emit(events.PeerMigrated(self._latest_epoch, plain))

    def _on_old_path_alive(self, now: float) -> None:
        if self._moved is not None or self._cause is ProbeOn.NOTICE:
            return
        self._give_up_strangers()
        if self._announcement is not None and self._machine.allows(ClientInput.STAND_BY):
            self._machine.feed(ClientInput.STAND_BY)
            self._prober.running = False
            self._void_answer()
            self._deadline = None
        elif self._machine.allows(ClientInput.FALSE_ALARM):
            self._machine.feed(ClientInput.FALSE_ALARM)
            self._forget_race(now)

    def _give_up_strangers(self) -> None:
        """The server speaks where it was: who has only relayed needs no connection ID any more.

        That may have been the last one, and the server may be about to speak from a place that nobody has
        named. What leads back to a source that may go on is kept.
        """
        #: wire-format 6.3: That of a stranger MUST be retired
        if self._moved_for_good_after is not None:
            return
        for network_address, candidate in list(self._prober.candidates.items()):
            if self._is_stranger(candidate):
                self._prober.drop(network_address)
                if candidate.cid is not None:
                    self._seam.retire_cid(candidate.cid)

    def challenge(self, address: NetworkAddress, data: bytes, *, on_active_path: bool) -> bool:
        """The server validates our address from a new one of its own: answered on the path it came on."""
        #: RFC 9000 8.2.2: MUST be sent on the network path where the PATH_CHALLENGE frame was received
        if address == self._seam.network_address:
            return False
        candidate = self._prober.candidates.get(address)
        owed = self._owed.setdefault(address, []) if candidate is None else candidate.responses
        owed.append(data)
        del owed[:-RESPONSES_PER_DATAGRAM]  # there may be no connection ID to answer with
        return True

    def response(self, data: bytes, address: NetworkAddress) -> bool:
        """Kept until the packet it came in is done with: the switch changes what upstream is looking at.

        It counts only on the path of its challenge: a challenge that was handed on to another host is
        answered from there, and says nothing of the address it was sent to.
        """
        found = self._prober.answered(data)
        if found is None and data not in self._answerable:
            return False
        if address == (self._seam.network_address if found is None else found[0].network_address):
            self._responses.append(data)
        return True

    def _take_responses(self, now: float) -> None:
        if self._responses:
            responses, self._responses = self._responses, []
            # the newest challenge first: its age is nearest to the RTT
            for data in sorted(responses, key=self._sent_at, reverse=True):
                self._on_response(data, now)
        if self._validated is not None:
            self._switch_if_allowed(now)

    def _sent_at(self, challenge: bytes) -> float:
        found = self._prober.answered(challenge)
        return self._answerable.get(challenge, 0.0) if found is None else found[1]

    def _on_response(self, data: bytes, now: float) -> None:
        if data in self._answerable:
            # A waiting room gives the server our early challenges first; later ones tell the RTT better.
            age_s = now - self._answerable.pop(data)
            if self._rtt_of(age_s, self._answer_interval_s)[1]:
                self._seam.lower_rtt(age_s, now)
            return
        found = self._prober.answered(data)
        if found is None or not self._counts(*found):
            return
        candidate, sent_at = found
        age_s = now - sent_at
        if self._validated is not None:
            self._machine.feed(ClientInput.ELSEWHERE)
        if self._machine.allows(ClientInput.PROBE):
            self._machine.feed(ClientInput.PROBE)
        if not self._machine.allows(ClientInput.RESPONSE):
            return
        self._machine.feed(ClientInput.RESPONSE)
        agrees = self._moved is None or self._agrees(candidate, sent_at)
        self._validated = Answer(candidate, age_s, agrees, now)
        candidate.heard = True
        # An answer may bring the word that is waited for; where there is one, the server is where that says.
        # A stranger may be a relay, which goes away without having brought it.
        is_alone = agrees and not self._is_stranger(candidate)
        self._prober.only = candidate.network_address if is_alone else None
        self._seam.emit(events.PathValidated(candidate.address, age_s))

    def _agrees(self, candidate: Candidate, sent_at: float) -> bool:
        """Whether an answer to a challenge of that time agrees with SM_MIGRATED, or is newer.

        A server that answers what has left after its word had come, from another address that it has named,
        has moved on or back since.
        """
        return candidate.network_address == self._moved or (candidate.named and sent_at > self._moved_at)

    def _counts(self, candidate: Candidate, sent_at: float) -> bool:
        """Whether an answer may validate a path: a relay of SM_MIGRATED must not be in the server's way."""
        if self._moved is None and self._validated is not None:
            # Without a word of the server, a relay that has come and gone must not keep the client.
            return self._is_stranger(self._validated.candidate) and not self._is_stranger(candidate)
        if self._moved is None or (self._validated is not None and self._validated.agrees):
            return self._validated is None
        if self._agrees(candidate, sent_at) or self._is_announced(candidate.address):
            return True
        return self._validated is None and not self._moved_said

    def _is_stranger(self, candidate: Candidate) -> bool:
        """Whether the server has neither named the address nor been there, nor says that it is there now."""
        if candidate.named or candidate.network_address == self._moved:
            return False
        return candidate.address not in self._visited

    def _facts(self) -> PathFacts | None:
        """What is known of the path that is left, if congestion control is to be resumed from it."""
        careful = self._config.congestion is Congestion.CAREFUL_RESUME
        return self._seam.path_facts() if careful else None

    def _may_switch_to(self, answer: Answer, now: float) -> bool:
        """Whether the server is known to be there, or not to be where it was."""
        candidate = answer.candidate
        if candidate.network_address == self._moved or (self._moved is not None and answer.agrees):
            return True
        if self._moved is not None and not self._is_announced(candidate.address):
            # Who passed on the word may have been a relay, and have gone. Where the server has said in so
            # many words where it is, there is no other path.
            misled = not self._moved_said and now - self._moved_at >= MISLED_PTOS * self._seam.pto_s
            return misled and self._silence.noticed
        if candidate.named:
            return True
        # SM_MIGRATED is repeated until it is acknowledged: who never says it only relays
        return self._silence.noticed and now >= self._believed_at(answer)

    def _is_announced(self, address: Address) -> bool:
        """Whether the server has announced that it goes there from where it is by its own word."""
        announced = self._announcement
        if announced is None or announced.prepare.epoch <= self._moved_epoch:
            return False
        return address in announced.addresses

    def _switch_at(self) -> float | None:
        """When a path that has answered is believed without a word of the server."""
        if self._validated is None or not self._silence.noticed:
            return None
        if self._moved is not None:
            return None if self._moved_said else self._moved_at + MISLED_PTOS * self._seam.pto_s
        believed_at = self._believed_at(self._validated)
        return believed_at if math.isfinite(believed_at) else None

    def _switch_if_allowed(self, now: float) -> None:
        #: RFC 9000 9.6.1: SHOULD begin sending all future packets to the new server address
        #: RFC 9000 9.6.2: MUST validate the address it chooses before migrating
        #: RFC 9000 9.6.3: MUST abandon validation of the original address and migrate
        if self._validated is None:
            return
        candidate, age_s = self._validated.candidate, self._validated.age_s
        if not self._may_switch_to(self._validated, now):
            return
        if candidate.cid is None:  # the peer has retired the one it was challenged on
            candidate.cid = self._seam.take_cid()
        if candidate.cid is None:
            return
        old, old_network_address = self._seam.address, self._seam.network_address
        drain_until = now + _FORMER_PATH_PTOS * self._seam.pto_s
        self._machine.feed(ClientInput.SWITCH)
        rtt_s, is_sample = self._rtt_of(age_s, candidate.interval_s)
        old_cid = self._seam.adopt(
            candidate.network_address,
            candidate.cid,
            candidate.responses,
            rtt_s,
            now,
            is_sample=is_sample,
            resume_from=self._facts(),
        )
        candidate.cid = None  # it is the connection's now
        self._answerable = dict(candidate.challenges)
        self._answer_interval_s = candidate.interval_s
        if self._moved is not None or not self._is_stranger(candidate) or not self._on_word_alone:
            self._has_been_at(old, now)  # else that was a relay's
        is_said = self._moved_said and candidate.network_address == self._moved
        is_named = self._book.names(candidate.address, old) or self._is_standard(candidate.address)
        self._on_word_alone = not (is_said or is_named)
        self._doubled_from = self._aborted_from = None
        was_told = self._moved is not None
        announced, is_there = self._announcement, self._is_announced(candidate.address)
        if was_told and is_there:
            was_told = False  # it has gone on from where it said that it is
        # an address that was not announced is that of an earlier move
        if announced is not None and not was_told and candidate.address in announced.addresses:
            self._done_epoch = max(self._done_epoch, announced.prepare.epoch)
        self._forget_race(now)
        self._kept.retire_all()  # the way is open; the server gives others
        self._kept.put(old_network_address, old_cid, math.inf)
        self._moved_for_good_after = self._seam.packet_number
        self._announcement = None
        self._rtt_before = self._rtt_counts_from = None
        self._former = {old_network_address: drain_until}
        self._silence.broken(now)
        self._seam.emit(events.PathSwitched(old, candidate.address))
        if was_told:
            self._settle(self._moved_epoch, now)
            if announced is not None and announced.prepare.epoch > self._moved_epoch:
                self._await_next_move(announced, now)

    def _await_next_move(self, announced: Announcement, now: float) -> None:
        """The place is reached that the server has announced to leave."""
        self._machine.feed(ClientInput.NOTICE)
        self._announcement = announced
        if announced.probe_on is ProbeOn.NOTICE:
            self._probe(announced.addresses, ProbeOn.NOTICE, now)

    def retire_prior_to(self, sequence_number: int) -> None:
        """Connection IDs of candidates are retired like all others (RFC 9000 §5.1.2)."""
        #: RFC 9000 5.1.2: the peer MUST stop using the corresponding connection IDs
        for candidate in self._prober.candidates.values():
            if candidate.cid is not None and (candidate.cid.sequence_number or 0) < sequence_number:
                self._seam.retire_cid(candidate.cid)
                candidate.cid = None
                candidate.challenges.clear()
        self._kept.retire_prior_to(sequence_number)

    def _try_way_back(self, now: float) -> None:
        """Nobody has answered: the server may have gone back to where it was, and not be able to say so."""
        if not self._silence.noticed:
            return
        self._forget_expired(now)
        places = self._ways_back()
        if self._machine.allows(ClientInput.PROBE):
            self._probe(places, ProbeOn.LOSS, now)
        elif self.state in _RACING:  # who has answered so far may be a relay
            for place in places:
                if self._seam.socket_form(place) not in self._prober.candidates:
                    self._add_candidate(place, now, named=True, downtime_s=0.0)
        doubled = self._doubled_from
        if doubled is not None and self.state in _RACING:
            if doubled not in self._prober.candidates:
                self._check, self._checked_at = os.urandom(8), now
                self._add_candidate(plain_address(doubled), now, named=False, downtime_s=0.0)
            self._prober.candidates[doubled].heard = True  # the last connection ID is for this one

    def admits(self, address: NetworkAddress) -> bool:
        """Whether a packet from there may be looked at. Nothing is believed before it decrypts."""
        #: RFC 9000 9: the client MUST discard these packets
        #: RFC 9000 9.6: the client SHOULD discard these packets
        if not self.negotiated or not self._seam.handshake_confirmed:
            return False
        if address in self._prober.candidates or address in self._former:
            return True
        if not self.extended and not self._is_standard(plain_address(address)):
            return False  # RFC 9000 §9: only the extension lets a server appear where it never said it would
        return self._policy.denies(plain_address(address), self._seam.address) is None
