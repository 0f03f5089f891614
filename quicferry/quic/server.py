"""The server: it tells its client that it moves, is silent while it moves, and speaks or waits after it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from aioquic.quic.connection import NetworkAddress

from quicferry.errors import InvalidInput
from quicferry.quic import events
from quicferry.quic._aioquic.careful_resume import PathFacts
from quicferry.quic._aioquic.connection import Datagrams
from quicferry.quic._aioquic.seam import Seam
from quicferry.quic.asking import Asked
from quicferry.quic.config import Congestion, ExtensionConfig
from quicferry.quic.errors import ErrorCode, LocalError, PeerError
from quicferry.quic.request_wire import Reply, SmReply, SmRequest
from quicferry.quic.role import Role
from quicferry.quic.standard_wire import AlternativeAddress
from quicferry.quic.standards import Probation, ServerAddresses
from quicferry.quic.tables import SERVER, Machine, ServerInput, ServerState
from quicferry.quic.wire import (
    CIDS_BESIDE_A_RACE,
    HERE_ONLY,
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
    SmReady,
    decode_frame,
)
from quicferry.strategies import Carrier, Strategy, StrategyName, rules_of

_RESPONSES_PER_DATAGRAM = 100  # 9 bytes each in a datagram of 1200
_STATE_VERSION = 4


class ServerRole(Role):
    """The server's end of the extension."""

    def __init__(self, seam: Seam, config: ExtensionConfig) -> None:
        super().__init__(seam, config)
        self._machine: Machine[ServerState, ServerInput] = Machine(SERVER, ServerState.IDLE)
        self._epoch = 0
        self._offered: list[Address] = []  # to be named as soon as the handshake is confirmed
        self._named: dict[int, SmAddress] = {}  # what the client was told, by sequence number
        self._unconfirmed: set[int] = set()  # named, but not acknowledged
        self._next_sequence = 1
        self._pool_named_at: float | None = None  # when the client was told last; None: it is to be told
        self._name_again = False  # with the next packet of the client: a connection that is idle stays so
        self._announced = 0  # addresses in the latest SM_PREPARE
        self._answer: Result | None = None
        self._strategy: StrategyName | None = None  # of the latest prepare
        self._challenges: list[tuple[NetworkAddress, bytes]] = []
        self._cid_before_move = b""
        self._here: SmAddress | None = None  # says at which address it is, where it knows that
        self._word: list[bytes] = []  # where the server is, until the client is known to have heard it
        self._word_again_at = 0.0
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
        pool = sum(frame.pool for frame in self._named.values())
        candidates = max(self._announced, pool + 1)
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
        self._offered = list(addresses)

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
        if rules.pool and not self._offered and not any(f.pool for f in self._named.values()):
            self._seam.emit(events.MigrationReady(epoch, Result.NO_POOL))
            return
        waits = rules.notice or (rules.pool and bool(self._offered or self._unconfirmed))
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
            sequences = tuple(self._name(a, pool=False) for a in addresses[: self.max_addresses])
            self._say_again(sequences)
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
        self._name_again = True  # this host's clock does not know when the client heard it
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
        elif self.state is not ServerState.IDLE:
            raise LocalError(f"abort in the state {self.state}", hint="the move is over already")
        self._epoch = max(epoch, self._epoch)
        if was_held:
            self._name_again = True
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
            self._say(SmAbort(epoch=self._epoch, reason=AbortReason.named(reason)), now + self._seam.pto_s)

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
            named = (f for f in self._named.values() if address in (f.ipv4, f.ipv6))
            frame = next(named, SmAddress.of(HERE_ONLY, address))
            self._here = dataclasses.replace(frame, here=True)
            self.send_control(self._here)

    def _up_to_date(self, encoded: bytes) -> bytes:
        """A frame that is to be sent again; one that named a former place still names an address."""
        frame = decode_frame(encoded)
        if isinstance(frame, SmAddress) and frame.here and frame.sequence and frame != self._here:
            return dataclasses.replace(frame, here=False).encode()
        return encoded

    def _name(self, address: Address, *, pool: bool) -> int:
        """The sequence number of an address the client knows, or is told now."""
        #: wire-format 4.1: The number MUST NOT be used again
        for sequence, frame in self._named.items():
            if address in (frame.ipv4, frame.ipv6) and (frame.pool or not pool):
                self._named[sequence] = self._named.pop(sequence)  # the oldest is what was named least lately
                return sequence
        if len(self._named) >= self._config.max_known_addresses:
            self._retire_oldest()
        sequence, self._next_sequence = self._next_sequence, self._next_sequence + 1
        frame = SmAddress.of(sequence, address, pool=pool)
        self._named[sequence] = frame
        self._unconfirmed.add(sequence)
        self._seam.replenish_cids()
        self.send_control(frame)
        return sequence

    def _say_again(self, sequences: Iterable[int]) -> None:
        """Names addresses that the client may have forgotten since it was told."""
        #: wire-format 6.8: It MUST send SM_ADDRESS for each address
        for sequence in sequences:
            encoded = self._named[sequence].encode()
            if encoded not in self._control:
                self._control.append(encoded)

    def _name_pool_again(self) -> None:
        """By use alone: what keeps a connection open is its own traffic, never this."""
        #: wire-format 6.8: A server MUST name its pool again
        #: wire-format 6.8: It SHOULD NOT do so
        self._name_again, self._pool_named_at = False, None
        self._say_again(sequence for sequence, frame in self._named.items() if frame.pool)

    def control_delivered(self, encoded: bytes, acknowledged: bool) -> None:
        """Besides repeating: a pool is ready when the client is known to have all of it."""
        super().control_delivered(self._up_to_date(encoded), acknowledged)
        if acknowledged and self._word and encoded == self._word[-1]:
            self._word = []
        frame = decode_frame(encoded)
        if acknowledged and isinstance(frame, AlternativeAddress) and frame.before:
            self._set_delivered(frame)
        if not acknowledged or not isinstance(frame, SmAddress):
            return
        self._unconfirmed.discard(frame.sequence)
        if (
            self.state is ServerState.PREPARING
            and self._strategy is not None
            and not rules_of(self._strategy).notice
            and not self._unconfirmed
        ):
            self._machine.feed(ServerInput.ANSWER_OK)
            self._seam.emit(events.MigrationReady(self._epoch, Result.OK))

    def _set_delivered(self, frame: AlternativeAddress) -> None:
        """The client knows where to go; the draft has no answer to this but the acknowledgement."""
        if self.state is ServerState.PREPARING and self._standard.is_current(frame):
            self._machine.feed(ServerInput.ANSWER_OK)
            self._seam.emit(events.MigrationReady(self._epoch, Result.OK))

    def _retire_oldest(self) -> None:
        for sequence, frame in self._named.items():
            if not frame.pool:
                del self._named[sequence]
                self._unconfirmed.discard(sequence)
                self.send_control(SmAddress(sequence=sequence, ipv4=frame.ipv4, ipv6=frame.ipv6, retire=True))
                return
        raise LocalError("the client knows as many pool addresses as it will take")

    # ------------------------------------------------------------------ frames and packets

    def frame(self, frame: Frame, address: NetworkAddress, now: float) -> None:
        """A frame of the client: only SM_READY and SM_REQUEST may come."""
        if isinstance(frame, SmRequest):
            self._on_request(frame, now)
            return
        if not isinstance(frame, SmReady):
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, f"{frame.frame_type.name} from a client")
        if frame.epoch > self._epoch:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, "SM_READY for an epoch that was not announced")
        if frame.epoch < self._epoch:
            return
        if self._answer is not None and self._answer is not frame.result:
            raise PeerError(ErrorCode.PROTOCOL_VIOLATION, "SM_READY: one epoch, two answers")
        if self.state is not ServerState.PREPARING:
            return
        self._answer = frame.result
        ok = frame.result is Result.OK
        self._machine.feed(ServerInput.ANSWER_OK if ok else ServerInput.ANSWER_REFUSED)
        self._seam.emit(events.MigrationReady(frame.epoch, frame.result))

    def _on_request(self, frame: SmRequest, now: float) -> None:
        at_once = self.asked.take(frame, now)
        if at_once is not None:
            self.send_control(SmReply(request=frame.request, reply=at_once))
        elif frame.request == self.asked.is_open:
            self._seam.emit(events.MoveRequested(frame.request))

    def answer_request(self, request: int, reply: Reply) -> None:
        """Tells the client what became of its request; one that is answered already is left alone."""
        frame = self.asked.answer(request, reply)
        if frame is not None:
            self.send_control(frame)

    def challenge(self, address: NetworkAddress, data: bytes, *, on_active_path: bool) -> bool:
        """A probe of the client, from its known address: answered at once, in a datagram of its own.

        A client whose address has changed as well is told where the server is as soon as its path is
        validated: what is sent to the address that it had is lost, and it comes here with no more than probes
        before it has heard that.
        """
        if self._probation is not None:
            self._probation.challenged(address, data)
            return True
        if not on_active_path and not (self._word and self._seam.cid_of(address) is not None):
            return False  # the client's address changed too: upstream validates it
        self._challenges.append((address, data))
        return True

    def response(self, data: bytes, address: NetworkAddress) -> bool:
        """A server challenges its client only from an address that the client has not come to."""
        return self._probation is not None and self._probation.answered(data, address)

    def received(self, address: NetworkAddress, *, newest: bool, now: float) -> None:
        """An authentic packet of the client ends muteness; one that is no probe commits the move."""
        if self._probation is None:
            self.mute = False
        elif self._probation.is_over(self._seam.host_cid != self._cid_before_move):
            self._probation, self.mute = None, False
        self._speaks_at = None
        # aioquic follows the client to the connection ID of a packet, unless it is a probing packet. A late
        # packet to the old address, handed on by the source, is on the old one.
        if self.state is ServerState.RESTORED and self._seam.host_cid != self._cid_before_move:
            self._machine.feed(ServerInput.COMMIT)
            self._seam.emit(events.MigrationCommitted(self._epoch))
        self.passive = self.state is not ServerState.RESTORED and self._probation is None
        if self._name_again and self._probation is None:
            self._name_pool_again()

    # ------------------------------------------------------------------ sending and time

    def timer(self) -> float | None:
        """When a server that waits for its client speaks, or its pool is to be named again."""
        speaks_at = self._speaks_at if self._probation is None else self._probation.due_at
        if self._pool_named_at is None or self._name_again:
            return speaks_at
        again_at = self._pool_named_at + self._seam.idle_timeout_s
        return again_at if speaks_at is None else min(speaks_at, again_at)

    def while_mute(self) -> Datagrams:
        """Probes, where the client is to come first (RFC 9000 §9.6.2)."""
        if self._probation is None or not self._probation.has_datagrams:
            return []
        return self._probation.datagrams(_RESPONSES_PER_DATAGRAM)

    def on_timer(self, now: float) -> None:
        """Nobody waits for ever: a client may have nothing to ask, or may not know that it is to ask."""
        if self._pool_named_at is not None and now >= self._pool_named_at + self._seam.idle_timeout_s:
            self._name_again, self._pool_named_at = True, None
            self.passive = False  # the next packet is to be seen
        if self._probation is not None:
            self._probation.on_timer(now)
        if self._speaks_at is not None and now >= self._speaks_at:
            self.mute = False
            self._speaks_at = None

    @property
    def has_datagrams(self) -> bool:
        """Frames, answers to probes, or a pool to name."""
        return bool(self.negotiated and (self._control or self._challenges or self._offered))

    def before_send(self, now: float) -> Datagrams:
        """Answers to probes first, then our own frames."""
        #: RFC 9000 8.2.2: MUST respond by echoing
        #: RFC 9000 8.2.2: MUST NOT delay transmission
        #: RFC 9000 8.2.2: MUST NOT send more than one PATH_RESPONSE frame
        datagrams: Datagrams = []
        by_address: dict[NetworkAddress, list[bytes]] = {}
        # The newest first: its age is nearest to the RTT, which the client takes from it.
        for address, data in reversed(self._challenges):
            by_address.setdefault(address, []).append(data)
        self._challenges.clear()
        for address, responses in by_address.items():
            its = responses[:_RESPONSES_PER_DATAGRAM]
            word = self._word if now >= self._word_again_at else ()
            datagrams.append(self._seam.probe(address, self._seam.cid_of(address), None, its, word))
        if self._offered and self.negotiated_pool:
            for address in self._offered[: self.max_addresses]:
                self._name(address, pool=True)
        self._offered = []
        if self._pool_named_at is None and not self._name_again and any(f.pool for f in self._named.values()):
            self._pool_named_at = now
        return datagrams + self._control_datagrams(now)

    def is_current(self, encoded: bytes) -> bool:
        """Whether a control frame still means something to the client."""
        frame = decode_frame(encoded)
        if isinstance(frame, SmPrepare):
            return self.state is ServerState.PREPARING and frame.epoch == self._epoch
        if isinstance(frame, SmReply):
            return self.asked.is_current(frame)
        if isinstance(frame, AlternativeAddress):
            return self._standard.is_current(frame)
        if isinstance(frame, SmMigrated | SmAbort):
            return frame.epoch == self._epoch
        if isinstance(frame, SmAddress):
            if frame.sequence == HERE_ONLY:
                return frame == self._here
            return frame.retire or frame.sequence in self._named
        return True

    # ------------------------------------------------------------------ moving to another process

    def dump(self) -> dict[str, Any]:
        """The role as plain values."""
        return {
            "version": _STATE_VERSION,
            "negotiated": sorted(str(strategy) for strategy in self.negotiated),
            "max_addresses": self.max_addresses,
            "state": str(self.state),
            "epoch": self._epoch,
            "offered": [list(address) for address in self._offered],
            "named": [frame.encode() for frame in self._named.values()],
            "unconfirmed": sorted(self._unconfirmed),
            "next_sequence": self._next_sequence,
            "control": list(self._control),
            "strategy": None if self._strategy is None else str(self._strategy),
            "answer": None if self._answer is None else str(self._answer),
            "cid_before_move": self._cid_before_move,
            "word": list(self._word),
            "path_before": None if self._path_before is None else list(self._path_before),
            "frozen_number": self._frozen_number,
            "held": self.held,
            "mute": self.mute,
            "standard": self._standard.dump(),
            "asked": self.asked.dump(),
        }

    def load(self, values: dict[str, Any]) -> None:
        """Takes over what ``dump`` gave. Raises ``LocalError`` for another version's."""
        if values.get("version") != _STATE_VERSION:
            raise LocalError(f"extension state of version {values.get('version')!r}")
        self.negotiated = frozenset(map(str, values["negotiated"]))
        self.max_addresses = values["max_addresses"]
        self._machine.state = ServerState(values["state"])
        self._epoch = values["epoch"]
        self._offered = [(str(host), int(port)) for host, port in values["offered"]]
        frames = [decode_frame(encoded) for encoded in values["named"]]
        self._named = {frame.sequence: frame for frame in frames if isinstance(frame, SmAddress)}
        self._name_again = True
        self._unconfirmed = set(values["unconfirmed"])
        self._next_sequence = values["next_sequence"]
        self._control = list(values["control"])
        self._strategy = None if values["strategy"] is None else str(values["strategy"])
        self._answer = None if values["answer"] is None else Result(values["answer"])
        self._cid_before_move = values["cid_before_move"]
        self._word = list(values["word"])
        before = values["path_before"]
        self._path_before = None if before is None else PathFacts(int(before[0]), float(before[1]))
        self._frozen_number = values["frozen_number"]
        self.held = values["held"]
        self.mute = values["mute"]
        self._standard.load(values["standard"])
        self.asked.load(values["asked"])
