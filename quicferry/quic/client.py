"""The client: it is told, or notices, that the server moves, and finds it again.

What tells the strategies apart is ``quicferry.strategies.RULES``: whether there is notice, and what makes
the client probe. Everything after the first probe is the same for all of them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from aioquic.quic.connection import NetworkAddress

from quicferry.quic import events
from quicferry.quic._aioquic.connection import Datagrams
from quicferry.quic._aioquic.seam import Seam, plain_address
from quicferry.quic.addresses import AddressBook
from quicferry.quic.config import ExtensionConfig
from quicferry.quic.errors import ErrorCode, PeerError
from quicferry.quic.probing import Candidate, Prober
from quicferry.quic.role import Role
from quicferry.quic.silence import Silence
from quicferry.quic.tables import CLIENT, ClientInput, ClientState, Machine
from quicferry.quic.wire import (
    VERSION,
    Address,
    Frame,
    Parameter,
    Result,
    SmAbort,
    SmAddress,
    SmMigrated,
    SmPrepare,
    SmReady,
)
from quicferry.strategies import RULES, ProbeOn, Strategy

_FORMER_PATH_PTOS = 3  # how long stragglers of the old path are read after the switch
_SYMMETRIC = frozenset({Strategy.SYMMETRIC, Strategy.SYNCHRONIZED_SYMMETRIC})


@dataclass
class _Announcement:
    prepare: SmPrepare
    addresses: tuple[Address, ...]
    at: float

    @property
    def probe_on(self) -> ProbeOn:
        return RULES[self.prepare.strategy].probe_on

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
        self._cause: ProbeOn | None = None  # why it probes
        self._moved = False  # SM_MIGRATED came from an address that is not the active path's
        self._validated: tuple[Candidate, float] | None = None
        self._responses: list[bytes] = []
        self._deadline: float | None = None
        self._next_stranger_at = 0.0
        self._answerable: dict[bytes, float] = {}  # challenges of the path that was switched to
        self._former: dict[NetworkAddress, float] = {}  # address -> until when stragglers are read

    @property
    def state(self) -> ClientState:
        """Where it is in the server's move."""
        return self._machine.state

    # ------------------------------------------------------------------ negotiation

    def own_parameter(self) -> bytes:
        """The offer."""
        return Parameter(
            strategies=self._config.strategies, max_addresses=self._config.max_addresses
        ).encode()

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
        self.max_addresses = answer.max_addresses
        return bool(self.negotiated)

    # ------------------------------------------------------------------ frames

    def frame(self, frame: Frame, address: NetworkAddress, now: float) -> None:
        """A frame of the server."""
        self.passive = False
        if isinstance(frame, SmAddress):
            self._on_address(frame, now)
        elif isinstance(frame, SmPrepare):
            self._on_prepare(frame, now)
        elif isinstance(frame, SmMigrated):
            self._on_migrated(frame, address)
        elif isinstance(frame, SmAbort):
            self._on_abort(frame)
        else:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, "SM_READY from a server")

    def _on_address(self, frame: SmAddress, now: float) -> None:
        if self._book.enter(frame) and self._waiting is not None and self._resolve(self._waiting) is not None:
            prepare, self._waiting = self._waiting, None
            self._consider(prepare, now)

    def _on_prepare(self, frame: SmPrepare, now: float) -> None:
        if frame.strategy not in self.negotiated or not RULES[frame.strategy].notice:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, f"SM_PREPARE for {frame.strategy}")
        if bool(frame.sequences) is not RULES[frame.strategy].carries_address:
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
        needs_address = RULES[prepare.strategy].carries_address
        result = Result.OK
        if not self._config.accept_moves:
            result = Result.REFUSED
        elif too_soon:
            result = Result.BUSY
        elif needs_address and not addresses:
            result = Result.ADDRESS_FILTERED
        else:
            self._forget_race()
            if needs_address and not self._seam.free_cids:
                result = Result.NO_CID
        self._latest_at = now
        self.send_control(SmReady(epoch=prepare.epoch, result=result))
        if result is not Result.OK:
            return
        self._machine.feed(ClientInput.NOTICE)
        self._announcement = _Announcement(prepare, addresses, now)
        self._moved = False
        self._seam.emit(events.MigrationAnnounced(prepare.epoch, prepare.strategy, addresses))
        if self._announcement.probe_on is ProbeOn.NOTICE:
            self._probe(addresses, ProbeOn.NOTICE, now)

    def _on_migrated(self, frame: SmMigrated, address: NetworkAddress) -> None:
        if self.state is ClientState.SWITCHED and frame.epoch >= self._latest_epoch:
            self._settle(frame.epoch)
            return
        if frame.epoch <= self._done_epoch or frame.epoch < self._latest_epoch:
            return
        self._latest_epoch = frame.epoch
        if address != self._seam.network_address:
            self._moved = True
        else:  # it is where we think it is
            self._settle(frame.epoch)

    def _settle(self, epoch: int) -> None:
        self._done_epoch = self._latest_epoch = max(epoch, self._latest_epoch)
        for sent in (ClientInput.SETTLED, ClientInput.FALSE_ALARM):
            if self._machine.allows(sent):
                self._machine.feed(sent)
                break
        self._forget_race()
        self._announcement = None

    def _on_abort(self, frame: SmAbort) -> None:
        if frame.epoch <= self._done_epoch or frame.epoch < self._latest_epoch:
            return
        self._done_epoch = self._latest_epoch = frame.epoch
        self._latest_at = None  # a second attempt may follow at once
        self._waiting = None
        if self._machine.allows(ClientInput.ABORT):
            self._machine.feed(ClientInput.ABORT)
            self._forget_race()
            self._announcement = None
        self._seam.emit(events.MigrationAborted(frame.epoch, frame.reason))

    # ------------------------------------------------------------------ packets

    def admits(self, address: NetworkAddress) -> bool:
        """Whether a packet from there may be looked at. Nothing is believed before it decrypts."""
        if not self.negotiated or not self._seam.handshake_confirmed:
            return False
        if address in self._prober.candidates or address in self._former:
            return True
        plain = plain_address(address)
        if self._book.names(plain, self._seam.address):
            return self._policy.denies(plain, self._seam.address) is None
        return bool(self.negotiated & _SYMMETRIC) and (self._policy.denies(plain, self._seam.address) is None)

    def challenge(self, address: NetworkAddress, data: bytes, *, on_active_path: bool) -> bool:
        """The server validates our address from a new one of its own: answered from that candidate."""
        if address == self._seam.network_address:
            return False
        candidate = self._prober.candidates.get(address)
        if candidate is not None:
            candidate.responses.append(data)
        return True

    def response(self, data: bytes) -> bool:
        """Kept until the packet it came in is done with: the switch changes what upstream is looking at."""
        if self._prober.answered(data) is None and data not in self._answerable:
            return False
        self._responses.append(data)
        return True

    def retire_prior_to(self, sequence_number: int) -> None:
        """Connection IDs of candidates are retired like all others (RFC 9000 §5.1.2)."""
        for candidate in self._prober.candidates.values():
            if candidate.cid is not None and (candidate.cid.sequence_number or 0) < sequence_number:
                self._seam.retire_cid(candidate.cid)
                candidate.cid = None
                candidate.challenges.clear()

    def received(self, address: NetworkAddress, *, newest: bool, now: float) -> None:
        """News from the server."""
        if address == self._seam.network_address:
            self._silence.broken(now)
            if self._machine.state is not ClientState.IDLE:
                if self._machine.state is ClientState.ANNOUNCED:
                    self._deadline = None
                if newest:
                    self._on_old_path_alive()
        else:
            self._silence.elsewhere(now)
            if newest or address in self._prober.candidates:
                self._on_packet_from_elsewhere(address, now)
        if self._responses:
            responses, self._responses = self._responses, []
            for data in responses:
                self._on_response(data, now)
        if self._validated is not None:
            self._switch_if_allowed(now)
        self._settle_down()

    def _settle_down(self) -> None:
        """While nothing goes on, datagrams of the active path need not be shown to us."""
        self.passive = (
            self._machine.state is ClientState.IDLE and not self._responses and not self._answerable
        )

    def _on_old_path_alive(self) -> None:
        if self._moved or self._cause is ProbeOn.NOTICE:
            return
        if self._announcement is not None and self._machine.allows(ClientInput.STAND_BY):
            self._machine.feed(ClientInput.STAND_BY)
            self._prober.running = False
            self._validated = None
            self._deadline = None
        elif self._machine.allows(ClientInput.FALSE_ALARM):
            self._machine.feed(ClientInput.FALSE_ALARM)
            self._forget_race()

    def _on_packet_from_elsewhere(self, address: NetworkAddress, now: float) -> None:
        if not self.admits(address):
            return
        candidate = self._prober.candidates.get(address)
        if candidate is not None and candidate.heard:
            return
        plain = plain_address(address)
        named = self._book.names(plain, self._seam.address)
        if not named and not self._moved:
            # Anyone can relay a packet to us; that must not cost a probe and a connection ID each time.
            if now < self._next_stranger_at:
                return
            self._next_stranger_at = now + self._config.timings.epoch_interval_s
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
        self._prober.add(
            address,
            self._seam.socket_form(address),
            named=named,
            start_at=start_at,
            downtime_s=downtime_s,
            slack_s=self._seam.pto_s,  # the server freezes when our answer has reached it
            wanted_s=wanted_s,
        )

    def _expected_downtime_s(self) -> float:
        if self._announcement is not None:
            return self._announcement.downtime_s
        return self._config.timings.unannounced_downtime_s

    def _patience_s(self, downtime_s: float) -> float:
        return min(downtime_s + self._config.timings.give_up_s, self._seam.idle_timeout_s / 2)

    def _on_response(self, data: bytes, now: float) -> None:
        if data in self._answerable:
            # A waiting room gives the server our early challenges first; later ones tell the RTT better.
            self._seam.lower_rtt(now - self._answerable.pop(data), now)
            return
        found = self._prober.answered(data)
        if found is None or self._validated is not None:
            return
        candidate, sent_at = found
        if self._machine.allows(ClientInput.PROBE):
            self._machine.feed(ClientInput.PROBE)
        if not self._machine.allows(ClientInput.RESPONSE):
            return
        self._machine.feed(ClientInput.RESPONSE)
        self._validated = (candidate, now - sent_at)
        self._prober.running = False
        self._seam.emit(events.PathValidated(candidate.address, now - sent_at))

    def _switch_if_allowed(self, now: float) -> None:
        if self._validated is None:
            return
        candidate, rtt_s = self._validated
        if not (candidate.named or self._moved or self._silence.noticed):
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
        if self._announcement is not None:
            self._done_epoch = max(self._done_epoch, self._announcement.prepare.epoch)
        was_told = self._moved
        self._forget_race()
        self._announcement = None
        self._former = {old_network_address: drain_until}
        self._silence.broken(now)
        self._seam.emit(events.PathSwitched(old, candidate.address))
        if was_told:
            self._settle(self._latest_epoch)

    def _forget_race(self) -> None:
        """Ends probing; connection IDs of candidates are not used again (RFC 9000 §9.5)."""
        for candidate in self._prober.candidates.values():
            if candidate.cid is not None:
                self._seam.retire_cid(candidate.cid)
        self._prober.candidates.clear()
        self._prober.running = False
        self._responses.clear()
        self._validated = None
        self._cause = None
        self._deadline = None
        self._moved = False

    # ------------------------------------------------------------------ sending and time

    @property
    def has_datagrams(self) -> bool:
        """Frames or candidates."""
        return bool(self._control or self._prober.candidates)

    def before_send(self, now: float) -> Datagrams:
        """The answer to the announcement first, then the probes."""
        datagrams = self._control_datagrams(now)
        for candidate in self._prober.candidates.values():
            if candidate.responses and candidate.cid is not None:
                datagrams.append(
                    self._seam.probe(candidate.network_address, candidate.cid, None, candidate.responses)
                )
                candidate.responses.clear()
        for candidate in self._prober.due(now):
            if candidate.cid is None:
                candidate.cid = self._seam.take_cid()
                if candidate.cid is None:
                    self._prober.postpone(candidate, now)  # the server may send more
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
        """Synchronized Symmetric: the server said that it will be silent, so its silence is no loss.

        The first PTO still counts; it repeats what was lost before the move began.
        """
        return (
            self._silence.noticed
            and self._announcement is not None
            and self._announcement.prepare.strategy is Strategy.SYNCHRONIZED_SYMMETRIC
        )

    def _loss_at(self) -> float | None:
        """When the old address counts as silent, or when that is to be looked at."""
        return self._silence.due_at() if self.negotiated else None

    def timer(self) -> float | None:
        """The earliest of: silence, the next probe, the end of patience, the end of the former path."""
        if self._deadline is None and not self._former and not self._prober.running:
            return self._loss_at()
        times = [self._loss_at(), self._prober.next_at(), self._deadline, *self._former.values()]
        known = [time for time in times if time is not None]
        return min(known) if known else None

    def on_timer(self, now: float) -> None:
        """Whatever of these is due; the probes themselves leave with ``before_send``."""
        due_at = self.timer()
        if due_at is None or now < due_at:  # another's timer: acknowledgements and pacing have one, too
            return
        self.passive = False
        silent_s = self._silence.look(now) if self.negotiated else None
        if silent_s is not None:
            self._on_silence(silent_s, now)
        if self._deadline is not None and now >= self._deadline:
            self._fall_back()
        for address, until in list(self._former.items()):
            if now >= until:
                del self._former[address]
                self._answerable.clear()
                if self.state is ClientState.SWITCHED:
                    self._machine.feed(ClientInput.SETTLED)

    def _on_silence(self, silent_s: float, now: float) -> None:
        self._seam.emit(events.LossNoticed(self._seam.pto_s, silent_s))
        if self.state is ClientState.ANNOUNCED:
            assert self._announcement is not None
            if self._announcement.probe_on is ProbeOn.LOSS:
                self._probe(self._announcement.addresses, ProbeOn.LOSS, now)
            else:
                self._deadline = now + self._patience_s(self._announcement.downtime_s)
        elif self._machine.allows(ClientInput.PROBE) and Strategy.POOL in self.negotiated:
            pool = self._pool()
            if pool:
                self._probe(pool, ProbeOn.LOSS, now)
        self._switch_if_allowed(now)

    def _pool(self) -> tuple[Address, ...]:
        here = self._seam.address
        usable = [a for a in self._book.pool(here) if a != here and self._policy.denies(a, here) is None]
        return tuple(usable[: self.max_addresses])

    def _fall_back(self) -> None:
        reason = (
            "no answer from the new address" if self._prober.candidates else "the server has not come back"
        )
        self._deadline = None
        if not self._machine.allows(ClientInput.DEADLINE):
            return
        self._machine.feed(ClientInput.DEADLINE)
        self._forget_race()
        self._announcement = None
        self._seam.emit(events.MigrationFellBack(reason))
