"""What the server says of its moves: where it may go, that it goes, where it is, that it stays.

What tells the strategies apart is ``quicferry.strategies``: whether there is notice, and what makes the
client probe.
"""

from __future__ import annotations

from aioquic.quic.connection import NetworkAddress

from quicferry.quic import events
from quicferry.quic._aioquic.seam import plain_address
from quicferry.quic.client_race import ClientRace
from quicferry.quic.client_state import Announcement
from quicferry.quic.errors import ErrorCode, PeerError
from quicferry.quic.probing import Candidate
from quicferry.quic.request_wire import SmReply
from quicferry.quic.standard_wire import AlternativeAddress
from quicferry.quic.tables import ClientInput, ClientState
from quicferry.quic.wire import (
    HERE_ONLY,
    Address,
    Frame,
    Result,
    SmAbort,
    SmAddress,
    SmMigrated,
    SmPrepare,
    SmReady,
    decode_frame,
)
from quicferry.strategies import ProbeOn, Strategy, rules_of

_OVER_PTOS = 2  # how long after its downtime a server that was to speak first is waited for in silence


class ClientMoves(ClientRace):
    """The frames of the extension, at the client."""

    def frame(self, frame: Frame, address: NetworkAddress, now: float) -> None:
        """A frame of the server."""
        self.passive = False
        self._forget_expired(now)
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

    def is_current(self, encoded: bytes) -> bool:
        """Whether a control frame still means something to the server."""
        frame = decode_frame(encoded)
        return not isinstance(frame, SmReady) or frame.epoch >= self._latest_epoch

    def _on_address(self, frame: SmAddress, now: float) -> None:
        if frame.here:
            here = self._book.of_family(frame, self._seam.address)
            if here is not None and self._policy.denies(here, self._seam.address) is None:
                self._here = self._seam.socket_form(here)
                if self._here == self._seam.network_address:
                    self._on_word_alone = False
        if frame.sequence == HERE_ONLY:
            return
        if (
            self._book.enter(frame, now)
            and self._waiting is not None
            and self._resolve(self._waiting) is not None
        ):
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
        result, followed = Result.OK, None
        if not self._config.accept_moves:
            result = Result.REFUSED
        elif too_soon:
            result = Result.BUSY
        elif needs_address and not addresses:
            result = Result.ADDRESS_FILTERED
        elif needs_address and not any(map(self._has_cid, addresses)):
            result = Result.NO_CID  # the race goes on that has taken them
        else:
            followed = self._prober.candidates.get(self._moved) if self._moved is not None else None
            self._forget_race(now)
        self._latest_at = now
        self.send_control(SmReady(epoch=prepare.epoch, result=result))
        if result is not Result.OK:
            return
        self._machine.feed(ClientInput.NOTICE)
        self._expect(prepare, addresses, now)
        self._seam.emit(events.MigrationAnnounced(prepare.epoch, prepare.strategy, addresses))
        if rules_of(prepare.strategy).probe_on is ProbeOn.NOTICE:
            self._probe(addresses, ProbeOn.NOTICE, now)
        if followed is not None and self._moved_epoch < prepare.epoch:
            self._go_on_following(followed, now)

    def _go_on_following(self, former: Candidate, now: float) -> None:
        """The server is at a place already that this client has not reached, and is to move on from there."""
        address = former.network_address
        if address == self._seam.network_address or address in self._prober.candidates:
            return
        self._moved = address
        self._on_packet_from_elsewhere(address, now)
        if address in self._prober.candidates:
            self._prober.candidates[address].challenges.update(former.challenges)

    def _expect(self, prepare: SmPrepare, addresses: tuple[Address, ...], now: float) -> None:
        over_at = now + 1.5 * prepare.downtime_ms / 1000 + _OVER_PTOS * self._seam.pto_s
        self._announcement = Announcement(prepare, addresses, now, over_at)

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
            self._expect(prepare, addresses, now)
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
                self._stood_still()
                self._settle(frame.epoch, now)
            return
        self._led = origin  # also of an epoch that is over: SM_ABORT behind it has the last word of that
        if frame.epoch > self._done_epoch:
            self._latest_epoch = frame.epoch
            if here is not None:
                self._has_been_at(plain_address(here), now)
            self._lead_to(origin, frame.epoch, now, said=here is not None)

    def _lead_to(self, address: NetworkAddress, epoch: int, now: float, *, said: bool) -> None:
        """The server is there: no other path is right any more, whichever has answered."""
        self._moved_epoch, self._moved_said = epoch, said
        if self._moved != address:
            self._moved, self._moved_at = address, now
        if self._validated is not None and self._validated.candidate.network_address != address:
            self._void_answer()
            self._machine.feed(ClientInput.ELSEWHERE)
            self._prober.running = True

    def _on_abort(self, frame: SmAbort, address: NetworkAddress, now: float) -> None:
        here, self._here = self._here, None
        origin = address if here is None else here
        said = here is not None or plain_address(address) in self._visited
        again = frame.epoch == self._aborted_epoch and origin == self._moved
        # the source has come there by a move of which this client has not heard; or this is said once more
        known = said or address == self._led or origin == self._moved or again
        if origin != self._seam.network_address and frame.epoch >= self._latest_epoch and known:
            # The destination has served, was taken down before the commit, and the source goes on. Or the
            # client has not heard of an earlier move, which has led to that source.
            self._latest_epoch = self._aborted_epoch = frame.epoch
            self._lead_to(origin, frame.epoch, now, said=said or (again and self._moved_said))
            return
        if origin != self._seam.network_address and frame.epoch >= self._latest_epoch:
            self._aborted_from = origin  # believed when nobody answers here
        if frame.epoch <= self._done_epoch or frame.epoch < self._latest_epoch:
            if frame.epoch == self._latest_epoch and origin == self._seam.network_address:
                self._aborted_epoch = frame.epoch  # a copy of this word from elsewhere leads nobody there
            return
        self._done_epoch = self._latest_epoch = self._aborted_epoch = frame.epoch
        self._latest_at = None  # a second attempt may follow at once
        self._waiting = None
        #: wire-format 6.2: The client MUST go back to the estimate
        self._stood_still()
        is_elsewhere = origin != self._seam.network_address and self._moved is not None
        if is_elsewhere and self._moved_epoch < frame.epoch:
            self._announcement = None  # the word of the move before, which this client still follows, holds
        elif self._machine.allows(ClientInput.ABORT):
            self._machine.feed(ClientInput.ABORT)
            self._forget_race(now)
            self._announcement = None
        self._seam.emit(events.MigrationAborted(frame.epoch, frame.reason))
