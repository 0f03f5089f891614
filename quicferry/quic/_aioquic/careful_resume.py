"""Congestion control that is resumed with what was known of the path before the move, and takes care.

Careful Resume (draft-ietf-tsvwg-careful-resume): a sender that knows which window a path bore jumps to half
of it as soon as the first flight is acknowledged and the round trip is like the one that is remembered, and
takes the jump back if it was too much. The draft wants the saved parameters for the same pair of addresses;
here the server's has changed, the client's access link, which is the usual bottleneck, has not. So it is
chosen, not the default.

The phases are the draft's:

* RECONNAISSANCE: the initial window, until one of its packets is acknowledged. Loss, or an RTT of less than
  half or more than ten times the saved one, ends it in NORMAL.
* UNVALIDATED: the window is half of the saved one, paced over an RTT, and does not grow. It ends when a
  packet of this phase is acknowledged, or after an RTT.
* VALIDATING: the window is what is in flight, until all of UNVALIDATED is acknowledged.
* SAFE_RETREAT: after a loss in one of the two before: half of what was acknowledged is the window, until all
  of UNVALIDATED is acknowledged or lost.
* NORMAL: the congestion controller alone.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from aioquic import tls
from aioquic.quic.connection import QuicConnection

_LEAST_RTT, _MOST_RTT = 0.5, 10.0  # times the saved one (Section 3.2 of the draft)
_JUMP = 0.5  # of the saved window
_BETA = 0.5  # what is left of what was acknowledged, in a retreat
_LEAST_PACKETS = 2  # of a window (RFC 9002 §7.2)
_WORTHWHILE = 2.0  # times the initial window: with less there is nothing to jump to


class PathFacts(NamedTuple):
    """What a sender knows of a path: its congestion window in bytes, its smoothed RTT in seconds."""

    congestion_window: int
    rtt_s: float


class Phase(enum.StrEnum):
    """Where a resumed sender is."""

    RECONNAISSANCE = "reconnaissance"
    UNVALIDATED = "unvalidated"
    VALIDATING = "validating"
    SAFE_RETREAT = "safe-retreat"
    NORMAL = "normal"


class CarefulResume:
    """The phases of one connection, advanced by each acknowledgement. Times are in seconds."""

    def __init__(self, saved: PathFacts, connection: QuicConnection) -> None:
        self.saved = saved
        self.phases = [Phase.RECONNAISSANCE]  # all that it has been through
        self._recovery_at = self._recovery(connection)
        self._pipe_bytes = 0  # what the path has proved to bear
        self._first = self._last = connection._packet_number
        self._ends_at = 0.0

    @property
    def phase(self) -> Phase:
        """The present one."""
        return self.phases[-1]

    @staticmethod
    def _recovery(connection: QuicConnection) -> Any:
        """Changes with each congestion event."""
        return connection._loss._cc._congestion_recovery_start_time  # type: ignore[attr-defined]  # both have it

    def acknowledged(self, connection: QuicConnection, newly_bytes: int, now: float) -> None:
        """Advances after an ACK frame that acknowledged so many bytes."""
        loss = connection._loss
        largest = connection._spaces[tls.Epoch.ONE_RTT].largest_acked_packet
        lost = self._recovery(connection) != self._recovery_at
        if self.phase is Phase.RECONNAISSANCE:
            if largest >= self._first and loss._rtt_initialized:
                self._judge(connection, lost, now)
        elif self.phase in (Phase.UNVALIDATED, Phase.VALIDATING):
            self._pipe_bytes += newly_bytes
            if lost:
                self._retreat(connection)
            elif self.phase is Phase.UNVALIDATED:
                self._set_window(connection, self._jump)
                if largest >= self._first or now >= self._ends_at:
                    self._validate(connection)
            elif largest >= self._last:
                self.phases.append(Phase.NORMAL)
        elif self.phase is Phase.SAFE_RETREAT and largest >= self._last:
            self.phases.append(Phase.NORMAL)

    @property
    def _jump(self) -> int:
        return int(self.saved.congestion_window * _JUMP)

    def _judge(self, connection: QuicConnection, lost: bool, now: float) -> None:
        loss = connection._loss
        is_alike = _LEAST_RTT * self.saved.rtt_s <= loss._rtt_min <= _MOST_RTT * self.saved.rtt_s
        if lost or not is_alike or self._jump <= loss._cc.congestion_window:
            self.phases.append(Phase.NORMAL)
            return
        self.phases.append(Phase.UNVALIDATED)
        self._pipe_bytes = loss._cc.congestion_window
        self._first = self._last = connection._packet_number
        self._ends_at = now + loss._rtt_smoothed
        self._set_window(connection, self._jump)

    def _validate(self, connection: QuicConnection) -> None:
        control = connection._loss._cc
        self.phases.append(Phase.VALIDATING)
        self._last = connection._packet_number - 1
        self._set_window(connection, max(self._pipe_bytes, control.bytes_in_flight))

    def _retreat(self, connection: QuicConnection) -> None:
        least = _LEAST_PACKETS * connection._max_datagram_size
        if self.phase is Phase.UNVALIDATED:
            self._last = connection._packet_number - 1
        self.phases.append(Phase.SAFE_RETREAT)
        window = max(least, int(self._pipe_bytes * _BETA))
        connection._loss._cc.ssthresh = window
        self._set_window(connection, window)

    @staticmethod
    def _set_window(connection: QuicConnection, window: int) -> None:
        loss = connection._loss
        loss._cc.congestion_window = window
        loss._pacer.update_rate(congestion_window=window, smoothed_rtt=loss._rtt_smoothed)


def path_facts(connection: QuicConnection) -> PathFacts | None:
    """What is worth to be remembered of the present path; None without a sample of its RTT.

    A path that is still being probed keeps what was remembered before it.
    """
    loss = connection._loss
    careful: CarefulResume | None = getattr(connection, "_careful", None)
    if careful is not None and careful.phase is not Phase.NORMAL:
        return careful.saved
    return PathFacts(loss._cc.congestion_window, loss._rtt_smoothed) if loss._rtt_initialized else None


def resume_carefully(connection: Any, saved: PathFacts | None) -> None:
    """Begins anew with what is remembered; nothing is in flight, and the window is the initial one."""
    connection._careful = None
    if saved is not None and saved.congestion_window >= _WORTHWHILE * connection._loss._cc.congestion_window:
        connection._careful = CarefulResume(saved, connection)
