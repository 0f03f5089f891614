"""The client: it is told, or notices, that the server moves, and finds it again.

What tells the strategies apart is ``quicferry.strategies``: whether there is notice, and what makes
the client probe. Everything after the first probe is the same for all of them.
"""

from __future__ import annotations

import os
import random
from collections import deque
from dataclasses import dataclass

from aioquic.quic.connection import NetworkAddress

from quicferry.quic import events
from quicferry.quic._aioquic.connection import Datagrams
from quicferry.quic._aioquic.seam import Seam, plain_address
from quicferry.quic.addresses import AddressBook
from quicferry.quic.asking import Asking
from quicferry.quic.config import ExtensionConfig
from quicferry.quic.errors import ErrorCode, PeerError
from quicferry.quic.probing import Allowance, Candidate, KeptIds, Prober
from quicferry.quic.request_wire import SmReply
from quicferry.quic.role import Role
from quicferry.quic.silence import Silence
from quicferry.quic.standard_wire import AlternativeAddress
from quicferry.quic.standards import FIRST_VALIDATION_PTOS, ClientAddresses
from quicferry.quic.tables import CLIENT, ClientInput, ClientState, Machine
from quicferry.quic.wire import (
    CIDS_BESIDE_A_RACE,
    REQUESTS,
    VERSION,
    Address,
    Frame,
    FrameType,
    Parameter,
    Result,
    SmAbort,
    SmAddress,
    SmMigrated,
    SmPrepare,
    SmReady,
)
from quicferry.strategies import ProbeOn, Strategy, rules_of

_FORMER_PATH_PTOS = 3  # how long stragglers of the old path are read after the switch
_KEPT_PTOS = 3  # how long a connection ID stays with its address after a race
_MISLED_PTOS = 2  # how long the path that SM_MIGRATED came on is waited for, when another answers
_REMEMBERED = 256
_VISITED = 16


@dataclass
class _Announcement:
    prepare: SmPrepare
    addresses: tuple[Address, ...]
    at: float

    @property
    def probe_on(self) -> ProbeOn:
        return rules_of(self.prepare.strategy).probe_on

    @property
    def extended(self) -> bool:
        return rules_of(self.prepare.strategy).extended

    @property
    def downtime_s(self) -> float:
        return self.prepare.downtime_ms / 1000


class ClientRole(Role):
    """The client's end of the extension."""

    def __init__(self, seam: Seam, config: ExtensionConfig) -> None:
        super().__init__(seam, config)
        self._machine: Machine[ClientState, ClientInput] = Machine(CLIENT, ClientState.IDLE)
        self._policy = config.policy
        self._prober = Prober(config.timings, config.max_probes)
        self._book = AddressBook(config.max_known_addresses)
        self._silence = Silence(seam)
        self._announcement: _Announcement | None = None
        self._waiting: SmPrepare | None = None  # names an address whose SM_ADDRESS is still on its way
        self._latest: SmPrepare | None = None
        self._latest_at: float | None = None
        self._latest_epoch = 0  # the highest epoch this client has heard of
        self._done_epoch = 0  # no frame of this epoch or an older one means anything
        self._aborted_epoch = 0  # SM_ABORT has the last word: the destination was gone when it was sent
        self._cause: ProbeOn | None = None  # why it probes
        self._here: NetworkAddress | None = None  # where the server says that it is, before SM_MIGRATED
        self._moved: NetworkAddress | None = None  # where SM_MIGRATED says that it is; not the active path
        self._moved_at = 0.0
        self._moved_epoch = 0
        self._visited: dict[Address, None] = {}  # where the server has been, the latest last
        self._validated: tuple[Candidate, float | None] | None = None  # and the RTT, where it is known
        self._checked_at: float | None = None  # when the old path was challenged because of a stranger
        self._check: bytes | None = None  # the challenge for it, until it leaves
        self._elsewhere: deque[int] = deque(maxlen=_REMEMBERED)  # numbers that came first from elsewhere
        self._owed: dict[NetworkAddress, list[bytes]] = {}  # answers to challenges of paths not yet probed
        self._kept = KeptIds(seam)
        self._allowance = Allowance(config.timings)
        self._responses: list[bytes] = []
        self._deadline: float | None = None
        self._next_stranger_at = 0.0
        self._answerable: dict[bytes, float] = {}  # challenges of the path that was switched to
        self._answer_interval_s = 0.0  # between them
        self._standard = ClientAddresses(config)
        self.asking = Asking()
        self._first_validation = False  # of a preferred address; the server need not be there yet
        self._former: dict[NetworkAddress, float] = {}  # address -> until when stragglers are read

    @property
    def state(self) -> ClientState:
        """Where it is in the server's move."""
        return self._machine.state

    # ------------------------------------------------------------------ negotiation

    def own_parameter(self) -> bytes:
        """The offer."""
        standard = self._standard.own_parameter()
        if not any(rules_of(name).extended for name in self._config.strategies):
            return standard
        offer = Parameter(
            strategies=self._config.strategies, max_addresses=self._config.max_addresses, flags=REQUESTS
        )
        return standard + offer.encode()

    def peer_parameter(self, value: bytes | None) -> bool:
        """The server's answer: a subset of the offer, or nothing."""
        if value is None:
            return False
        answer = Parameter.decode(value)
        if answer.version != VERSION:
            raise PeerError(ErrorCode.TRANSPORT_PARAMETER_ERROR, "server_migration: version not offered")
        if not answer.strategies <= self._config.strategies:
            raise PeerError(ErrorCode.TRANSPORT_PARAMETER_ERROR, "server_migration: strategy not offered")
        if answer.max_addresses > self._config.max_addresses:
            raise PeerError(ErrorCode.TRANSPORT_PARAMETER_ERROR, "server_migration: too many addresses")
        self.negotiated = answer.strategies
        self.asking.agreed = bool(answer.flags & REQUESTS and answer.strategies)
        self.max_addresses = answer.max_addresses
        return bool(self.negotiated)

    def standard_parameters(self, parameters: bytes) -> bool:
        """A server has no say in who reads ALTERNATIVE_ADDRESS. Raises ``PeerError``."""
        self._standard.peer_parameters(parameters)
        return self._standard.offers

    @property
    def frame_types(self) -> frozenset[FrameType]:
        """That of the draft may come to whoever has said that he reads it."""
        drafts = {FrameType.ALTERNATIVE_ADDRESS} if self._standard.offers else set()
        return super().frame_types | drafts

    def preferred_address(self, addresses: tuple[Address, ...]) -> bool:
        """Validated at once (RFC 9000 §9.6.1); where nobody answers, kept for when the server is silent."""
        if not self._config.accept_moves or not self._standard.prefer(addresses):
            return False
        self.negotiated |= {Strategy.PREFERRED_ADDRESS}
        self.passive = False
        now = self._seam.last_received_at
        places = self._standard.places(self._seam.address)
        if places and self._machine.allows(ClientInput.PROBE):
            self._first_validation = True
            self._deadline = now + FIRST_VALIDATION_PTOS * self._seam.pto_s
            self._probe(places, ProbeOn.NOTICE, now)
        return True

    @property
    def connection_ids(self) -> int:
        """The active_connection_id_limit of an offer (RFC 9000 §5.1.1)."""
        return self._config.max_addresses + CIDS_BESIDE_A_RACE

    def ask_for_move(self) -> int:
        """Asks the server to move; ``MoveAnswered`` follows. Returns the request's number."""
        frame = self.asking.ask()
        self.send_control(frame)
        return frame.request

    # ------------------------------------------------------------------ frames

    def frame(self, frame: Frame, address: NetworkAddress, now: float) -> None:
        """A frame of the server."""
        self.passive = False
        if isinstance(frame, SmAddress):
            self._on_address(frame, now)
        elif isinstance(frame, SmPrepare):
            self._on_prepare(frame, now)
        elif isinstance(frame, SmMigrated):
            self._on_migrated(frame, address, now)
        elif isinstance(frame, SmAbort):
            self._on_abort(frame, address, now)
        elif isinstance(frame, AlternativeAddress):
            self._on_alternative(frame, now)
        elif isinstance(frame, SmReply):
            if self.asking.take(frame):
                self._seam.emit(events.MoveAnswered(frame.request, frame.reply))
        else:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, f"{frame.frame_type.name} from a server")

    def _on_address(self, frame: SmAddress, now: float) -> None:
        if frame.here:
            here = self._book.of_family(frame, self._seam.address)
            if here is not None and self._policy.denies(here, self._seam.address) is None:
                self._here = self._seam.socket_form(here)
        if self._book.enter(frame) and self._waiting is not None and self._resolve(self._waiting) is not None:
            prepare, self._waiting = self._waiting, None
            self._consider(prepare, now)

    def _on_prepare(self, frame: SmPrepare, now: float) -> None:
        if frame.strategy not in self.negotiated or not rules_of(frame.strategy).notice:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, f"SM_PREPARE for {frame.strategy}")
        if bool(frame.sequences) is not rules_of(frame.strategy).carries_address:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, "SM_PREPARE: addresses do not fit the strategy")
        if self._latest is not None and frame.epoch == self._latest.epoch and frame != self._latest:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, "SM_PREPARE: one epoch, two announcements")
        if frame.epoch <= max(self._latest_epoch, self._done_epoch):
            return  # a repetition, or overtaken by what came after it
        self._latest, self._latest_epoch = frame, frame.epoch
        if self._resolve(frame) is None:
            self._waiting = frame
        else:
            self._consider(frame, now)

    def _resolve(self, prepare: SmPrepare) -> tuple[Address, ...] | None:
        """The addresses an announcement names; None if one is unknown yet."""
        return self._book.resolve(prepare.sequences, self._seam.address)

    def _consider(self, prepare: SmPrepare, now: float) -> None:
        """Answers an announcement, and acts on it when the answer is yes."""
        named = self._resolve(prepare) or ()
        here = self._seam.address
        addresses = tuple(a for a in named if self._policy.denies(a, here) is None)[: self.max_addresses]
        too_soon = (
            self._latest_at is not None and now - self._latest_at < self._config.timings.epoch_interval_s
        )
        needs_address = rules_of(prepare.strategy).carries_address
        result = Result.OK
        if not self._config.accept_moves:
            result = Result.REFUSED
        elif too_soon:
            result = Result.BUSY
        elif needs_address and not addresses:
            result = Result.ADDRESS_FILTERED
        else:
            self._forget_race(now)
            if needs_address and not any(map(self._has_cid, addresses)):
                result = Result.NO_CID
        self._latest_at = now
        self.send_control(SmReady(epoch=prepare.epoch, result=result))
        if result is not Result.OK:
            return
        self._machine.feed(ClientInput.NOTICE)
        self._announcement = _Announcement(prepare, addresses, now)
        self._seam.emit(events.MigrationAnnounced(prepare.epoch, prepare.strategy, addresses))
        if self._announcement.probe_on is ProbeOn.NOTICE:
            self._probe(addresses, ProbeOn.NOTICE, now)

    def _on_alternative(self, frame: AlternativeAddress, now: float) -> None:
        """The draft's set of addresses. It has no answer: who will not go, does not."""
        self.negotiated |= {Strategy.ALTERNATIVE_ADDRESS}
        if not self._standard.replace(frame) or not self._config.accept_moves:
            return
        announced = self._announcement is not None and not self._announcement.extended
        if announced and self._machine.allows(ClientInput.ABORT):
            self._machine.feed(ClientInput.ABORT)
            self._forget_race(now)
            self._announcement = None
        addresses = self._standard.better(self._seam.address)[: self._config.max_addresses]
        if addresses:
            self._forget_race(now)
            self._machine.feed(ClientInput.NOTICE)
            downtime_ms = round(1000 * self._config.timings.unannounced_downtime_s)
            prepare = SmPrepare(
                epoch=0, strategy=Strategy.ALTERNATIVE_ADDRESS, downtime_ms=downtime_ms, probe_interval_ms=0
            )
            self._announcement = _Announcement(prepare, addresses, now)
            self._seam.emit(events.MigrationAnnounced(0, prepare.strategy, addresses))
            self._probe(addresses, ProbeOn.NOTICE, now)
        elif announced:
            self._seam.emit(events.MigrationAborted(0, 0))

    def _on_migrated(self, frame: SmMigrated, address: NetworkAddress, now: float) -> None:
        """It counts for one path: that to where the server says it is, else the one that it came on."""
        here, self._here = self._here, None
        origin = address if here is None else here
        if frame.epoch < self._latest_epoch or frame.epoch == self._aborted_epoch:
            return
        if origin == self._seam.network_address:  # it is where we think it is
            if self.state is ClientState.SWITCHED or frame.epoch > self._done_epoch:
                self._settle(frame.epoch, now)
        elif frame.epoch > self._done_epoch:
            self._latest_epoch = frame.epoch
            self._lead_to(origin, frame.epoch, now)

    def _lead_to(self, address: NetworkAddress, epoch: int, now: float) -> None:
        """The server is there: no other path is right any more, whichever has answered."""
        self._moved_epoch = epoch
        if self._moved != address:
            self._moved, self._moved_at = address, now
        if self._validated is not None and self._validated[0].network_address != address:
            self._validated = None
            self._machine.feed(ClientInput.ELSEWHERE)
            self._prober.running = True

    def _settle(self, epoch: int, now: float) -> None:
        self._done_epoch = max(epoch, self._done_epoch)
        self._latest_epoch = max(epoch, self._latest_epoch)  # of a later move there may have been notice
        for sent in (ClientInput.SETTLED, ClientInput.FALSE_ALARM):
            if self._machine.allows(sent):
                self._machine.feed(sent)
                break
        self._forget_race(now)
        self._announcement = None

    def _on_abort(self, frame: SmAbort, address: NetworkAddress, now: float) -> None:
        elsewhere = address != self._seam.network_address
        if elsewhere and frame.epoch == self._latest_epoch and plain_address(address) in self._visited:
            # The destination has served, was taken down before the commit, and the source goes on.
            self._aborted_epoch = frame.epoch
            self._lead_to(address, frame.epoch, now)
            return
        if frame.epoch <= self._done_epoch or frame.epoch < self._latest_epoch:
            return
        self._done_epoch = self._latest_epoch = self._aborted_epoch = frame.epoch
        self._latest_at = None  # a second attempt may follow at once
        self._waiting = None
        if self._machine.allows(ClientInput.ABORT):
            self._machine.feed(ClientInput.ABORT)
            self._forget_race(now)
            self._announcement = None
        self._seam.emit(events.MigrationAborted(frame.epoch, frame.reason))

    # ------------------------------------------------------------------ packets

    def admits(self, address: NetworkAddress) -> bool:
        """Whether a packet from there may be looked at. Nothing is believed before it decrypts."""
        if not self.negotiated or not self._seam.handshake_confirmed:
            return False
        if address in self._prober.candidates or address in self._former:
            return True
        if not self.extended and not self._is_standard(plain_address(address)):
            return False  # RFC 9000 §9: only the extension lets a server appear where it never said it would
        return self._policy.denies(plain_address(address), self._seam.address) is None

    def _is_standard(self, address: Address) -> bool:
        """Whether the server has named it by a standard, or has been there and goes by one."""
        if address in self._standard.places(self._seam.address):
            return True
        return self._standard.has_named and address in self._visited

    def challenge(self, address: NetworkAddress, data: bytes, *, on_active_path: bool) -> bool:
        """The server validates our address from a new one of its own: answered on the path it came on."""
        if address == self._seam.network_address:
            return False
        candidate = self._prober.candidates.get(address)
        owed = self._owed.setdefault(address, []) if candidate is None else candidate.responses
        owed.append(data)
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

    def retire_prior_to(self, sequence_number: int) -> None:
        """Connection IDs of candidates are retired like all others (RFC 9000 §5.1.2)."""
        for candidate in self._prober.candidates.values():
            if candidate.cid is not None and (candidate.cid.sequence_number or 0) < sequence_number:
                self._seam.retire_cid(candidate.cid)
                candidate.cid = None
                candidate.challenges.clear()
        self._kept.retire_prior_to(sequence_number)

    def received(self, address: NetworkAddress, *, newest: bool, now: float) -> None:
        """News from the server."""
        if address == self._seam.network_address:
            self._silence.broken(now)
            if self._machine.state is not ClientState.IDLE:
                if self._machine.state is ClientState.ANNOUNCED:
                    self._deadline = None
                if newest:
                    self._on_old_path_alive(now)
        else:
            self._silence.elsewhere(now)
            if newest:
                self._elsewhere.append(self._seam.largest_received)
            if newest or address in self._prober.candidates or address in self._owed:
                self._on_packet_from_elsewhere(address, now)
        if self._moved is not None and self._moved != address:
            self._on_packet_from_elsewhere(self._moved, now)
        self._owed.clear()
        self._here = None  # it is said in the same packet as SM_MIGRATED, or not at all
        self._take_responses(now)
        self._settle_down(now)

    def _take_responses(self, now: float) -> None:
        if self._responses:
            responses, self._responses = self._responses, []
            for data in responses:
                self._on_response(data, now)
        if self._validated is not None:
            self._switch_if_allowed(now)

    def repeated(self, address: NetworkAddress, number: int, responses: list[bytes], now: float) -> None:
        """A packet came that had come from elsewhere before: somebody relays, and is faster.

        On the active path, the server is where it was. A response counts on its own path only, so the
        relay's copy of it did not.
        """
        if address == self._seam.network_address:
            if number in self._elsewhere:
                self._silence.broken(now)
                self._on_old_path_alive(now)
        elif address in self._prober.candidates:
            for data in responses:
                self.response(data, address)
        self._take_responses(now)
        self._settle_down(now)

    def _settle_down(self, now: float) -> None:
        """While nothing goes on, datagrams of the active path need not be shown to us."""
        self.passive = (
            self._machine.state is ClientState.IDLE
            and not self._responses
            and not self._answerable
            and now >= self._next_stranger_at
        )

    def _on_old_path_alive(self, now: float) -> None:
        if self._moved is not None or self._cause is ProbeOn.NOTICE:
            return
        if self._announcement is not None and self._machine.allows(ClientInput.STAND_BY):
            self._machine.feed(ClientInput.STAND_BY)
            self._prober.running = False
            self._validated = None
            self._deadline = None
        elif self._machine.allows(ClientInput.FALSE_ALARM):
            self._machine.feed(ClientInput.FALSE_ALARM)
            self._forget_race(now)

    def _on_packet_from_elsewhere(self, address: NetworkAddress, now: float) -> None:
        if not self.admits(address):
            return
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
        if self.state not in (ClientState.PROBING, ClientState.VALIDATED):
            self._probe((plain,), ProbeOn.SERVER_PACKET, now, named=named)
        elif candidate is None:
            self._add_candidate(plain, now, named=named, downtime_s=0.0)
        else:
            candidate.next_at = now
        self._prober.candidates[address].heard = True
        self._prober.candidates[address].tight_until = now + self._expected_downtime_s()
        self._seam.emit(events.PeerMigrated(self._latest_epoch, plain))

    # ------------------------------------------------------------------ probing

    def _probe(
        self, addresses: tuple[Address, ...], cause: ProbeOn, now: float, *, named: bool = True
    ) -> None:
        """Races ``addresses``. All of them get their first probe in the same flight."""
        self._machine.feed(ClientInput.PROBE)
        self._cause = cause
        self._prober.running = True
        downtime_s = self._expected_downtime_s()
        delay_s = 0.0
        if cause is not ProbeOn.SERVER_PACKET:
            delay_s = random.uniform(0.0, self._config.timings.start_delay_max_s)
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
        if candidate.cid is None:
            candidate.cid = self._kept.take(network_address)

    def _has_cid(self, address: Address) -> bool:
        """Whether an address that nothing has come from could be probed: one ID is always held back."""
        return self._seam.free_cids > 1 or self._kept.has(self._seam.socket_form(address))

    def _expected_downtime_s(self) -> float:
        if self._announcement is not None:
            return self._announcement.downtime_s
        return self._config.timings.unannounced_downtime_s

    def _patience_s(self, downtime_s: float) -> float:
        return min(downtime_s + self._config.timings.give_up_s, self._seam.idle_timeout_s / 2)

    def _on_response(self, data: bytes, now: float) -> None:
        if data in self._answerable:
            # A waiting room gives the server our early challenges first; later ones tell the RTT better.
            age_s = now - self._answerable.pop(data)
            if self._tells_rtt(age_s, self._answer_interval_s):
                self._seam.lower_rtt(age_s, now)
            return
        found = self._prober.answered(data)
        if found is None or self._validated is not None:
            return
        candidate, sent_at = found
        age_s = now - sent_at
        if self._machine.allows(ClientInput.PROBE):
            self._machine.feed(ClientInput.PROBE)
        if not self._machine.allows(ClientInput.RESPONSE):
            return
        self._machine.feed(ClientInput.RESPONSE)
        self._validated = (candidate, age_s if self._tells_rtt(age_s, candidate.interval_s) else None)
        self._prober.running = False
        self._seam.emit(events.PathValidated(candidate.address, age_s))

    def _tells_rtt(self, age_s: float, interval_s: float) -> bool:
        """Whether the age of an answered challenge is a sample of the RTT.

        The challenge may have waited for the server to run, for as long as a probe interval. Where that
        could be most of the age, it is only believed when it is less than what is taken without a sample.
        """
        return age_s >= 2 * interval_s or age_s <= self._seam.rtt_without_sample_s

    def _may_switch_to(self, candidate: Candidate, now: float) -> bool:
        """Whether the server is known to be there, or not to be where it was."""
        if candidate.network_address == self._moved:
            return True
        if self._moved is not None:  # who said so may have been a relay, and have gone
            return self._silence.noticed and now - self._moved_at >= _MISLED_PTOS * self._seam.pto_s
        if candidate.named:
            return True
        if not self._silence.noticed:
            return False
        return self._checked_at is None or now - self._checked_at >= self._seam.pto_s

    def _switch_if_allowed(self, now: float) -> None:
        if self._validated is None:
            return
        candidate, rtt_s = self._validated
        if not self._may_switch_to(candidate, now):
            return
        if candidate.cid is None:  # the peer has retired the one it was challenged on
            candidate.cid = self._seam.take_cid()
        if candidate.cid is None:
            return
        old, old_network_address = self._seam.address, self._seam.network_address
        drain_until = now + _FORMER_PATH_PTOS * self._seam.pto_s
        self._machine.feed(ClientInput.SWITCH)
        self._seam.adopt(candidate.network_address, candidate.cid, candidate.responses, rtt_s, now)
        candidate.cid = None  # it is the connection's now
        self._answerable = dict(candidate.challenges)
        self._answer_interval_s = candidate.interval_s
        self._visited.pop(old, None)
        self._visited[old] = None
        while len(self._visited) > _VISITED:
            del self._visited[next(iter(self._visited))]
        was_told = self._moved is not None
        if self._announcement is not None and not was_told:
            self._done_epoch = max(self._done_epoch, self._announcement.prepare.epoch)
        self._forget_race(now)
        self._kept.retire_all()  # the way is open; the server gives others
        self._announcement = None
        self._former = {old_network_address: drain_until}
        self._silence.broken(now)
        self._seam.emit(events.PathSwitched(old, candidate.address))
        if was_told:
            self._settle(self._moved_epoch, now)

    def _forget_race(self, now: float) -> None:
        """Ends probing. A connection ID stays with its address for a while, and with no other."""
        for candidate in self._prober.candidates.values():
            if candidate.cid is not None:
                # by a standard the same few addresses are asked at each loss, of a server that may go back
                kept_s = _KEPT_PTOS * self._seam.pto_s
                until = now + (self._config.timings.give_up_s if self._standard.has_named else kept_s)
                self._kept.put(candidate.network_address, candidate.cid, until)
        self._prober.candidates.clear()
        self._prober.running = False
        self._responses.clear()
        self._validated = None
        self._cause = None
        self._deadline = None
        self._moved = None
        self._first_validation = False
        self._check = self._checked_at = None

    # ------------------------------------------------------------------ sending and time

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
                continue
            if candidate.tries == 0:
                self._seam.emit(events.ProbeStarted(candidate.address))
            challenge = self._prober.challenge(candidate, now)
            datagrams.append(
                self._seam.probe(candidate.network_address, candidate.cid, challenge, candidate.responses)
            )
            candidate.responses.clear()
        return datagrams

    @property
    def recovery_suspended(self) -> bool:
        """The server said that it will be silent until it speaks first: its silence is no loss.

        The first PTO still counts; it repeats what was lost before the move began.
        """
        return (
            self._silence.noticed
            and self._announcement is not None
            and self._announcement.probe_on is ProbeOn.SERVER_PACKET
        )

    def _loss_at(self) -> float | None:
        """When the old address counts as silent, or when that is to be looked at."""
        return self._silence.due_at() if self.negotiated else None

    def timer(self) -> float | None:
        """The earliest of: silence, the next probe, the end of patience, the end of the former path."""
        if (
            self._deadline is None
            and not self._former
            and not self._prober.running
            and self._kept.due_at is None
        ):
            return self._loss_at()
        times = [
            self._loss_at(),
            self._prober.next_at(),
            self._deadline,
            self._kept.due_at,
            self._switch_at(),
            *self._former.values(),
        ]
        known = [time for time in times if time is not None]
        return min(known) if known else None

    def _switch_at(self) -> float | None:
        """When a path that has answered is believed without a word of the server."""
        if self._validated is None or not self._silence.noticed:
            return None
        if self._moved is not None:
            return self._moved_at + _MISLED_PTOS * self._seam.pto_s
        return None if self._checked_at is None else self._checked_at + self._seam.pto_s

    def on_timer(self, now: float) -> None:
        """Whatever of these is due; the probes themselves leave with ``before_send``."""
        due_at = self.timer()
        if due_at is None or now < due_at:  # another's timer: acknowledgements and pacing have one, too
            return
        self.passive = False
        silent_s = self._silence.look(now) if self.negotiated else None
        if silent_s is not None:
            self._on_silence(silent_s, now)
        elif self._validated is not None:
            self._switch_if_allowed(now)
        self._kept.retire_old(now)
        if self._deadline is not None and now >= self._deadline:
            self._fall_back(now)
        for address, until in list(self._former.items()):
            if now >= until:
                del self._former[address]
                self._answerable.clear()
                if self.state is ClientState.SWITCHED:
                    self._machine.feed(ClientInput.SETTLED)

    def _on_silence(self, silent_s: float, now: float) -> None:
        self._seam.emit(events.LossNoticed(self._seam.pto_s, silent_s))
        if self._first_validation:  # nobody has answered yet, and now somebody must be there
            self._first_validation, self._cause = False, ProbeOn.LOSS
            self._deadline = now + self._patience_s(self._expected_downtime_s())
        if self.state is ClientState.ANNOUNCED:
            assert self._announcement is not None
            if self._announcement.probe_on is ProbeOn.LOSS:
                self._probe(self._announcement.addresses, ProbeOn.LOSS, now)
            else:
                self._deadline = now + self._patience_s(self._announcement.downtime_s)
        elif self._machine.allows(ClientInput.PROBE):
            places = self._places()
            if places:
                self._probe(places, ProbeOn.LOSS, now)
        self._switch_if_allowed(now)

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

    def _fall_back(self, now: float) -> None:
        reason = (
            "no answer from the new address" if self._prober.candidates else "the server has not come back"
        )
        self._deadline = None
        if self._first_validation and self._machine.allows(ClientInput.FALSE_ALARM):
            self._machine.feed(ClientInput.FALSE_ALARM)  # RFC 9000 §9.6.1: the original address stays
            self._forget_race(now)
            return
        if not self._machine.allows(ClientInput.DEADLINE):
            return
        self._machine.feed(ClientInput.DEADLINE)
        self._forget_race(now)
        self._announcement = None
        self._seam.emit(events.MigrationFellBack(reason))
