"""The two state machines of the extension, as tables.

Theory of operation
-------------------
The *server* decides to move. It tells its client (PREPARING) if the strategy has notice, and counts the
answer (READY, REFUSED); a strategy without notice is READY at once. Then the process is stopped (FROZEN)
and its state crosses to another host. There the connection is RESTORED: it speaks at once, or stays mute
until an authentic packet of the client has come, as the strategy says, but for one PTO at the most. The
first non-probing packet that the client sends over its new path makes the move final (COMMITTED). When the
move fails, the source takes up where it was frozen and says so (SM_ABORT); a machine is IDLE again.

The *client* knows of a move by notice (ANNOUNCED), by the silence of the old address, or by an authentic
packet from another address. What makes it probe is the strategy's rule. While it is PROBING all other
traffic goes to the old address. The first PATH_RESPONSE makes a path VALIDATED. Where the server has named
the address the client switches at once; where it has not (the symmetric strategies) the switch needs
SM_MIGRATED or a silent old path besides, so that somebody who merely relays packets of a server that never
moved cannot draw the client to himself; when SM_MIGRATED names another path than the one that has answered,
the client probes again. SWITCHED lasts until SM_MIGRATED has come or the old path's last
stragglers must have. A client that gets no answer in time goes to FALLBACK: it keeps the old path and the
connection stays open.

Both machines are advanced in ``client.py`` and ``server.py``; ``tools/draw_states.py`` draws them into
``docs/wire-format.md``.
"""

from __future__ import annotations

import enum
from typing import Generic, TypeVar

from quicferry.quic.errors import LocalError


class ClientState(enum.StrEnum):
    """Where the client is in the server's move."""

    IDLE = "idle"
    ANNOUNCED = "announced"
    PROBING = "probing"
    VALIDATED = "validated"
    SWITCHED = "switched"
    FALLBACK = "fallback"


class ClientInput(enum.StrEnum):
    """What moves the client on."""

    NOTICE = "SM_PREPARE accepted"
    PROBE = "the strategy's rule says probe"
    RESPONSE = "PATH_RESPONSE"
    SWITCH = "the address was named, SM_MIGRATED came, or the old path is silent"
    ELSEWHERE = "SM_MIGRATED names another path"
    STAND_BY = "old path alive, move announced"
    FALSE_ALARM = "old path alive, no move announced"
    SETTLED = "SM_MIGRATED, or the old path has drained"
    ABORT = "SM_ABORT"
    DEADLINE = "no answer in time"


class ServerState(enum.StrEnum):
    """Where the server is in its move."""

    IDLE = "idle"
    PREPARING = "preparing"
    READY = "ready"
    REFUSED = "refused"
    FROZEN = "frozen"
    RESTORED = "restored"
    COMMITTED = "committed"


class ServerInput(enum.StrEnum):
    """What moves the server on."""

    PREPARE = "prepare, the client must know something first"
    NO_NOTICE = "prepare, nothing to tell"
    ANSWER_OK = "SM_READY(ok), or the pool is acknowledged"
    ANSWER_REFUSED = "SM_READY(other)"
    HOLD = "hold"
    RESUME = "resume, at the destination"
    COMMIT = "first non-probing packet on the new path"
    ABORT = "abort, at the source"


_C = ClientState
_CI = ClientInput
CLIENT: dict[tuple[ClientState, ClientInput], ClientState] = {
    (_C.IDLE, _CI.NOTICE): _C.ANNOUNCED,
    (_C.IDLE, _CI.PROBE): _C.PROBING,
    (_C.ANNOUNCED, _CI.NOTICE): _C.ANNOUNCED,
    (_C.ANNOUNCED, _CI.PROBE): _C.PROBING,
    (_C.ANNOUNCED, _CI.SETTLED): _C.IDLE,
    (_C.ANNOUNCED, _CI.ABORT): _C.IDLE,
    (_C.ANNOUNCED, _CI.DEADLINE): _C.FALLBACK,
    (_C.PROBING, _CI.NOTICE): _C.ANNOUNCED,
    (_C.PROBING, _CI.RESPONSE): _C.VALIDATED,
    (_C.PROBING, _CI.STAND_BY): _C.ANNOUNCED,
    (_C.PROBING, _CI.FALSE_ALARM): _C.IDLE,
    (_C.PROBING, _CI.ABORT): _C.IDLE,
    (_C.PROBING, _CI.DEADLINE): _C.FALLBACK,
    (_C.VALIDATED, _CI.SWITCH): _C.SWITCHED,
    (_C.VALIDATED, _CI.ELSEWHERE): _C.PROBING,
    (_C.VALIDATED, _CI.NOTICE): _C.ANNOUNCED,
    (_C.VALIDATED, _CI.STAND_BY): _C.ANNOUNCED,
    (_C.VALIDATED, _CI.FALSE_ALARM): _C.IDLE,
    (_C.VALIDATED, _CI.ABORT): _C.IDLE,
    (_C.VALIDATED, _CI.DEADLINE): _C.FALLBACK,
    (_C.SWITCHED, _CI.SETTLED): _C.IDLE,
    (_C.SWITCHED, _CI.NOTICE): _C.ANNOUNCED,
    (_C.SWITCHED, _CI.PROBE): _C.PROBING,
    (_C.FALLBACK, _CI.NOTICE): _C.ANNOUNCED,
    (_C.FALLBACK, _CI.PROBE): _C.PROBING,
    (_C.FALLBACK, _CI.FALSE_ALARM): _C.IDLE,
    (_C.FALLBACK, _CI.ABORT): _C.IDLE,
}

_S = ServerState
_SI = ServerInput
SERVER: dict[tuple[ServerState, ServerInput], ServerState] = {
    **{
        (state, sent): reached
        for state in (_S.IDLE, _S.PREPARING, _S.READY, _S.REFUSED, _S.RESTORED, _S.COMMITTED)
        for sent, reached in (
            (_SI.PREPARE, _S.PREPARING),
            (_SI.NO_NOTICE, _S.READY),
            (_SI.HOLD, _S.FROZEN),
        )
    },
    (_S.PREPARING, _SI.ANSWER_OK): _S.READY,
    (_S.PREPARING, _SI.ANSWER_REFUSED): _S.REFUSED,
    (_S.PREPARING, _SI.ABORT): _S.IDLE,
    (_S.READY, _SI.ABORT): _S.IDLE,
    (_S.REFUSED, _SI.ABORT): _S.IDLE,
    (_S.FROZEN, _SI.RESUME): _S.RESTORED,
    (_S.FROZEN, _SI.ABORT): _S.IDLE,
    (_S.RESTORED, _SI.COMMIT): _S.COMMITTED,
}

S = TypeVar("S", bound=enum.StrEnum)
I = TypeVar("I", bound=enum.StrEnum)  # noqa: E741  (the letter of an automaton's input alphabet)


class Machine(Generic[S, I]):
    """One state, moved by inputs along a table."""

    def __init__(self, table: dict[tuple[S, I], S], state: S) -> None:
        self._table = table
        self.state = state

    def allows(self, sent: I) -> bool:
        """Whether ``feed`` would be in order."""
        return (self.state, sent) in self._table

    def feed(self, sent: I) -> S:
        """Advance. Raises ``LocalError`` when the table has no such row."""
        try:
            self.state = self._table[(self.state, sent)]
        except KeyError:
            raise LocalError(f"{sent!s} does not fit the state {self.state!s}") from None
        return self.state
