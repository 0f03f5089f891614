"""A server's moves: what is negotiated, and what it does when it is to prepare, hold, resume or stay.

Packets and time are in ``server``, addresses and their numbers in ``naming``.
"""

from __future__ import annotations

import dataclasses

from aioquic.quic.connection import NetworkAddress

from quicferry.errors import InvalidInput
from quicferry.quic import events
from quicferry.quic._aioquic.careful_resume import PathFacts
from quicferry.quic._aioquic.seam import Seam
from quicferry.quic.asking import Asked
from quicferry.quic.config import Congestion, ExtensionConfig
from quicferry.quic.errors import LocalError
from quicferry.quic.naming import Naming
from quicferry.quic.probing import Rechallenges
from quicferry.quic.role import Role
from quicferry.quic.standards import Probation, ServerAddresses
from quicferry.quic.tables import SERVER, Machine, ServerInput, ServerState
from quicferry.quic.wire import (
    CIDS_BESIDE_A_RACE,
    REQUESTS,
    VERSION,
    AbortReason,
    Address,
    Frame,
    Parameter,
    Result,
    SmAbort,
    SmAddress,
    SmMigrated,
    SmPrepare,
    decode_frame,
)
from quicferry.strategies import Carrier, Strategy, StrategyName, rules_of


class ServerMoves(Role):
    """The orders of the application, at the server."""

    def __init__(self, seam: Seam, config: ExtensionConfig) -> None:
        super().__init__(seam, config)
        self._machine: Machine[ServerState, ServerInput] = Machine(SERVER, ServerState.IDLE)
        self._epoch = 0
        self._naming = Naming(seam, config.max_known_addresses, self.send_control, self._send_once)
        self._announced = 0  # addresses in the latest SM_PREPARE
        self._answer: Result | None = None
        self._strategy: StrategyName | None = None  # of the latest prepare
        self._challenges: list[tuple[NetworkAddress, bytes]] = []
        self._cid_before_move = b""
        self._here: SmAddress | None = None  # says at which address it is, where it knows that
        self._word: list[bytes] = []  # where the server is, until the client is known to have heard it
        self._word_again_at = 0.0
        self._rechallenges = Rechallenges(seam, config.timings.gentle_interval_max_s)
        self._path_before: PathFacts | None = None  # what was known of the path at the freeze
        self._frozen_number = 0  # the next packet number at the freeze
        self.asked = Asked(config.timings)
        self._standard = ServerAddresses(seam, config)
        self._probation: Probation | None = None  # at an address that the client has not come to
        self._speaks_at: float | None = None  # when a mute server has waited long enough

    @property
    def state(self) -> ServerState:
        """Where it is in its move."""
        return self._machine.state

    # ------------------------------------------------------------------ negotiation

    def own_parameter(self) -> bytes:
        """The answer; a server sends none before it has seen an offer."""
        standard = self._standard.own_parameter()
        if not self.extended:
            return standard
        answer = Parameter(
            strategies=self.extended,
            max_addresses=self.max_addresses,
            flags=REQUESTS if self.asked.agreed else 0,
        )
        return standard + answer.encode()

    def peer_parameter(self, value: bytes | None) -> bool:
        """The client's offer: what both can do is answered; nothing in common is no answer."""
        if value is None:
            return False
        offer = Parameter.decode(value)
        if offer.version != VERSION:
            return False
        # a client that holds fewer connection IDs than its race would take races fewer addresses
        can_hold = self._seam.peer_cid_limit - CIDS_BESIDE_A_RACE
        if can_hold < 1:
            return False
        self.negotiated = offer.strategies & self._config.strategies
        self.max_addresses = min(offer.max_addresses, self._config.max_addresses, can_hold)
        self.asked.agreed = bool(offer.flags & REQUESTS)
        return bool(self.negotiated)

    def standard_parameters(self, parameters: bytes) -> bool:
        """What the client can do without the extension. Raises ``PeerError``."""
        self._standard.peer_parameters(parameters)
        self.negotiated |= self._standard.agreed
        return bool(self._standard.agreed)

    @property
    def connection_ids(self) -> int:
        """One for each candidate of a race, and those beside it.

        The candidates are what was announced, or the pool and the address that is left.
        """
        #: wire-format 3.2: A server MUST have given its client two connection IDs more
        #: RFC 9000 5.1.1: SHOULD ensure that the pool of connection IDs
        #: RFC 9000 9.5: SHOULD provide new connection IDs before peers migrate
        candidates = max(self._announced, self._naming.pool_size + 1)
        return min(candidates, self.max_addresses) + CIDS_BESIDE_A_RACE

    # ------------------------------------------------------------------ the application's orders

    def offer_addresses(self, addresses: list[Address]) -> None:
        """The pool. Named to the client at once, or when the handshake is confirmed.

        Raises ``InvalidInput`` for more than ``max_addresses`` of the configuration. A client that takes
        fewer is told the first ones.
        """
        if len(addresses) > self._config.max_addresses:
            raise InvalidInput(
                f"a pool of {len(addresses)} addresses", hint=f"at most {self._config.max_addresses}"
            )
        self._naming.offered = list(addresses)

    def prepare(
        self,
        epoch: int,
        strategy: StrategyName,
        addresses: list[Address],
        downtime_ms: float,
        *,
        server_first: bool,
        clients: int = 1,
    ) -> None:
        """Tells the client if the strategy has notice. ``MigrationReady`` follows in every case.

        Without notice it follows at once; for a pool, when the client has acknowledged the addresses.
        The more ``clients`` are told, the less often each is asked to probe.
        """
        #: wire-format 3.2: The frames of this document MUST NOT be sent unless
        #: RFC 9000 9: MUST NOT initiate connection migration before the handshake is confirmed
        if not self.negotiated or strategy not in self.negotiated:
            self._seam.emit(events.MigrationReady(epoch, Result.NOT_NEGOTIATED))
            return
        if not self._seam.handshake_confirmed:
            self._seam.emit(events.MigrationReady(epoch, Result.NOT_CONFIRMED))
            return
        rules = rules_of(strategy)
        if epoch <= self._epoch:
            raise LocalError(f"epoch {epoch} is not above {self._epoch}", hint="number the moves upwards")
        why_not = self._why_not_by_standard(rules.carrier, addresses)
        if why_not is not None:
            self._machine.feed(ServerInput.PREPARE)
            self._machine.feed(ServerInput.ANSWER_REFUSED)
            self._epoch, self._strategy, self._answer = epoch, strategy, None
            self._seam.emit(events.MigrationReady(epoch, why_not))
            return
        if rules.carries_address and not addresses:
            raise LocalError(f"{rules.title} needs the destination's address")
        if rules.pool and not self._naming.has_pool:
            self._seam.emit(events.MigrationReady(epoch, Result.NO_POOL))
            return
        waits = rules.notice or (rules.pool and self._naming.is_unheard)
        self._machine.feed(ServerInput.PREPARE if waits else ServerInput.NO_NOTICE)
        self._epoch = epoch
        self._answer = None
        self._strategy = strategy
        if not waits:
            self._seam.emit(events.MigrationReady(epoch, Result.OK))
        if not rules.notice:
            return
        if rules.carrier is Carrier.ALTERNATIVE_ADDRESS:
            self.send_control(self._standard.next_set(addresses))
            return
        sequences: tuple[int, ...] = ()
        if rules.carries_address:
            self._announced = len(addresses)
            sequences = tuple(self._naming.name(a, pool=False) for a in addresses[: self.max_addresses])
            self._naming.say_again(sequences)
        self.send_control(
            SmPrepare(
                epoch=epoch,
                strategy=strategy,
                sequences=sequences,
                downtime_ms=max(0, round(downtime_ms)),
                probe_interval_ms=max(1, round(self._config.timings.shared_interval_s(clients) * 1000)),
                server_first=server_first,
            )
        )

    def _why_not_by_standard(self, carrier: Carrier, addresses: list[Address]) -> Result | None:
        """What keeps a server from moving by a standard; None if nothing does."""
        if carrier is Carrier.PREFERRED_ADDRESS and not self._standard.can_be_left_for(addresses):
            return Result.NO_ADDRESS
        if carrier is Carrier.ALTERNATIVE_ADDRESS and self._probation is not None:
            return Result.UNTOLD  # until the client has come here, only probes may leave
        return None

    def hold(self) -> None:
        """Silence, from now: the connection may be checkpointed."""
        if self._machine.allows(ServerInput.HOLD):
            self._machine.feed(ServerInput.HOLD)
            self._cid_before_move = self._seam.host_cid
        if not self.held:
            self._seam.release_lease()  # what is held for a move is this host's own
            self._probation = None  # the destination has its own
            self._frozen_number = self._seam.packet_number
            self._path_before = self._seam.path_facts()
        self.held = True
        self.passive = False

    def resume(
        self,
        epoch: int,
        strategy: StrategyName,
        *,
        speak_first: bool,
        now: float,
        clients: int = 1,
        address: Address | None = None,
        withhold: bool = False,
    ) -> None:
        """At the destination. What was in flight is in doubt; the path is new (RFC 9000 §9.4).

        A server that does not speak first waits for its client for one PTO of the old path.
        """
        #: RFC 9000 9.5: MUST NOT reuse a connection ID when sending from more than one local address
        #: RFC 9000 9.6.2: The server MUST send non-probing packets from its original address until
        if not self.held:
            raise LocalError("resume without hold")
        self._machine.feed(ServerInput.RESUME)
        self.held = False
        self._epoch = max(epoch, self._epoch)
        self._naming.is_due = True  # this host's clock does not know when the client heard it
        self._rechallenges.forget()  # what the source's challenges have brought came to nobody
        self._challenges.clear()
        if self._seam.has_ended:
            return
        self._seam.keep_to_lease(self._frozen_number)
        patience_s = self._seam.pto_s
        self._seam.validate_again(now if speak_first else now + patience_s)
        self._seam.forget_locals()
        #: wire-format 9.2: idle timer MUST begin anew when it resumes
        self._seam.restart_idle_timer(now)
        self._seam.doubt_flight(now)
        self._seam.restart_recovery(
            None,
            now,
            least_rtt_s=clients / self._config.timings.answers_per_second,
            resume_from=self._path_before if self._config.congestion is Congestion.CAREFUL_RESUME else None,
        )
        if withhold:
            self._seam.withhold_output()
        self._standard.here = address
        if not rules_of(strategy).extended and strategy in self.negotiated:
            self._standard.use_up_if(strategy is Strategy.PREFERRED_ADDRESS)
            self._seam.change_cid()
            self.mute = True
            self._probation = Probation(self._seam, now, patience_s)
            return
        if not self.extended:
            self._seam.ask_for_acknowledgement()
            return
        self._say_here(address)
        self._say(SmMigrated(epoch=self._epoch), now + patience_s)
        self._seam.change_cid()  # RFC 9000 §9.5: not the same one from two addresses
        self.mute = not speak_first
        self._speaks_at = now + patience_s if self.mute else None

    def record_commit(self) -> None:
        """At the destination: the source never goes on. All packet numbers are this host's."""
        self._seam.release_lease()

    def abort(self, epoch: int, reason: str, now: float) -> None:
        """At the source: the move is off. Everything in flight is sent again."""
        was_held, self.held = self.held, False
        if self._machine.allows(ServerInput.ABORT):
            self._machine.feed(ServerInput.ABORT)
        elif epoch > self._epoch and self.state is not ServerState.IDLE:
            return  # this client could not be told of the move: it has no part in that, nor in its end
        elif self.state is not ServerState.IDLE:
            raise LocalError(f"abort in the state {self.state}", hint="the move is over already")
        self._epoch = max(epoch, self._epoch)
        if was_held:
            self._naming.is_due = True
            self._rechallenges.forget()
            self._seam.leave_lease(self._frozen_number)
        if was_held and not self._seam.has_ended:
            self._seam.validate_again(now)
            self._seam.take_newest_cid()
            self._seam.restart_idle_timer(now)
            self._seam.expire_in_flight(now)
        if self._strategy is not None and not rules_of(self._strategy).extended:
            if self._strategy == Strategy.ALTERNATIVE_ADDRESS:
                self.send_control(self._standard.next_set([]))
        elif self.extended and self._seam.handshake_confirmed:
            if self._here is not None:  # the client may have gone to the destination without passing by
                self.send_control(self._here)
            again_at = now + self._seam.pto_s
            stays = SmAbort(epoch=self._epoch, reason=AbortReason.named(reason))
            if self._here is None and self._is_unheard():
                #: wire-format 7.1: it MUST send SM_MIGRATED of the epoch
                self._say(SmMigrated(epoch=self._epoch), again_at)
                self.send_control(stays)
                self._word.append(stays.encode())
            else:
                self._say(stays, again_at)

    def _is_unheard(self) -> bool:
        """Whether the client may not have heard that the server came here by an earlier move."""
        return any(isinstance(decode_frame(encoded), SmMigrated) for encoded in self._word)

    def _say(self, frame: SmMigrated | SmAbort, again_at: float) -> None:
        """Where the server is now. From ``again_at`` on, a client that probes it is told with each answer.

        What the client acknowledges goes to where it takes the server to be, so that nothing that it has not
        heard would ever be declared lost.
        """
        self.send_control(frame)
        here = [] if self._here is None else [self._here.encode()]
        self._word, self._word_again_at = [*here, frame.encode()], again_at

    def _say_here(self, address: Address | None) -> None:
        """Says the address that the server is at, so that SM_MIGRATED counts for no other path.

        One that was not named gets no name for that: the source, if it goes on, would not know of it, and
        would give its number to another.
        """
        self._here = None
        self._control = [self._up_to_date(encoded) for encoded in self._control]
        if address is not None:
            self._here = dataclasses.replace(self._naming.frame_for(address), here=True)
            self.send_control(self._here)

    def _send_once(self, frame: Frame) -> None:
        if frame.encode() not in self._control:
            self.send_control(frame)

    def _up_to_date(self, encoded: bytes) -> bytes:
        """A frame that is to be sent again; one that named a former place still names an address."""
        frame = decode_frame(encoded)
        if isinstance(frame, SmAddress) and frame.here and frame.sequence and frame != self._here:
            return dataclasses.replace(frame, here=False).encode()
        return encoded
