"""The client: it is told, or notices, that the server moves, and finds it again."""

from __future__ import annotations

from aioquic.quic.connection import NetworkAddress

from quicferry.quic import events
from quicferry.quic.client_moves import ClientMoves
from quicferry.quic.errors import ErrorCode, PeerError
from quicferry.quic.standards import FIRST_VALIDATION_PTOS
from quicferry.quic.tables import ClientInput, ClientState
from quicferry.quic.wire import CIDS_BESIDE_A_RACE, REQUESTS, VERSION, Address, FrameType, Parameter
from quicferry.strategies import ProbeOn, Strategy, rules_of

_WAY_BACK_PTOS = 3  # how long after the old path fell silent the places are tried where the server was


class ClientRole(ClientMoves):
    """The client's end of the extension."""

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
        #: wire-format 13.1: keeps to the original address, as it MUST
        #: RFC 9000 9.6.1: SHOULD select one of the two addresses
        #: RFC 9000 9.6.1: MUST continue sending all future packets to the server
        if not self._config.accept_moves or not self._standard.prefer(addresses):
            return True  # nor is aioquic to go there by itself
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
        #: wire-format 3.1: MUST send an `active_connection_id_limit`
        return self._config.max_addresses + CIDS_BESIDE_A_RACE

    def ask_for_move(self) -> int:
        """Asks the server to move; ``MoveAnswered`` follows. Returns the request's number."""
        frame = self.asking.ask()
        self.send_control(frame)
        return frame.request

    def received(self, address: NetworkAddress, *, newest: bool, now: float) -> None:
        """News from the server."""
        if address == self._seam.network_address:
            self._silence.broken(now)
            self._look_at_rtt()
            after = self._moved_for_good_after
            if after is not None and self._seam.largest_acknowledged >= after:
                # acknowledgements wait for the commit: there is no way back any more
                self._moved_for_good_after = None
                self._kept.retire_all()
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
        self._here = self._led = None  # it is said in the same packet as SM_MIGRATED, or not at all
        self._take_responses(now)
        self._settle_down(now)

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
        elif self._on_word_alone and self.admits(address):
            self._doubled_from = address
        self._take_responses(now)
        self._settle_down(now)

    @property
    def recovery_suspended(self) -> bool:
        """The server said that it will be silent until it speaks first: its silence is no loss.

        The first PTO still counts; it repeats what was lost before the move began.
        """
        return (
            self._silence.noticed
            and self._announcement is not None
            and self._announcement.probe_on is ProbeOn.SERVER_PACKET
            and not self._announcement.over
        )

    def _loss_at(self) -> float | None:
        """When the old address counts as silent or too quiet, or when that is to be looked at."""
        if not self.negotiated:
            return None
        due_at = self._silence.due_at()
        return self._quiet.due_at() if due_at is None else due_at

    def timer(self) -> float | None:
        """The earliest of: silence, the next probe, the end of patience, the end of the former path."""
        if (
            self._deadline is None
            and not self._former
            and not self._prober.running
            and self._kept.due_at is None
            and self._way_back_at is None
        ):
            return self._loss_at()
        times = [
            self._loss_at(),
            self._prober.next_at(),
            self._deadline,
            self._kept.due_at,
            self._switch_at(),
            self._way_back_at,
            self._announcement.over_at if self.recovery_suspended and self._announcement else None,
            *self._former.values(),
        ]
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
        elif self._validated is not None:
            self._switch_if_allowed(now)
        if self.negotiated:
            self._quiet.look(now)
        if self._announcement is not None and now >= self._announcement.over_at:
            self._announcement.over = True
        if self._way_back_at is not None and now >= self._way_back_at:
            self._way_back_at = None
            self._try_way_back(now)
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
        if self._rtt_counts_from is None:
            self._rtt_before = self._seam.rtt_estimate()
        self._forget_expired(now)
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
        if self._ways_back() or self._doubled_from is not None:
            since = now if self._announcement is None else max(now, self._announcement.over_at)
            self._way_back_at = since + _WAY_BACK_PTOS * self._seam.pto_s
        self._switch_if_allowed(now)

    def _fall_back(self, now: float) -> None:
        #: wire-format 6.3: It MUST NOT close the connection for that reason
        #: RFC 9000 8.2.4: SHOULD abandon path validation based on a timer
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
