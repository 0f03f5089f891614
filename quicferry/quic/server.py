"""The server: the frames and packets of its client, what it sends, and its state in another process."""

from __future__ import annotations

from typing import Any

from aioquic.quic.connection import NetworkAddress

from quicferry.quic import events
from quicferry.quic._aioquic.careful_resume import PathFacts
from quicferry.quic._aioquic.connection import Datagrams
from quicferry.quic.errors import ErrorCode, LocalError, PeerError
from quicferry.quic.probing import RESPONSES_PER_DATAGRAM
from quicferry.quic.request_wire import Reply, SmReply, SmRequest
from quicferry.quic.server_moves import ServerMoves
from quicferry.quic.standard_wire import AlternativeAddress
from quicferry.quic.tables import ServerInput, ServerState
from quicferry.quic.wire import (
    HERE_ONLY,
    Frame,
    Result,
    SmAbort,
    SmAddress,
    SmMigrated,
    SmPrepare,
    SmReady,
    decode_frame,
)
from quicferry.strategies import rules_of

_STATE_VERSION = 4


class ServerRole(ServerMoves):
    """The server's end of the extension."""

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
        all_known = self._naming.confirmed(frame)
        if (
            self.state is ServerState.PREPARING
            and self._strategy is not None
            and not rules_of(self._strategy).notice
            and all_known
        ):
            self._machine.feed(ServerInput.ANSWER_OK)
            self._seam.emit(events.MigrationReady(self._epoch, Result.OK))

    def _set_delivered(self, frame: AlternativeAddress) -> None:
        """The client knows where to go; the draft has no answer to this but the acknowledgement."""
        if self.state is ServerState.PREPARING and self._standard.is_current(frame):
            self._machine.feed(ServerInput.ANSWER_OK)
            self._seam.emit(events.MigrationReady(self._epoch, Result.OK))

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
        is_news = self.asked.is_above_all(frame)
        at_once = self.asked.take(frame, now)
        if at_once is not None:
            self.send_control(SmReply(request=frame.request, reply=at_once))
        elif is_news:
            #: wire-format 4.6: MUST NOT take for a request of its own
            # a repetition is not handed on again: who decides would order a second move
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
        if self._naming.is_due and self._probation is None:
            self._naming.name_pool_again()
        if self._word:
            self._rechallenges.probed(address, now)

    # ------------------------------------------------------------------ sending and time

    def timer(self) -> float | None:
        """When a server that waits for its client speaks, or its pool is to be named again."""
        speaks_at = self._speaks_at if self._probation is None else self._probation.due_at
        again_at = self._naming.again_at()
        if again_at is None:
            return speaks_at
        return again_at if speaks_at is None else min(speaks_at, again_at)

    def while_mute(self) -> Datagrams:
        """Probes, where the client is to come first (RFC 9000 §9.6.2)."""
        if self._probation is None or not self._probation.has_datagrams:
            return []
        return self._probation.datagrams(RESPONSES_PER_DATAGRAM)

    def on_timer(self, now: float) -> None:
        """Nobody waits for ever: a client may have nothing to ask, or may not know that it is to ask."""
        if self._naming.look(now):
            self.passive = False  # the next packet is to be seen
        if self._probation is not None:
            self._probation.on_timer(now)
        if self._speaks_at is not None and now >= self._speaks_at:
            self.mute = False
            self._speaks_at = None

    @property
    def has_datagrams(self) -> bool:
        """Frames, answers to probes, or a pool to name."""
        return bool(self.negotiated and (self._control or self._challenges or self._naming.offered))

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
            its = responses[:RESPONSES_PER_DATAGRAM]
            word = self._word if now >= self._word_again_at else ()
            datagrams.append(self._seam.probe(address, self._seam.cid_of(address), None, its, word))
        if self.negotiated_pool:
            self._naming.name_offered(self.max_addresses)
        self._naming.offered = []
        self._naming.leaves(now)
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
            return self._naming.is_current(frame)
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
            **self._naming.dump(),
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
        self._naming.load(values)
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
